//! What the apiserver sees of a request, and the client of a response.

use crate::proxy::{HOST, World};

#[tokio::test]
async fn forwards_a_request_over_http1() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");
    let request = upstream.next_request().await;
    assert_eq!(request.target, "/version");
}

#[tokio::test]
async fn forwards_a_request_over_http2() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    assert_eq!(
        client
            .get("https://kube.test/version")
            .await
            .unwrap()
            .text(),
        "ok"
    );
    let request = upstream.next_request().await;
    assert_eq!(
        (request.target.as_str(), request.authority.as_deref()),
        ("/version", Some(HOST))
    );
}
