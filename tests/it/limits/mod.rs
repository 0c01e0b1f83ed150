//! The size limits of a request, over both protocols: a request at the limit passes; above it, the response names
//! the setting.

pub(crate) mod clients;
mod deadlines;
mod floods;
mod heads;
mod places;

use std::num::NonZeroUsize;

use bytes::Bytes;
use http::{Request, StatusCode};
use kube_tls_proxy::config::Limits;

use crate::{
    proxy::{HOST, Proxy, World},
    responses::{BOTH, ClientResponse, Protocol},
};

const TOO_LARGE: &str = "RequestHeaderFieldsTooLarge";

fn small(limits: &mut Limits) {
    limits.header_fields = 20;
    limits.header_bytes = 2000;
    limits.uri_bytes = 200;
}

/// The bytes of the header fields that [`Proxy::request`] adds itself.
fn host_bytes(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Http1 => "host".len() + HOST.len(),
        Protocol::Http2 => 0,
    }
}

async fn with_fields(proxy: &Proxy, protocol: Protocol, count: usize) -> ClientResponse {
    let own = usize::from(protocol == Protocol::Http1);
    let fields = vec![("x", "y"); count - own];
    proxy.request(protocol, "GET", "/", &fields, b"").await
}

/// Case 26. Also a head with more fields than the parser of HTTP/1.1 takes.
#[tokio::test]
async fn header_fields() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).limits(small).start();
    for protocol in BOTH {
        assert_eq!(with_fields(&proxy, protocol, 20).await.code, 200);
        for count in [21, 22, 40] {
            let response = with_fields(&proxy, protocol, count).await;
            let message = response.assert_status(431, TOO_LARGE);
            assert!(
                message.contains("more than 20 header fields")
                    && message.ends_with("limits.headerFields"),
                "{protocol:?} {count}: {message}"
            );
        }
    }
    let response = with_fields(&proxy, Protocol::Http1, 400).await;
    assert!(
        response
            .assert_status(431, TOO_LARGE)
            .ends_with("limits.headerFields")
    );
    assert_eq!(upstream.requests().len(), 2);
}

/// Case 26. Names and values count. Over HTTP/1.1 the client also gets a `Status` for a head that the proxy does not
/// buffer.
#[tokio::test]
async fn header_bytes() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).limits(small).start();
    for protocol in BOTH {
        let room = 2000 - host_bytes(protocol) - 1;
        let value = "v".repeat(100_000);
        for (length, code) in [(room, 200), (room + 1, 431), (room + 200, 431)] {
            let fields = [("x", &value[..length])];
            let response = proxy.request(protocol, "GET", "/", &fields, b"").await;
            assert_eq!(response.code, code, "{protocol:?} {length}");
            if code == 431 {
                let message = response.assert_status(431, TOO_LARGE);
                assert!(
                    message.contains("2000") && message.ends_with("limits.headerBytes"),
                    "{message}"
                );
            }
        }
    }
    for length in [16_000, 100_000] {
        let value = "v".repeat(length);
        let response = proxy
            .request(Protocol::Http1, "GET", "/", &[("x", &value)], b"")
            .await;
        let message = response.assert_status(431, TOO_LARGE);
        assert!(message.ends_with("limits.headerBytes"), "{message}");
    }
    assert_eq!(upstream.requests().len(), 2);
}

/// A request at every limit at once passes: the 32 bytes that HTTP/2 adds to each field in its own count do not
/// count.
#[tokio::test]
async fn request_at_all_limits_passes() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let setup = world.proxy(upstream.address());
    let proxy = setup
        .limits(|limits| {
            limits.header_fields = 128;
            limits.header_bytes = 1280;
            limits.uri_bytes = 100;
        })
        .start();
    for protocol in BOTH {
        let own = usize::from(protocol == Protocol::Http1);
        let mut fields = vec![("x", "123456789"); 128 - own];
        // The Host field is three bytes longer than the field that it replaces.
        if own > 0 {
            fields[0].1 = "123456";
        }
        let target = format!("/{}", "t".repeat(99));
        let response = proxy.request(protocol, "GET", &target, &fields, b"").await;
        assert_eq!(response.code, 200, "{protocol:?} {}", response.text());
    }
}

#[tokio::test]
async fn uri_bytes() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).limits(small).start();
    for protocol in BOTH {
        for (length, code) in [(200, 200), (201, 414), (1000, 414)] {
            let target = format!("/a?{}", "b".repeat(length - 3));
            let response = proxy.get(protocol, &target).await;
            assert_eq!(response.code, code, "{protocol:?} {length}");
            if code == 414 {
                let message = response.assert_status(414, "RequestURITooLong");
                assert!(
                    message.contains("200 bytes") && message.ends_with("limits.uriBytes"),
                    "{message}"
                );
            }
        }
    }
    assert_eq!(upstream.requests().len(), 2);
}

/// Case 27. `kubectl exec p -- sh -c "<70 KB>"` sends this request, without ALPN and with an upgrade.
#[tokio::test]
async fn uri_above_every_limit_gets_414() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let upgrade = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
    ];
    for length in [70_000, 200_000, 1_000_000] {
        let target = format!(
            "/api/v1/namespaces/n/pods/p/exec?command={}",
            "x".repeat(length)
        );
        let response = proxy
            .request(Protocol::Http1, "GET", &target, &upgrade, b"")
            .await;
        let message = response.assert_status(414, "RequestURITooLong");
        assert!(message.ends_with("limits.uriBytes"), "{message}");
        assert_eq!(response.lines("connection"), ["close"]);
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// Case 27. The largest request target that passes over either protocol.
#[tokio::test]
async fn largest_possible_uri_passes() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for protocol in BOTH {
        // The URI of the HTTP/2 client contains the host too, and the `http` crate allows 65,534 bytes at most.
        let length = 65_534 - "https://kube.test".len();
        let target = format!("/{}", "x".repeat(length - 1));
        assert_eq!(proxy.get(protocol, &target).await.code, 200, "{protocol:?}");
        assert_eq!(upstream.next_request().await.target.len(), length);
    }
}

/// A few bytes of HPACK can stand for thousands of fields (CVE-2026-49975), cookie crumbs among them
/// (CVE-2026-47774). They are counted when they are decoded, and the connection stays open.
#[tokio::test]
async fn indexed_fields_count_as_fields() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let client = proxy.client().http2().await;
    for (name, count, has_status) in [
        ("x", 129, true),
        ("cookie", 4_000, true),
        ("x", 20_000, false),
    ] {
        let mut request = Request::get("https://kube.test/");
        for _ in 0..count {
            request = request.header(name, "y");
        }
        let request = request.body(Bytes::new()).unwrap();
        let response = client.request(request).await.unwrap();
        assert_eq!(response.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        // Above twice the limit in bytes h2 itself refuses the request, with a bare status code.
        if has_status {
            let message = ClientResponse::from(response).assert_status(431, TOO_LARGE);
            assert!(message.ends_with("limits.headerFields"), "{message}");
        }
    }
    assert_eq!(client.get("https://kube.test/").await.unwrap().status, 200);
    assert_eq!(upstream.requests().len(), 1);
}

/// A refusal for size closes an HTTP/1.1 connection only if the end of the request is unknown.
#[tokio::test]
async fn connection_stays_open_after_a_refusal_by_the_policy() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).limits(small).start();
    let mut client = proxy.client().http1().await;
    let target = format!("/{}", "x".repeat(200));
    let refused: ClientResponse = client.get(HOST, &target, "").await.into();
    refused.assert_status(414, "RequestURITooLong");
    assert_eq!(client.get(HOST, "/", "").await.status, 200);
}

/// The proxy refuses an unknown expectation (RFC 9110 §10.1.1).
#[tokio::test]
async fn unknown_expectation_gets_417() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for protocol in BOTH {
        let fields = [("expect", "200-ok")];
        let response = proxy.request(protocol, "POST", "/", &fields, b"body").await;
        response.assert_status(417, "ExpectationFailed");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// Every worker has a listener; a listener without clients must not hold the last permit.
#[tokio::test]
async fn last_permit_is_free_for_every_listener() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut setup = world
        .proxy(upstream.address())
        .limits(|limits| limits.connections = 1);
    setup.config.workers = NonZeroUsize::new(3).unwrap();
    let proxy = setup.start();
    for _ in 0..20 {
        let client = proxy.client();
        let mut client = standin::within("a permit", client.http1()).await;
        let response = client.get(HOST, "/", "Connection: close\r\n").await;
        assert_eq!(response.status, 200);
    }
}
