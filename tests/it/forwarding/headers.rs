//! Which header fields the proxy forwards, drops and sets.

use bytes::Bytes;
use http::{Request, Response};
use kube_tls_proxy::config::RequestHost;
use standin::upstream::{Received, full};

use crate::{
    proxy::{HOST, World},
    responses::{BOTH, Protocol},
};

#[track_caller]
fn assert_absent(request: &Received, names: &[&str]) {
    for name in names {
        assert_eq!(request.lines(name), Vec::<&str>::new(), "{name}");
    }
}

/// Case 29. The proxy drops fields that `Connection` names, but never a field that identifies the user.
#[tokio::test]
async fn connection_field_removes_no_identity() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    let lines = "Connection: x-remote-user, Authorization, impersonate-user, Host\r\n\
                 Connection: keep-alive, X-Mine, x-forwarded-for, content-length, Cookie\r\n\
                 X-Mine: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
                 Authorization: bearer  a b\r\nImpersonate-User: bob\r\nImpersonate-Group: a\r\n\
                 Impersonate-Group: b\r\nImpersonate-Extra-Scopes: view\r\nX-Remote-User: admin\r\nCookie: c=1\r\n";
    assert_eq!(client.get(HOST, "/", lines).await.status, 200);
    let request = upstream.next_request().await;
    for (name, values) in [
        ("authorization", &["bearer  a b"][..]),
        ("impersonate-user", &["bob"]),
        ("impersonate-group", &["a", "b"]),
        ("impersonate-extra-scopes", &["view"]),
        ("x-forwarded-for", &["127.0.0.1"]),
        ("cookie", &["c=1"]),
        ("host", &[HOST]),
    ] {
        assert_eq!(request.lines(name), values, "{name}");
    }
    let gone = [
        "connection",
        "x-mine",
        "keep-alive",
        "proxy-connection",
        "x-remote-user",
    ];
    assert_absent(&request, &gone);
}

/// Case 43. The apiserver trusts forwarding fields, so only the proxy may set them. A client must not pose as a front
/// proxy that has authenticated a user either.
#[tokio::test]
async fn client_forwarding_and_front_proxy_fields_are_replaced() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for protocol in BOTH {
        let fields = [
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-host", "evil.test"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-uri", "/evil"),
            ("x_forwarded_for", "10.0.0.3"),
            ("x-real-ip", "10.0.0.4"),
            ("forwarded", "for=10.0.0.5"),
            ("x-remote-user", "admin"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-foo", "bar"),
            ("x-remote-uid", "0"),
        ];
        proxy.request(protocol, "GET", "/", &fields, b"").await;
        let request = upstream.next_request().await;
        assert_eq!(request.lines("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(request.lines("x-forwarded-host"), [HOST]);
        assert_eq!(request.lines("x-forwarded-proto"), ["https"]);
        let gone = [
            "x-forwarded-uri",
            "x_forwarded_for",
            "x-real-ip",
            "forwarded",
            "x-remote-user",
            "x-remote-group",
            "x-remote-extra-foo",
            "x-remote-uid",
        ];
        assert_absent(&request, &gone);
    }
}

/// Case 18. The proxy forwards only upgrades to protocols that kube-apiserver speaks.
#[tokio::test]
async fn unknown_upgrades_are_dropped() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for lines in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: upgrade\r\nUpgrade: foo\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Upgrade: websocket\r\n",
        "Connection: close, x\r\nUpgrade: SPDY/3.1\r\n",
    ] {
        let mut client = proxy.client().http1().await;
        assert_eq!(client.get(HOST, "/", lines).await.status, 200, "{lines}");
        let request = upstream.next_request().await;
        assert_absent(&request, &["upgrade", "connection", "http2-settings"]);
    }
}

/// Case 42. HTTP/2 may split cookies and has the host in `:authority`; HTTP/1.1 has one line of each.
#[tokio::test]
async fn http2_fields_take_their_http1_form() {
    let world = World::new();
    let upstream = world.apiserver().alpn(&["http/1.1"]).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let fields = [
        ("cookie", "a=1"),
        ("x-a", "1"),
        ("cookie", "b=2"),
        ("x-a", "2"),
    ];
    proxy
        .request(Protocol::Http2, "GET", "/", &fields, b"")
        .await;
    let request = upstream.next_request().await;
    assert_eq!(request.lines("host"), [HOST]);
    assert_eq!(request.lines("cookie"), ["a=1; b=2"]);
    assert_eq!(request.lines("x-a"), ["1", "2"]);
    assert_eq!(request.target, "/");
}

/// Rancher and others serve several clusters at one address, and know them by the host of their URL only.
#[tokio::test]
async fn apiserver_is_asked_for_the_host_of_its_url() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .cluster(|cluster| {
            cluster.upstream_host = "rancher.test".into();
            cluster.addresses = vec![upstream.address()];
            cluster.request_host = RequestHost::Upstream;
        })
        .timeouts(|timeouts| timeouts.probe_interval = std::time::Duration::from_secs(60))
        .start();
    let host = format!("rancher.test:{}", upstream.address().port());
    let probe = upstream.next_request().await;
    assert_eq!(
        (probe.target.as_str(), probe.lines("host")),
        ("/readyz", vec![&*host])
    );
    for protocol in BOTH {
        proxy.request(protocol, "GET", "/", &[], b"").await;
        let request = upstream.next_request().await;
        let asked = request
            .authority
            .as_deref()
            .or_else(|| request.header("host"));
        assert_eq!(asked, Some(&*host), "{protocol:?}");
        assert_eq!(request.lines("x-forwarded-host"), [HOST]);
    }
    let mut client = proxy.client().http1().await;
    client
        .get(
            HOST,
            "/api/v1/namespaces/a/pods/b/exec",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        )
        .await;
    let upgrade = upstream.next_request().await;
    assert_eq!(upgrade.lines("host"), [&*host]);
}

/// Probes and requests must not differ: a server that knows only one of two hosts would be healthy and useless.
#[tokio::test]
async fn probe_asks_for_a_host_of_the_clients() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let _proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.probe_interval = std::time::Duration::from_secs(60))
        .start();
    assert_eq!(upstream.next_request().await.lines("host"), [HOST]);
}

/// Case 42. The apiserver compares the host, port included, with the links of backends.
#[tokio::test]
async fn host_is_kept_as_the_client_wrote_it() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for host in ["kube.test:6443", "KUBE.test", "kube.test."] {
        let mut client = proxy.client().http1().await;
        assert_eq!(client.get(host, "/", "").await.status, 200);
        let request = upstream.next_request().await;
        assert_eq!(request.lines("host"), [host]);
        assert_eq!(request.lines("x-forwarded-host"), [host]);
        let client = proxy.client().http2().await;
        let url = format!("https://{host}/");
        assert_eq!(client.get(&url).await.unwrap().status, 200);
        let request = upstream.next_request().await;
        assert_eq!(request.authority.as_deref(), Some(host));
        assert_absent(&request, &["host"]);
    }
}

/// Case 26. Large OIDC tokens and many groups are normal.
#[tokio::test]
async fn many_groups_and_a_large_token_are_forwarded() {
    let world = World::new();
    let token = format!("Bearer {}", "t".repeat(20 << 10));
    let groups: Vec<String> = (0..300).map(|number| format!("group-{number}")).collect();
    let upstream = world.apiserver().start().await;
    for (count, limit) in [(120, None), (300, Some(400))] {
        let mut setup = world.proxy(upstream.address());
        if let Some(limit) = limit {
            setup = setup.limits(|limits| limits.header_fields = limit);
        }
        let proxy = setup.start();
        let groups = &groups[..count];
        let mut fields = vec![("authorization", token.as_str())];
        fields.extend(
            groups
                .iter()
                .map(|group| ("impersonate-group", group.as_str())),
        );
        for protocol in BOTH {
            let answer = proxy.request(protocol, "GET", "/", &fields, b"").await;
            assert_eq!(answer.code, 200, "{protocol:?} {}", answer.text());
            let request = upstream.next_request().await;
            assert_eq!(request.lines("impersonate-group"), groups);
            assert_eq!(request.lines("authorization"), [&token]);
        }
    }
}

/// Case 47. Each `Warning` stays a line of its own: otherwise kubectl prints only the first one.
#[tokio::test]
async fn response_fields_arrive_unchanged() {
    const FIELDS: [(&str, &str); 8] = [
        ("warning", "299 - \"policy/v1beta1 is deprecated\""),
        ("warning", "299 - \"a, b\""),
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("audit-id", "0a1b"),
        ("cache-control", "no-cache, private"),
        ("www-authenticate", "Basic realm=\"a\""),
        ("vary", "Accept-Encoding"),
        ("x-kubernetes-pf-flowschema-uid", "u"),
    ];
    let world = World::new();
    let apiserver = world.apiserver().http(|_| async {
        let mut response = Response::builder();
        for (name, value) in FIELDS {
            response = response.header(name, value);
        }
        response.body(full("ok")).unwrap()
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    for protocol in BOTH {
        let answer = proxy.get(protocol, "/api").await;
        for (name, value) in FIELDS {
            assert!(answer.lines(name).contains(&value), "{name} in {answer:?}");
        }
        assert_eq!(answer.lines("warning").len(), 2);
        assert_eq!(answer.lines("date").len(), 1);
    }
}

/// Fields about the upstream connection are not about the client connection.
#[tokio::test]
async fn hop_by_hop_response_fields_are_dropped() {
    let world = World::new();
    let apiserver = world.apiserver().alpn(&["http/1.1"]).http(|_| async {
        Response::builder()
            .header("connection", "close, X-Internal")
            .header("x-internal", "1")
            .header("keep-alive", "timeout=5")
            .header("proxy-authenticate", "Basic")
            .header("upgrade", "h2c")
            .body(full("ok"))
            .unwrap()
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let gone = [
        "connection",
        "x-internal",
        "keep-alive",
        "proxy-authenticate",
        "upgrade",
    ];
    let mut http1 = proxy.client().http1().await;
    let http2 = proxy.client().http2().await;
    for _ in 0..2 {
        let response = http1.get(HOST, "/", "").await;
        assert_eq!(response.text(), "ok");
        let other = http2.get("https://kube.test/").await.unwrap();
        assert_eq!(other.text(), "ok");
        for name in gone {
            assert_eq!(response.head.lines(name), Vec::<&str>::new(), "{name}");
            assert!(!other.headers.contains_key(name), "{name}");
        }
    }
}

/// Such fields make an HTTP/2 request malformed (RFC 9113 §8.2.2), so it does not reach the apiserver.
#[tokio::test]
async fn connection_fields_over_http2_are_refused() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("upgrade", "websocket"),
    ] {
        let mut wire = standin::frames::FrameConnection::client(
            proxy.client().alpn(&["h2"]).connect().await.unwrap(),
            &[],
        )
        .await
        .unwrap();
        let fields = [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", HOST),
            (":path", "/"),
            (name, value),
        ];
        wire.headers(1, &fields, standin::frames::END_STREAM)
            .await
            .unwrap();
        let reset =
            standin::within("a reset", wire.expect(standin::frames::kind::RST_STREAM)).await;
        assert_eq!(reset.unwrap().error_code(), Some(1), "{name}");
    }
    assert_eq!(upstream.requests().len(), 0);
    let request = Request::get("https://kube.test/").header("te", "trailers");
    let client = proxy.client().http2().await;
    client
        .request(request.body(Bytes::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(upstream.next_request().await.lines("te"), ["trailers"]);
}

/// The limit is the same over both protocols, and the client learns that its request was processed.
#[tokio::test]
async fn large_response_head_has_one_limit_for_both_protocols() {
    const MAX: usize = 256 * 1024;
    let world = World::new();
    for alpn in [&["h2", "http/1.1"][..], &["http/1.1"]] {
        let apiserver = world.apiserver().alpn(alpn).http(|request| async move {
            let mut response = Response::builder();
            let path = request.uri().path();
            let (kind, size) = path[1..].split_once('/').unwrap();
            let size: usize = size.parse().unwrap();
            if kind == "bytes" {
                response = response.header("warning", "x".repeat(size));
            } else {
                for _ in 0..size {
                    response = response.header("warning", "x");
                }
            }
            response.body(full("ok")).unwrap()
        });
        let upstream = apiserver.start().await;
        let proxy = world.proxy(upstream.address()).start();
        for protocol in BOTH {
            for (target, fits) in [
                ("/bytes/120000", true),
                ("/fields/1000", true),
                (&format!("/bytes/{}", MAX - 1000), true),
                (&format!("/bytes/{MAX}"), false),
                // More than h2 reads at all.
                ("/bytes/600000", false),
                ("/fields/10000", false),
            ] {
                let response = proxy.get(protocol, target).await;
                let context = format!("{target}, {alpn:?} to {protocol:?}");
                if fits {
                    assert_eq!(
                        (response.code, response.text().as_str()),
                        (200, "ok"),
                        "{context}"
                    );
                    continue;
                }
                let message = response.assert_status(502, "InternalError");
                let expected = [
                    format!("the response's head is larger than {MAX} bytes"),
                    "the apiserver's response is not valid HTTP".to_owned(),
                ];
                let is_by_far =
                    alpn[0] == "h2" && protocol == Protocol::Http2 && target.ends_with("/600000");
                assert!(
                    message.contains(&expected[usize::from(is_by_far)]),
                    "{context}: {message}"
                );
                assert_eq!(
                    response.lines("retry-after"),
                    Vec::<&str>::new(),
                    "{context}"
                );
            }
        }
    }
}
