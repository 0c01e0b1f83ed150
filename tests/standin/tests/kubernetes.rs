//! The small cluster responds as kubectl expects from a kube-apiserver.

use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use standin::{
    client::{Client, Http1, TlsConnection},
    kubernetes::{Goaway, Kubernetes, Pod},
    pki::Ca,
    upstream::Upstream,
    within,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const HOST: &str = "k8s.test";
const TOKEN: &str = "Authorization: Bearer secret\r\n";

struct World {
    ca: Ca,
    cluster: Kubernetes,
    apiserver: Upstream,
}

impl World {
    async fn new(change: impl FnOnce(Kubernetes) -> Kubernetes) -> Self {
        let ca = Ca::new("cluster");
        let cluster = change(Kubernetes::new().token("secret", "jane", &["dev"]));
        cluster.apply(Pod::running("web-0"));
        let apiserver = Upstream::builder(ca.server(&[HOST]))
            .kubernetes(&cluster)
            .start()
            .await;
        Self {
            ca,
            cluster,
            apiserver,
        }
    }

    fn client(&self) -> Client {
        Client::new(self.apiserver.address())
            .trust(&self.ca)
            .sni(HOST)
    }

    async fn http1(&self) -> Http1<TlsConnection> {
        self.client().http1().await
    }
}

async fn json(client: &mut Http1<TlsConnection>, target: &str, lines: &str) -> Value {
    let response = client.get(HOST, target, &format!("{TOKEN}{lines}")).await;
    assert_eq!(response.status, 200, "{target}: {}", response.text());
    serde_json::from_slice(&response.body).unwrap()
}

#[tokio::test]
async fn lists_pods_as_objects_and_as_a_table() {
    let world = World::new(|cluster| cluster).await;
    world
        .cluster
        .apply(Pod::running("job").in_namespace("other").phase("Succeeded"));
    let mut client = world.http1().await;
    let list = json(&mut client, "/api/v1/namespaces/default/pods", "").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["metadata"]["name"], "web-0");
    let accept = "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json\r\n";
    let table = json(&mut client, "/api/v1/pods", accept).await;
    let cells = |row: usize| &table["rows"][row]["cells"];
    assert_eq!(
        (&cells(0)[0], &cells(0)[2]),
        (&"web-0".into(), &"Running".into())
    );
    assert_eq!(
        (&cells(1)[0], &cells(1)[2]),
        (&"job".into(), &"Completed".into())
    );
}

#[tokio::test]
async fn watch_sends_changes_and_ends_at_its_timeout() {
    let world = World::new(|cluster| cluster.bookmark_interval(Duration::from_millis(20))).await;
    let mut client = world.http1().await;
    let target = "/api/v1/namespaces/default/pods?watch=1&timeoutSeconds=1";
    client
        .send(format!(
            "GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{TOKEN}\r\n"
        ))
        .await;
    client.head().await.unwrap();
    let mut kinds = Vec::new();
    let event = async |client: &mut Http1<TlsConnection>| client.chunk().await.unwrap();
    let kind = |chunk: &[u8]| {
        serde_json::from_slice::<Value>(chunk).unwrap()["type"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    kinds.push(kind(&event(&mut client).await));
    world.cluster.apply(Pod::running("web-0").phase("Failed"));
    kinds.push(kind(&event(&mut client).await));
    world.cluster.delete("default", "web-0");
    kinds.push(kind(&event(&mut client).await));
    assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED"]);
    assert!(
        event(&mut client).await.is_empty(),
        "the last chunk ends the watch"
    );
    client.send(format!("GET {target}&allowWatchBookmarks=true&resourceVersion=1 HTTP/1.1\r\nHost: {HOST}\r\n{TOKEN}\r\n")).await;
    client.head().await.unwrap();
    assert_eq!(kind(&event(&mut client).await), "BOOKMARK");
}

#[tokio::test]
async fn followed_log_sends_new_lines() {
    let world = World::new(|cluster| cluster.log_interval(Duration::from_millis(5))).await;
    let mut client = world.http1().await;
    let target = "/api/v1/namespaces/default/pods/web-0/log?follow=true&tailLines=1";
    client
        .send(format!(
            "GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{TOKEN}\r\n"
        ))
        .await;
    assert_eq!(
        client.head().await.unwrap().header("content-type"),
        Some("text/plain")
    );
    for number in 5..8 {
        assert_eq!(
            client.chunk().await.unwrap(),
            format!("web-0: line {number}\n")
        );
    }
    drop(client);
    world.apiserver.wait_for_open_responses(0).await;
}

#[tokio::test]
async fn unauthenticated_request_causes_goaway_over_http2() {
    for (goaway, path, status) in [
        (Goaway::WhenUnauthenticated, "/version", StatusCode::OK),
        (Goaway::WhenUnauthenticated, "/api", StatusCode::FORBIDDEN),
        (Goaway::Never, "/version", StatusCode::OK),
    ] {
        let world = World::new(|cluster| cluster.goaway(goaway)).await;
        let client = world.client().http2().await;
        assert_eq!(
            client
                .get(&format!("https://{HOST}{path}"))
                .await
                .unwrap()
                .status,
            status
        );
        if goaway == Goaway::WhenUnauthenticated {
            assert_eq!(client.goaway().await, h2::Reason::NO_ERROR);
            client.end().await.unwrap();
        } else {
            assert_eq!(
                client
                    .get(&format!("https://{HOST}{path}"))
                    .await
                    .unwrap()
                    .status,
                status
            );
        }
    }
}

#[tokio::test]
async fn wrong_token_gets_401_and_keeps_http1_connection_open() {
    let world = World::new(|cluster| cluster).await;
    let mut client = world.http1().await;
    for _ in 0..2 {
        let response = client
            .get(
                HOST,
                "/api",
                "Authorization: Bearer wrong\r\nAudit-ID: mine\r\n",
            )
            .await;
        assert_eq!(
            (response.status, response.head.header("audit-id")),
            (401, Some("mine"))
        );
        assert!(response.text().contains("\"kind\":\"Status\""));
    }
}

#[tokio::test]
async fn self_subject_review_shows_user_and_impersonated_user() {
    let world = World::new(|cluster| cluster).await;
    let mut client = world.http1().await;
    for (lines, user, groups) in [
        ("", "jane", ["dev", "system:authenticated"]),
        (
            "Impersonate-User: bob\r\nImpersonate-Group: ops\r\n",
            "bob",
            ["ops", "system:authenticated"],
        ),
    ] {
        let target = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        client.send(format!("POST {target} HTTP/1.1\r\nHost: {HOST}\r\n{TOKEN}{lines}Content-Length: 2\r\n\r\n{{}}")).await;
        let review: Value = serde_json::from_slice(&client.response().await.body).unwrap();
        let info = &review["status"]["userInfo"];
        assert_eq!(
            (&info["username"], &info["groups"]),
            (&user.into(), &groups.into_iter().collect())
        );
    }
}

/// A masked binary message.
fn message(payload: &[u8]) -> Vec<u8> {
    let mask = [7, 1, 9, 3];
    let mut bytes = vec![0x82, 0x80 | u8::try_from(payload.len()).unwrap()];
    bytes.extend(mask);
    bytes.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

async fn upgrade(world: &World, query: &str, protocol: &str) -> TlsConnection {
    let mut client = world.http1().await;
    let target = format!("/api/v1/namespaces/default/pods/web-0/exec?{query}");
    client
        .send(format!(
            "GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{TOKEN}Connection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        ))
        .await;
    let head = client.head().await.unwrap();
    assert_eq!(head.status, 101);
    assert_eq!(head.lines("connection"), ["Upgrade"]);
    assert_eq!(
        head.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(
        head.header("sec-websocket-protocol"),
        Some("v5.channel.k8s.io")
    );
    let mut tls = client.into_parts().0;
    let mut first = [0; 3];
    within("the first message", tls.read_exact(&mut first))
        .await
        .unwrap();
    assert_eq!(first, [0x82, 1, 1], "the first message is empty, on stdout");
    tls
}

#[tokio::test]
async fn exec_passes_stdin_and_the_end_of_stdin() {
    let world = World::new(|cluster| cluster).await;
    let mut tls = upgrade(
        &world,
        "command=cat&stdin=true&stdout=true",
        "v4.channel.k8s.io,v5.channel.k8s.io",
    )
    .await;
    tls.write_all(&[message(b"\0hello"), message(&[255, 0])].concat())
        .await
        .unwrap();
    let mut all = Vec::new();
    within("the end", tls.read_to_end(&mut all)).await.unwrap();
    let status = br#"{"metadata":{},"status":"Success"}"#;
    let expected = [
        b"\x82\x06\x01hello",
        &[0x82, u8::try_from(status.len() + 1).unwrap(), 3][..],
        status,
        &[0x88, 2, 3, 232],
    ];
    assert_eq!(
        String::from_utf8_lossy(&all),
        String::from_utf8_lossy(&expected.concat())
    );
}

#[tokio::test]
async fn exec_reports_the_exit_code() {
    let world = World::new(|cluster| cluster).await;
    let mut tls = upgrade(
        &world,
        "command=sh&command=-c&command=exit+3&stdout=true",
        "v5.channel.k8s.io",
    )
    .await;
    let mut all = Vec::new();
    within("the end", tls.read_to_end(&mut all)).await.unwrap();
    let all = String::from_utf8_lossy(&all);
    let (_, causes) = all.split_once(r#""causes":[{"#).unwrap();
    let (cause, _) = causes.split_once("}]").unwrap();
    // Which of the two comes first depends on the features of `serde_json` in this build.
    assert!(cause.contains(r#""message":"3""#) && cause.contains(r#""reason":"ExitCode""#));
}

#[tokio::test]
async fn exec_without_an_upgrade_gets_400() {
    let world = World::new(|cluster| cluster).await;
    let client = world.client().http2().await;
    let url = format!("https://{HOST}/api/v1/namespaces/default/pods/web-0/exec?command=ls");
    let request = http::Request::post(url)
        .header("authorization", "Bearer secret")
        .body(Default::default());
    let response = client.request(request.unwrap()).await.unwrap();
    assert_eq!(response.status, StatusCode::BAD_REQUEST);
    assert!(response.text().contains("Upgrade request required"));
}

/// Sends one request with the token, and returns status and body.
async fn send(world: &World, method: &str, target: &str, lines: &str, body: &str) -> (u16, Value) {
    let mut client = world.http1().await;
    let length = body.len();
    client
        .send(format!(
            "{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n{TOKEN}{lines}Content-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    let response = client.response().await;
    (
        response.status,
        serde_json::from_slice(&response.body).unwrap(),
    )
}

const PODS: &str = "/api/v1/namespaces/default/pods";
const MERGE: &str = "Content-Type: application/merge-patch+json\r\n";

#[tokio::test]
async fn selectors_choose_pods_of_a_list() {
    let world = World::new(|cluster| cluster).await;
    world.cluster.apply(Pod::running("db-0").label("app", "db"));
    for (query, names) in [
        ("labelSelector=app%3Ddb", &["db-0"][..]),
        ("labelSelector=app%21%3Ddb", &["web-0"]),
        ("fieldSelector=metadata.name%3Dweb-0", &["web-0"]),
        ("fieldSelector=status.phase%3DFailed", &[]),
    ] {
        let (status, list) = send(&world, "GET", &format!("{PODS}?{query}"), "", "").await;
        assert_eq!(status, 200, "{list}");
        let items = list["items"].as_array().unwrap();
        let found: Vec<_> = items
            .iter()
            .map(|pod| pod["metadata"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(found, names, "{query}");
    }
}

#[tokio::test]
async fn unknown_selectors_and_log_options_get_400() {
    let world = World::new(|cluster| cluster).await;
    for (target, named) in [
        (
            "?fieldSelector=spec.restartPolicy%3DAlways",
            "spec.restartPolicy",
        ),
        ("?labelSelector=app+near+x", "app near x"),
        ("/web-0/log?previous=true", "previous terminated container"),
        ("/web-0/log?sinceTime=2026-01-01T00:00:00Z", "sinceTime"),
        ("/web-0/log?limitBytes=1", "limitBytes"),
        ("/web-0/log?tailLines=x", "tailLines"),
        ("/web-0/log?container=absent", "absent"),
        ("/web-0/exec?container=absent&command=ls", "absent"),
    ] {
        let (status, body) = send(&world, "GET", &format!("{PODS}{target}"), "", "").await;
        assert_eq!(status, 400, "{target}: {body}");
        assert!(body["message"].as_str().unwrap().contains(named), "{body}");
    }
}

#[tokio::test]
async fn watch_with_a_selector_sees_labels_come_and_go() {
    let world = World::new(|cluster| cluster).await;
    let mut client = world.http1().await;
    let target = format!("{PODS}?watch=1&labelSelector=tier");
    client
        .send(format!(
            "GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{TOKEN}\r\n"
        ))
        .await;
    client.head().await.unwrap();
    let path = format!("{PODS}/web-0");
    for (labels, kind) in [
        (r#"{"tier":"front"}"#, "ADDED"),
        (r#"{"tier":"back"}"#, "MODIFIED"),
        (r#"{"tier":null}"#, "DELETED"),
    ] {
        let patch = format!(r#"{{"metadata":{{"labels":{labels}}}}}"#);
        let (status, pod) = send(&world, "PATCH", &path, MERGE, &patch).await;
        assert_eq!(status, 200, "{pod}");
        let event: Value = serde_json::from_slice(&client.chunk().await.unwrap()).unwrap();
        assert_eq!(event["type"], kind);
    }
}

#[tokio::test]
async fn patch_changes_metadata_and_images_and_nothing_else() {
    let world = World::new(|cluster| cluster).await;
    let path = format!("{PODS}/web-0");
    let strategic = "Content-Type: application/strategic-merge-patch+json\r\n";
    let image = r#"{"spec":{"containers":[{"name":"main","image":"new"}]}}"#;
    let (status, pod) = send(&world, "PATCH", &path, strategic, image).await;
    assert_eq!(
        (status, &pod["spec"]["containers"][0]["image"]),
        (200, &"new".into())
    );
    let version = pod["metadata"]["resourceVersion"].clone();
    for (lines, body, status) in [
        (strategic, r#"{"spec":{"hostNetwork":true}}"#, 422),
        (MERGE, r#"{"metadata":{"resourceVersion":"1"}}"#, 409),
        (MERGE, r#"{"metadata":{"name":"other"}}"#, 400),
        (MERGE, r#"{"metadata":{"labels":{"a":1}}}"#, 400),
        (MERGE, "{", 400),
        ("Content-Type: application/json-patch+json\r\n", "[]", 415),
        ("Content-Type: application/apply-patch+yaml\r\n", "{}", 415),
    ] {
        let (got, message) = send(&world, "PATCH", &path, lines, body).await;
        assert_eq!(got, status, "{body}: {message}");
        assert_eq!(message["status"], "Failure");
    }
    let (_, pod) = send(&world, "GET", &path, "", "").await;
    assert_eq!(
        pod["metadata"]["resourceVersion"], version,
        "a refused patch changes nothing"
    );
}

#[tokio::test]
async fn dry_run_changes_nothing() {
    let world = World::new(|cluster| cluster).await;
    let before = send(&world, "GET", PODS, "", "").await;
    let pod = r#"{"metadata":{"name":"new"},"spec":{"containers":[{"name":"a","image":"b"}]}}"#;
    let path = format!("{PODS}/web-0?dryRun=All");
    for (method, target, body, status) in [
        ("POST", format!("{PODS}?dryRun=All"), pod, 201),
        (
            "PATCH",
            path.clone(),
            r#"{"metadata":{"labels":{"a":"b"}}}"#,
            200,
        ),
        ("DELETE", path, "", 200),
    ] {
        let (got, answer) = send(&world, method, &target, MERGE, body).await;
        assert_eq!(got, status, "{method}: {answer}");
    }
    assert_eq!(send(&world, "GET", PODS, "", "").await, before);
}

#[tokio::test]
async fn created_pod_needs_a_name_a_namespace_and_an_image() {
    let world = World::new(|cluster| cluster).await;
    let good = r#"{"metadata":{"name":"new","labels":{"a":"b"}},"spec":{"containers":[{"name":"a","image":"b"}]}}"#;
    for (namespace, body, status) in [
        ("default", r#"{"spec":{}}"#, 400),
        ("default", r#"{"metadata":{"name":"new"},"spec":{}}"#, 422),
        (
            "default",
            r#"{"metadata":{"name":"new"},"spec":{"containers":[{"name":"a"}]}}"#,
            422,
        ),
        ("absent", good, 404),
        ("default", good, 201),
        ("default", good, 409),
    ] {
        let target = format!("/api/v1/namespaces/{namespace}/pods");
        let (got, answer) = send(&world, "POST", &target, "", body).await;
        assert_eq!(got, status, "{body}: {answer}");
    }
    let (_, pod) = send(&world, "GET", &format!("{PODS}/new"), "", "").await;
    assert_eq!(pod["metadata"]["labels"]["a"], "b");
    assert_eq!(pod["status"]["containerStatuses"][0]["name"], "a");
}

#[tokio::test]
async fn kept_pod_returns_with_another_uid() {
    let world = World::new(|cluster| cluster).await;
    world.cluster.keep(Pod::running("kept"));
    let path = format!("{PODS}/kept");
    let uid = async || send(&world, "GET", &path, "", "").await.1["metadata"]["uid"].clone();
    let before = uid().await;
    let (status, deleted) = send(&world, "DELETE", &path, "", "").await;
    assert_eq!((status, &deleted["details"]["uid"]), (200, &before));
    assert_ne!(uid().await, before, "kubectl waits until the uid changes");
}

#[tokio::test]
async fn unsupported_request_names_what_is_supported() {
    let world = World::new(|cluster| cluster).await;
    for (method, target) in [
        ("GET", format!("{PODS}/web-0/attach")),
        ("POST", format!("{PODS}/web-0/portforward")),
        ("PATCH", format!("{PODS}/web-0/ephemeralcontainers")),
        (
            "POST",
            "/apis/apps/v1/namespaces/default/deployments".to_owned(),
        ),
    ] {
        let (status, answer) = send(&world, method, &target, MERGE, "{}").await;
        assert_eq!(status, 405, "{answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(
            message.contains(&target) && message.contains("get, describe, logs"),
            "{message}"
        );
    }
    let (status, answer) = send(&world, "GET", &format!("{PODS}/absent"), "", "").await;
    assert_eq!(
        (status, &answer["details"]["name"]),
        (404, &"absent".into())
    );
}

#[tokio::test]
async fn timestamps_begin_each_line_of_a_log() {
    let world = World::new(|cluster| cluster).await;
    let mut client = world.http1().await;
    let target = format!("{PODS}/web-0/log?timestamps=true");
    let text = client.get(HOST, &target, TOKEN).await.text();
    for (number, line) in text.lines().enumerate() {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{line}");
        assert_eq!(rest, format!("web-0: line {}", number + 1));
    }
    assert_eq!(text.lines().count(), 5);
    let text = client
        .get(HOST, &format!("{PODS}/web-0/log?sinceSeconds=3600"), TOKEN)
        .await;
    assert_eq!(text.text().lines().count(), 5);
}
