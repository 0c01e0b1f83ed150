//! How requests reach the apiserver, and how responses reach the client.

mod bodies;
mod headers;

use http::{Request, Response, StatusCode};
use standin::{
    client::Http1,
    upstream::{BodyEnd, RequestBody, ResponseBody, channel, empty, full},
};

use crate::{
    proxy::{HOST, World},
    responses::{BOTH, Protocol},
};

#[tokio::test]
async fn forwards_a_request_over_http1() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");
    let request = upstream.next_request().await;
    assert_eq!(request.target, "/version");
}

#[tokio::test]
async fn forwards_a_request_over_http2() {
    let (_world, upstream, proxy) = World::with_proxy().await;
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

/// Case 10. kubectl dials upgrades without ALPN. A client that offers both protocols gets h2, on both legs.
#[tokio::test]
async fn alpn_selects_the_protocol_and_its_absence_http1() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for (offered, chosen, mirrored) in [
        (&[][..], None, &["http/1.1"][..]),
        (&["http/1.1"], Some("http/1.1"), &["http/1.1"]),
        (&["http/1.1", "h2"], Some("h2"), &["h2", "http/1.1"]),
    ] {
        let tls = proxy.client().alpn(offered).connect().await.unwrap();
        assert_eq!(tls.alpn(), chosen);
        if chosen == Some("h2") {
            let client = standin::client::Http2::new(tls).await;
            client.get("https://kube.test/").await.unwrap();
        } else {
            let mut client = Http1::new(tls);
            assert_eq!(client.get(HOST, "/", "").await.status, 200);
        }
        let request = upstream.next_request().await;
        let connection = &upstream.connections()[request.connection];
        assert_eq!(connection.alpn_offered.as_deref().unwrap(), mirrored);
    }
}

/// Case 40.
#[tokio::test]
async fn target_arrives_byte_for_byte() {
    const TARGETS: [&str; 9] = [
        "//api/v1/pods",
        "/api/v1/../v1/./pods",
        "/a%2Fb%2e%2e/%61/%zz",
        "/x?a=1;b=2&a=3&a=1",
        "/x?",
        "/x?a=b+c%20d&&=",
        "/api/v1/namespaces/x/services/https:y:z/proxy/a/b/",
        "/~u/@s,t=(1)!*'$;:|?fieldSelector=metadata.name%3Da,b!=c[]",
        "/x??q=/../?",
    ];
    let world = World::new();
    for alpn in [&["h2", "http/1.1"][..], &["http/1.1"]] {
        let upstream = world.apiserver().alpn(alpn).start().await;
        let proxy = world.proxy(upstream.address()).start();
        for (protocol, target) in BOTH.iter().flat_map(|p| TARGETS.map(|target| (*p, target))) {
            assert_eq!(proxy.get(protocol, target).await.code, 200, "{target}");
            let seen = upstream.next_request().await.target;
            assert_eq!(seen, target, "{protocol:?} to {alpn:?}");
        }
    }
}

#[tokio::test]
async fn path_prefix_of_the_cluster_is_prepended() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let setup = world.proxy(upstream.address());
    let proxy = setup
        .cluster(|cluster| cluster.path_prefix = "/k8s/clusters/c-1".into())
        .start();
    for protocol in BOTH {
        for target in ["/api/v1/pods?watch=1", "/", "//a/../b?"] {
            assert_eq!(proxy.get(protocol, target).await.code, 200);
            let seen = upstream.next_request().await.target;
            assert_eq!(seen, format!("/k8s/clusters/c-1{target}"), "{protocol:?}");
        }
    }
}

/// `OPTIONS *` is about the server and not about a path, so it gets no prefix.
#[tokio::test]
async fn options_asterisk_is_forwarded_unchanged() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    for prefix in ["", "/k8s"] {
        let setup = world.proxy(upstream.address());
        let proxy = setup
            .cluster(|cluster| cluster.path_prefix = prefix.into())
            .start();
        let mut client = proxy.client().http1().await;
        client
            .send("OPTIONS * HTTP/1.1\r\nHost: kube.test\r\n\r\n")
            .await;
        assert_eq!(client.response().await.status, 200);
        let request = upstream.next_request().await;
        assert_eq!(
            (request.method.as_str(), &*request.target),
            ("OPTIONS", "*")
        );
    }
}

async fn no_bodies(request: Request<RequestBody>) -> Response<ResponseBody> {
    let response = Response::builder().header("etag", "\"1\"");
    match request.uri().path() {
        "/head" => response.header("content-length", "1234").body(empty()),
        "/204" => response.status(204).body(empty()),
        "/304" => response.status(304).body(empty()),
        _ => response.body(full("whole")),
    }
    .unwrap()
}

/// Case 59. A proxy that expects a body here would read the next response as that body.
#[tokio::test]
async fn connections_stay_usable_after_responses_without_body() {
    let world = World::new();
    let upstream = world.apiserver().http(no_bodies).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send("HEAD /head HTTP/1.1\r\nHost: kube.test\r\n\r\n")
        .await;
    let head = client.response_to_head().await;
    assert_eq!(head.lines("content-length"), ["1234"]);
    for (target, status) in [("/204", 204), ("/304", 304)] {
        let lines = "If-None-Match: \"1\"\r\n";
        let response = client.get(HOST, target, lines).await;
        assert_eq!(response.status, status);
        assert_eq!(response.head.lines("etag"), ["\"1\""]);
        assert_eq!(response.head.lines("transfer-encoding"), Vec::<&str>::new());
    }
    assert_eq!(client.get(HOST, "/", "").await.text(), "whole");
    assert_eq!(upstream.connections().len(), 1);

    let client = proxy.client().http2().await;
    let request = async |method: &str, path: &str| {
        let get = Request::builder()
            .method(method)
            .uri(format!("https://{HOST}{path}"));
        client
            .request(get.body(bytes::Bytes::new()).unwrap())
            .await
            .unwrap()
    };
    let head = request("HEAD", "/head").await;
    assert_eq!(
        (head.status, &head.headers["content-length"]),
        (StatusCode::OK, &"1234".parse().unwrap())
    );
    for (path, status) in [("/204", 204), ("/304", 304)] {
        let response = request("GET", path).await;
        assert_eq!(
            (response.status.as_u16(), response.text().as_str()),
            (status, "")
        );
    }
    assert_eq!(request("GET", "/").await.text(), "whole");
    assert_eq!(upstream.connections().len(), 2);
}

/// One HTTP/1.1 connection carries many requests, also pipelined ones, and keeps its lease.
#[tokio::test]
async fn http1_connection_carries_many_requests() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    client
        .send(
            "POST /1 HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 5\r\n\r\nfirst\
             POST /2 HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecond\r\n0\r\n\r\n\
             GET /3 HTTP/1.1\r\nHost: kube.test\r\n\r\n",
        )
        .await;
    for (target, body) in [("/1", "first"), ("/2", "second"), ("/3", "")] {
        assert_eq!(client.response().await.text(), "ok");
        let request = upstream.next_request().await;
        assert_eq!(request.target, target);
        assert_eq!(request.body().await, body.as_bytes());
    }
    let closing = client.get(HOST, "/4", "Connection: close\r\n").await;
    assert_eq!(closing.head.lines("connection"), ["close"]);
    client.end().await.unwrap();
    assert_eq!(upstream.requests().len(), 4);
    assert_eq!(upstream.connections().len(), 1);
}

/// An HTTP/1.0 client, such as an old health checker, does not know chunks: the end of the connection ends
/// the body.
#[tokio::test]
async fn http1_0_client_gets_response_without_chunks() {
    let world = World::new();
    let apiserver = world.apiserver().http(|_| async {
        let (sender, body) = channel();
        tokio::spawn(async move { sender.send("part").await });
        Response::new(body)
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send("GET /livez HTTP/1.0\r\nHost: kube.test\r\n\r\n")
        .await;
    let head = client.head().await.unwrap();
    assert_eq!(head.lines("transfer-encoding"), Vec::<&str>::new());
    assert_eq!(client.body(&head).await.unwrap(), "part");
    assert_eq!(
        upstream.next_request().await.version,
        http::Version::HTTP_11
    );
}

/// Case 41. Backends behind services/proxy may receive and set any field.
#[tokio::test]
async fn redirects_and_cookies_of_backends_are_relayed() {
    const TARGET: &str = "/api/v1/namespaces/x/services/https:y:z/proxy";
    let world = World::new();
    let apiserver = world.apiserver().http(|_| async {
        Response::builder()
            .status(301)
            .header("location", "proxy/")
            .header("set-cookie", "a=1; Path=/")
            .header("set-cookie", "b=2")
            .body(empty())
            .unwrap()
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    for protocol in BOTH {
        let fields = [("origin", "https://dashboard.test"), ("cookie", "a=1")];
        let answer = proxy.request(protocol, "GET", TARGET, &fields, b"").await;
        assert_eq!(answer.code, 301);
        assert_eq!(answer.lines("location"), ["proxy/"]);
        assert_eq!(answer.lines("set-cookie"), ["a=1; Path=/", "b=2"]);
        let request = upstream.next_request().await;
        assert_eq!(request.target, TARGET);
        assert_eq!(request.lines("origin"), ["https://dashboard.test"]);
        assert_eq!(request.lines("cookie"), ["a=1"]);
    }
}

/// Case 46. The apiserver's `Retry-After` is relayed unchanged, whatever the body is.
#[tokio::test]
async fn status_429_is_relayed_with_its_retry_after() {
    let world = World::new();
    let apiserver = world.apiserver().http(|_| async {
        Response::builder()
            .status(429)
            .header("retry-after", "7")
            .header("content-type", "text/plain; charset=utf-8")
            .body(full("Too many requests, please try again later.\n"))
            .unwrap()
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    for protocol in BOTH {
        let answer = proxy.get(protocol, "/api").await;
        assert_eq!(answer.code, 429);
        assert_eq!(answer.lines("retry-after"), ["7"]);
        assert_eq!(answer.lines("content-type"), ["text/plain; charset=utf-8"]);
        assert_eq!(
            answer.text(),
            "Too many requests, please try again later.\n"
        );
    }
}

/// Case 19. Only the apiserver decides whether a request needs an upgrade.
#[tokio::test]
async fn exec_without_upgrade_gets_the_apiservers_response() {
    const STATUS: &str = r#"{"kind":"Status","message":"Upgrade request required","code":400}"#;
    let world = World::new();
    let apiserver = world.apiserver().http(|_| async {
        let response = Response::builder().status(400);
        response
            .header("content-type", "application/json")
            .body(full(STATUS))
            .unwrap()
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    for protocol in BOTH {
        let target = "/api/v1/namespaces/n/pods/p/exec?command=ls&command=%2Fetc";
        let answer = proxy.request(protocol, "POST", target, &[], b"").await;
        assert_eq!((answer.code, answer.text().as_str()), (400, STATUS));
        let request = upstream.next_request().await;
        assert_eq!(
            (request.method.as_str(), &*request.target),
            ("POST", target)
        );
    }
}

/// Case 20. HTTP/2 has no 101 (RFC 9113 §8.6), so an unrequested 101 of the apiserver is an error. Without the
/// setting, no client tries extended CONNECT (RFC 8441).
#[tokio::test]
async fn no_101_on_http2_and_no_extended_connect() {
    const ENABLE_CONNECT_PROTOCOL: u16 = 8;
    let world = World::new();
    let apiserver = world.apiserver().alpn(&["http/1.1"]).http(|_| async {
        let response = Response::builder().status(101);
        let response = response.header("connection", "Upgrade");
        response
            .header("upgrade", "websocket")
            .body(empty())
            .unwrap()
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    for protocol in BOTH {
        let answer = proxy.get(protocol, "/api/v1/pods/p/exec").await;
        answer.assert_status(502, "InternalError");
        assert_eq!(answer.lines("retry-after"), Vec::<&str>::new());
    }
    let client = proxy.client().http2().await;
    let settings = client
        .frame(standin::frames::kind::SETTINGS)
        .await
        .settings();
    assert!(!settings.is_empty());
    let on = settings
        .iter()
        .find(|(id, value)| *id == ENABLE_CONNECT_PROTOCOL && *value != 0);
    assert_eq!(on, None);
}

/// The protocols of the two legs are independent.
#[tokio::test]
async fn http2_client_reaches_an_http1_apiserver() {
    let world = World::new();
    let upstream = world.apiserver().alpn(&["http/1.1"]).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let answer = proxy
        .request(Protocol::Http2, "POST", "/x", &[], b"body")
        .await;
    assert_eq!(answer.text(), "ok");
    let request = upstream.next_request().await;
    assert_eq!(request.version, http::Version::HTTP_11);
    assert_eq!(request.body().await, b"body");
}

/// A missing body is a complete body.
#[tokio::test]
async fn request_without_body_is_complete() {
    let world = World::new();
    let apiserver = world
        .apiserver()
        .http(|_| async { Response::new(full("ok")) });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    for protocol in BOTH {
        assert_eq!(
            proxy.request(protocol, "DELETE", "/", &[], b"").await.code,
            200
        );
        assert_eq!(
            upstream.next_request().await.body_end().await,
            BodyEnd::Complete
        );
    }
}
