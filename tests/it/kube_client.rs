//! Real client behaviour: kube-rs itself, and the stream of `kubectl logs -f`.

use std::io;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Config, ResourceExt as _,
    api::{AttachParams, ListParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use standin::{
    upstream::{BodySender, RequestBody, ResponseBody, channel, empty, full},
    within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

use crate::proxy::{HOST, Proxy, World};

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "resourceVersion": "2" },
        "spec": { "containers": [] },
    })
}

/// A minimal apiserver for these tests.
async fn apiserver(request: Request<RequestBody>) -> Response<ResponseBody> {
    let json = |value: Value| {
        let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
        response.body(full(value.to_string())).unwrap()
    };
    let watches = request
        .uri()
        .query()
        .unwrap_or_default()
        .contains("watch=true");
    match request.uri().path() {
        "/api/v1/namespaces/default/pods" if watches => {
            let (sender, body) = channel();
            tokio::spawn(async move {
                for name in ["a", "b"] {
                    let event = json!({ "type": "ADDED", "object": pod(name) });
                    sender.send(format!("{event}\n")).await.ok();
                }
                sender.closed().await;
            });
            Response::new(body)
        }
        "/api/v1/namespaces/default/pods" => json(json!({
            "apiVersion": "v1",
            "kind": "PodList",
            "metadata": { "resourceVersion": "1" },
            "items": [pod("a"), pod("b")],
        })),
        "/api/v1/namespaces/default/pods/a/exec" => exec(request),
        _ => {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    }
}

/// exec over v5.channel.k8s.io: echoes one line from standard input to standard output, then sends the status on
/// channel 3.
fn exec(mut request: Request<RequestBody>) -> Response<ResponseBody> {
    let key = request.headers()[header::SEC_WEBSOCKET_KEY]
        .to_str()
        .unwrap();
    // RFC 6455 §4.2.2.
    let accept = digest(
        &SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    );
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_ACCEPT, STANDARD.encode(accept))
        .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io");
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(client.await.unwrap());
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            line.extend(frame_of_client(&mut stream).await?.split_off(1));
        }
        line.insert(0, 1);
        stream.write_all(&frame(2, &line)).await?;
        let status = json!({ "metadata": {}, "status": "Success" }).to_string();
        stream
            .write_all(&frame(2, format!("\u{3}{status}").as_bytes()))
            .await?;
        stream.write_all(&frame(8, &1000_u16.to_be_bytes())).await?;
        stream.shutdown().await
    });
    response.body(empty()).unwrap()
}

/// Builds a short server frame (RFC 6455 §5.2).
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126, "a short frame");
    [&[0x80 | opcode, length], payload].concat()
}

/// Reads a short client frame and returns its unmasked payload.
async fn frame_of_client(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = [0; 6];
    stream.read_exact(&mut head).await?;
    let mut payload = vec![0; usize::from(head[1] & 0x7f)];
    stream.read_exact(&mut payload).await?;
    for (byte, mask) in payload.iter_mut().zip(head[2..].iter().cycle()) {
        *byte ^= mask;
    }
    Ok(payload)
}

fn pods(world: &World, proxy: &Proxy) -> Api<Pod> {
    let url = format!("https://{}", proxy.address()).parse().unwrap();
    let mut config = Config::new(url);
    config.root_cert = Some(vec![world.public_ca.der().to_vec()]);
    config.tls_server_name = Some(HOST.to_owned());
    config.auth_info.token = Some("t".to_owned().into());
    Api::namespaced(kube::Client::try_from(config).unwrap(), "default")
}

/// Case 58. kube-rs needs HTTP/1.1, a `Connection` of exactly `Upgrade`, and unchanged frames.
#[tokio::test]
async fn kube_rs_lists_watches_and_executes() {
    let world = World::new();
    let upstream = world.apiserver().http(apiserver).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let pods = pods(&world, &proxy);

    let list = within("a list", pods.list(&ListParams::default()))
        .await
        .unwrap();
    assert_eq!(
        list.iter().map(|pod| pod.name_any()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    let request = upstream.next_request().await;
    assert_eq!(request.header("authorization"), Some("Bearer t"));

    let mut watch = pods
        .watch(&WatchParams::default(), "1")
        .await
        .unwrap()
        .boxed();
    for name in ["a", "b"] {
        let event = within("an event", watch.try_next()).await.unwrap();
        assert!(
            matches!(&event, Some(WatchEvent::Added(pod)) if pod.name_any() == name),
            "{event:?}"
        );
    }

    let attach = AttachParams::default().stdin(true).stderr(false);
    let mut exec = within("an exec", pods.exec("a", ["cat"], &attach))
        .await
        .unwrap();
    exec.stdin().unwrap().write_all(b"hello\n").await.unwrap();
    let mut output = String::new();
    let status = exec.take_status().unwrap();
    within(
        "the output",
        exec.stdout().unwrap().read_to_string(&mut output),
    )
    .await
    .unwrap();
    assert_eq!(output, "hello\n");
    let status = within("the status", status).await.unwrap();
    assert_eq!(status.status.as_deref(), Some("Success"));
}

/// Case 21. The head arrives before the first line, and each small line arrives before the next one is written.
#[tokio::test]
async fn each_line_of_a_followed_log_arrives_at_once() {
    let world = World::new();
    let (tell, mut logs) = mpsc::unbounded_channel::<BodySender>();
    let upstream = world
        .apiserver()
        .http(move |_| {
            let (sender, body) = channel();
            tell.send(sender).unwrap();
            async { Response::new(body) }
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let target = "/api/v1/namespaces/default/pods/a/log?follow=true";

    let mut http1 = proxy.client().http1().await;
    http1
        .send(format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    assert_eq!(http1.head().await.unwrap().status, 200);
    let log = logs.recv().await.unwrap();
    for number in 0..20 {
        log.send(format!("line {number}\n")).await.unwrap();
        assert_eq!(http1.chunk().await.unwrap(), format!("line {number}\n"));
    }
    drop(log);
    assert_eq!(http1.chunk().await.unwrap(), "", "a regular end");

    let http2 = proxy.client().http2().await;
    let mut body = http2
        .open(&format!("https://{HOST}{target}"))
        .await
        .unwrap()
        .into_body();
    let log = logs.recv().await.unwrap();
    for number in 0..20 {
        log.send(format!("line {number}\n")).await.unwrap();
        let line = within("a line", body.data()).await.unwrap().unwrap();
        body.flow_control().release_capacity(line.len()).unwrap();
        assert_eq!(line, format!("line {number}\n"));
    }
    drop(log);
    while let Some(end) = within("the end", body.data()).await {
        assert_eq!(end.unwrap(), "", "a regular end");
    }
}
