//! How responses end when their apiserver dies: a watch between two events, like a watch that the apiserver ends, so
//! that a reflector resumes instead of listing everything again. All else is aborted, because it must not look
//! complete.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use h2::Reason;
use standin::{
    client::whole,
    frames::{FrameConnection, kind},
    gzip, tcp,
    upstream::{Builder, Raw},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};
use tokio_rustls::server::TlsStream;

use crate::proxy::{HOST, Proxy, World, data};

const WATCH: &str = "/api/v1/pods?watch=true";
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf;stream=watch";
const CBOR: &str = "application/cbor-seq";

/// A response of which the apiserver sends a part.
#[derive(Debug, Clone)]
struct Part {
    target: &'static str,
    fields: Vec<(&'static str, &'static str)>,
    sent: Vec<u8>,
    /// Whether the response ends in order when the apiserver dies now.
    is_between_events: bool,
}

fn part(target: &'static str, content_type: &'static str, sent: impl AsRef<[u8]>) -> Part {
    Part {
        target,
        fields: vec![(":status", "200"), ("content-type", content_type)],
        sent: sent.as_ref().to_vec(),
        is_between_events: false,
    }
}

impl Part {
    fn between_events(mut self) -> Self {
        self.is_between_events = true;
        self
    }

    fn has_length(&self) -> bool {
        let mut names = self.fields.iter().map(|(name, _)| *name);
        names.any(|name| name == "content-length")
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.fields.retain(|(known, _)| *known != name);
        self.fields.insert(0, (name, value));
        self
    }
}

fn parts() -> Vec<Part> {
    let member = gzip::members()[0];
    let compressed = |sent: &[u8]| part(WATCH, PROTOBUF, sent).with("content-encoding", "gzip");
    vec![
        part(WATCH, JSON, "{}\n").between_events(),
        part(WATCH, JSON, "").between_events(),
        part(WATCH, JSON, "{}\n{"),
        part(WATCH, PROTOBUF, "\0\0\0\x02k8").between_events(),
        part(WATCH, PROTOBUF, "\0\0\0\x02k8\0\0"),
        part(WATCH, CBOR, b"\xa1\x61a\x01").between_events(),
        part(WATCH, CBOR, b"\xa1\x61a"),
        compressed(member).between_events(),
        compressed(&member[..member.len() - 1]),
        // Not watches, and watches whose events the proxy cannot see.
        part("/api/v1/pods", JSON, "{}\n"),
        part("/api/v1/pods?watch=false", JSON, "{}\n"),
        part(
            "/api/v1/namespaces/a/services/b/proxy/?watch=true",
            JSON,
            "{}\n",
        ),
        part(
            "/api/v1/namespaces/a/pods/b/log?follow=true",
            "text/plain",
            "line\n",
        ),
        part(WATCH, "application/yaml", "a: 1\n"),
        part(WATCH, JSON, "{}\n").with(":status", "500"),
        part(WATCH, JSON, "{}\n").with("content-length", "100"),
        part(WATCH, JSON, "{}\n").with("content-encoding", "zstd"),
    ]
}

/// What happens after the part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// The connection is closed without `close_notify`, as by the kernel of a process that was killed.
    Close,
    CloseNotify,
    TcpReset,
    GoAway,
    /// `RST_STREAM`: the apiserver is alive and aborts this response.
    ResetStream(Reason),
    /// Bytes that are no chunk.
    MalformedChunk,
}

impl Failure {
    fn is_death(self) -> bool {
        !matches!(self, Self::ResetStream(_) | Self::MalformedChunk)
    }
}

const OVER_HTTP1: [Failure; 4] = [
    Failure::Close,
    Failure::CloseNotify,
    Failure::TcpReset,
    Failure::MalformedChunk,
];
const OVER_HTTP2: [Failure; 7] = [
    Failure::Close,
    Failure::CloseNotify,
    Failure::TcpReset,
    Failure::GoAway,
    Failure::ResetStream(Reason::INTERNAL_ERROR),
    Failure::ResetStream(Reason::NO_ERROR),
    Failure::ResetStream(Reason::CANCEL),
];

/// What the apiserver does with the next request, and when it fails.
#[derive(Debug, Clone)]
struct Script {
    next: Arc<Mutex<(Part, Failure)>>,
    fail: Arc<Notify>,
}

impl Script {
    fn new() -> Self {
        Self {
            next: Arc::new(Mutex::new((part(WATCH, JSON, ""), Failure::Close))),
            fail: Arc::default(),
        }
    }

    fn next(&self) -> (Part, Failure) {
        self.next.lock().unwrap().clone()
    }

    async fn over_http1(self, raw: Raw) {
        let mut tls = raw.stream;
        let mut head = [0; 4096];
        if tls.read(&mut head).await.is_ok_and(|read| read > 0) {
            let (part, failure) = self.next();
            let Part { fields, sent, .. } = &part;
            let mut response = format!("HTTP/1.1 {} Status\r\n", fields_of(fields, true)[0].1);
            for (name, value) in fields_of(fields, false) {
                response += &format!("{name}: {value}\r\n");
            }
            let mut bytes = response.into_bytes();
            if part.has_length() {
                bytes.extend([&b"\r\n"[..], sent].concat());
            } else {
                bytes.extend(b"transfer-encoding: chunked\r\n\r\n");
                if !sent.is_empty() {
                    bytes.extend(format!("{:x}\r\n", sent.len()).bytes());
                    bytes.extend([sent, &b"\r\n"[..]].concat());
                }
            }
            tls.write_all(&bytes).await.unwrap();
            tls.flush().await.unwrap();
            self.fail.notified().await;
            if failure == Failure::MalformedChunk {
                tls.write_all(b"chunk\r\n").await.unwrap();
                tls.flush().await.unwrap();
                tls.read_to_end(&mut Vec::new()).await.ok();
            } else {
                die(tls, failure).await;
            }
        }
    }

    async fn over_http2(self, raw: Raw) {
        let mut wire = FrameConnection::server(raw.stream, &[]).await.unwrap();
        let head = wire.expect(kind::HEADERS).await.unwrap();
        let (Part { fields, sent, .. }, failure) = self.next();
        let fields = [fields_of(&fields, true), fields_of(&fields, false)].concat();
        wire.headers(head.stream, &fields, 0).await.unwrap();
        if !sent.is_empty() {
            wire.data(head.stream, sent, 0).await.unwrap();
        }
        self.fail.notified().await;
        if let Failure::ResetStream(reason) = failure {
            wire.reset(head.stream, reason.into()).await.unwrap();
            drop(wire.expect(kind::GOAWAY).await);
            return;
        }
        if failure == Failure::GoAway {
            wire.goaway(head.stream, 0).await.unwrap();
        }
        die(wire.into_inner(), failure).await;
    }
}

/// The pseudo-fields, or the others.
fn fields_of(
    fields: &[(&'static str, &'static str)],
    pseudo: bool,
) -> Vec<(&'static str, &'static str)> {
    let wanted = |field: &&(&str, &str)| field.0.starts_with(':') == pseudo;
    fields.iter().filter(wanted).copied().collect()
}

async fn die(mut tls: TlsStream<TcpStream>, failure: Failure) {
    match failure {
        Failure::CloseNotify | Failure::GoAway => tls.shutdown().await.unwrap(),
        Failure::TcpReset => tcp::reset(tls.into_inner().0),
        Failure::Close | Failure::ResetStream(_) | Failure::MalformedChunk => {}
    }
}

/// Sends one request per part and failure with `receive`, which returns whether the response ended in order.
async fn assert_ends(
    apiserver: impl FnOnce(Builder, Script) -> Builder,
    failures: &[Failure],
    receive: impl AsyncFn(&Proxy, &Part, &Notify) -> bool,
) {
    let world = World::new();
    let script = Script::new();
    let upstream = apiserver(world.apiserver(), script.clone()).start().await;
    let proxy = world.proxy(upstream.address()).start();
    for part in parts() {
        for failure in failures {
            // A body of a known length has no chunks.
            if *failure == Failure::MalformedChunk && part.has_length() {
                continue;
            }
            *script.next.lock().unwrap() = (part.clone(), *failure);
            let is_complete = receive(&proxy, &part, &script.fail).await;
            let expected = part.is_between_events && failure.is_death();
            assert_eq!(is_complete, expected, "{failure:?} after {part:?}");
        }
    }
}

fn http1_apiserver(builder: Builder, script: Script) -> Builder {
    let builder = builder.alpn(&["http/1.1"]);
    builder.raw(move |raw| script.clone().over_http1(raw))
}

fn http2_apiserver(builder: Builder, script: Script) -> Builder {
    builder.raw(move |raw| script.clone().over_http2(raw))
}

async fn receive_over_http1(proxy: &Proxy, part: &Part, fail: &Notify) -> bool {
    let mut client = proxy.client().http1().await;
    let target = part.target;
    client
        .send(format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    let head = client.head().await.unwrap();
    let is_chunked = !part.has_length();
    if is_chunked && !part.sent.is_empty() {
        assert_eq!(client.chunk().await.unwrap(), part.sent);
    }
    fail.notify_one();
    if is_chunked {
        // The last chunk, or the end of the connection without it.
        return client.chunk().await.is_ok_and(|last| last.is_empty());
    }
    client.body(&head).await.is_ok()
}

async fn receive_over_http2(proxy: &Proxy, part: &Part, fail: &Notify) -> bool {
    let client = proxy.client().http2().await;
    let url = format!("https://{HOST}{}", part.target);
    let mut response = client.open(&url).await.unwrap();
    if !part.sent.is_empty() {
        assert_eq!(data(&mut response).await.unwrap(), part.sent);
    }
    fail.notify_one();
    match whole(response).await {
        Ok(rest) => {
            assert_eq!(rest.body, "");
            true
        }
        Err(error) => {
            assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
            false
        }
    }
}

/// Cases 24, 57.
#[tokio::test]
async fn only_watch_between_events_ends_in_order_over_http1() {
    assert_ends(http1_apiserver, &OVER_HTTP1, receive_over_http1).await;
}

/// Cases 24, 57.
#[tokio::test]
async fn only_watch_between_events_ends_in_order_over_http2() {
    assert_ends(http2_apiserver, &OVER_HTTP2, receive_over_http2).await;
}

/// Cases 24, 57. The client speaks HTTP/2, the apiserver only HTTP/1.1.
#[tokio::test]
async fn only_watch_between_events_ends_in_order_over_both() {
    assert_ends(http1_apiserver, &OVER_HTTP1, receive_over_http2).await;
}

/// Case 7. The apiserver answers no ping.
#[tokio::test]
async fn watch_of_a_hanging_apiserver_ends_in_order() {
    let world = World::new();
    let script = Script::new();
    *script.next.lock().unwrap() = (part(WATCH, JSON, "{}\n"), Failure::Close);
    let upstream = http2_apiserver(world.apiserver(), script);
    let upstream = upstream.start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| {
            timeouts.upstream_ping_interval = Duration::from_millis(100);
            timeouts.upstream_ping_timeout = Duration::from_millis(500);
        })
        .start();
    let client = proxy.client().http2().await;
    let url = format!("https://{HOST}{WATCH}");
    let response = client.open(&url).await.unwrap();
    assert_eq!(whole(response).await.unwrap().body, "{}\n");
}
