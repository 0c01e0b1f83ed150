//! Requests that try to get past access rules: none reaches the apiserver, not even as a connection.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use standin::upstream::Upstream;

use crate::{
    access::{jwt, with_rules},
    balancers::list,
    proxy::{HOST, Proxy, World},
    responses::{BOTH, Protocol},
    upgrades::WEBSOCKET,
};

const ISSUER: &str = "https://login.test";

/// The token of an honest user.
fn jane() -> String {
    jwt(r#"{"iss":"https://login.test","sub":"jane"}"#)
}

async fn start(world: &World, access: &str) -> (Upstream, Proxy) {
    let upstream = world.apiserver().start().await;
    let proxy = with_rules(world.proxy(upstream.address()), access).start();
    (upstream, proxy)
}

/// The status of the response to these bytes, on a connection of their own.
async fn raw(proxy: &Proxy, bytes: impl AsRef<[u8]>) -> u16 {
    let mut client = proxy.client().alpn(&["http/1.1"]).http1().await;
    client.send(bytes).await;
    client.head().await.unwrap().status
}

/// Targets, methods and fields that some server on the way reads as another request.
#[tokio::test]
async fn closed_request_in_any_form_goes_nowhere() {
    let world = World::new();
    let access = "
  - deny: {resources: [secrets, pods/exec]}
  - deny: {paths: [/metrics]}
  - deny: {verbs: [create, delete, deletecollection]}
  - allow: {}
";
    let (upstream, proxy) = start(&world, access).await;
    let secrets = "/api/v1/namespaces/a/secrets";
    let closed = [
        // Targets.
        (format!("GET https://{HOST}{secrets} HTTP/1.1"), "", 403),
        (format!("GET HTTPS://KUBE.TEST{secrets} HTTP/1.1"), "", 403),
        (format!("GET https://{HOST}:443{secrets} HTTP/1.1"), "", 403),
        (format!("GET http://{HOST}{secrets} HTTP/1.1"), "", 400),
        (format!("GET https://a@{HOST}{secrets} HTTP/1.1"), "", 400),
        (format!("GET https://other.test{secrets} HTTP/1.1"), "", 421),
        (format!("GET //{HOST}{secrets} HTTP/1.1"), "", 400),
        (
            format!("GET {secrets} HTTP/1.1"),
            "X-Forwarded-Prefix: /version\r\n",
            403,
        ),
        (format!("GET {} HTTP/1.1", &secrets[1..]), "", 400),
        (format!("GET ?{secrets} HTTP/1.1"), "", 400),
        ("GET * HTTP/1.1".to_owned(), "", 400),
        (format!("GET {secrets}? HTTP/1.1"), "", 403),
        (format!("GET {secrets}?watch HTTP/1.1"), "", 403),
        (format!("GET {secrets}/?watch=0 HTTP/1.1"), "", 403),
        (format!("GET {secrets}/x?a=/../.. HTTP/1.1"), "", 403),
        (format!("GET {secrets}#/version HTTP/1.1"), "", 400),
        (format!("GET {secrets}\\..\\pods HTTP/1.1"), "", 400),
        (format!("GET {secrets} HTTP/1.0"), "", 403),
        (format!("GET\t{secrets} HTTP/1.1"), "", 400),
        (format!("GET {secrets} /version HTTP/1.1"), "", 400),
        ("GET /apis/../api/v1/secrets HTTP/1.1".to_owned(), "", 400),
        ("GET /API/v1/secrets HTTP/1.1".to_owned(), "", 400),
        ("GET /%2561pi/v1/secrets HTTP/1.1".to_owned(), "", 400),
        ("GET /metrics/ HTTP/1.1".to_owned(), "", 403),
        (
            "GET https://kube.test/metrics?a HTTP/1.1".to_owned(),
            "",
            403,
        ),
        // Methods.
        (format!("HEAD {secrets} HTTP/1.1"), "", 403),
        (
            format!("OPTIONS {secrets} HTTP/1.1"),
            "Origin: https://a.test\r\nAccess-Control-Request-Method: GET\r\n",
            403,
        ),
        (format!("TRACE {secrets} HTTP/1.1"), "", 403),
        (format!("get {secrets} HTTP/1.1"), "", 403),
        (format!("PROPFIND {secrets} HTTP/1.1"), "", 403),
        ("CONNECT kube.test:443 HTTP/1.1".to_owned(), "", 405),
        (
            "delete /api/v1/namespaces/a/pods HTTP/1.1".to_owned(),
            "",
            403,
        ),
        (
            "DELETE /api/v1/namespaces/a/pods?watch=1 HTTP/1.1".to_owned(),
            "",
            403,
        ),
        (
            "DELETE /api/v1/namespaces/a/pods/ HTTP/1.1".to_owned(),
            "",
            403,
        ),
        (
            "DELETE /api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Db HTTP/1.1".to_owned(),
            "",
            403,
        ),
        // Fields that change method or target for some servers.
        (
            "POST /api/v1/namespaces/a/pods HTTP/1.1".to_owned(),
            "X-HTTP-Method-Override: GET\r\n",
            403,
        ),
        (
            "DELETE /api/v1/namespaces/a/pods/b HTTP/1.1".to_owned(),
            "X-HTTP-Method: GET\r\n",
            403,
        ),
        (
            "DELETE /api/v1/namespaces/a/pods/b HTTP/1.1".to_owned(),
            "X-Method-Override: GET\r\n",
            403,
        ),
        (
            format!("GET {secrets} HTTP/1.1"),
            "X-Original-URL: /version\r\n",
            403,
        ),
        (
            format!("GET {secrets} HTTP/1.1"),
            "X-Rewrite-URL: /version\r\n",
            403,
        ),
        (
            format!("GET {secrets} HTTP/1.1"),
            "X-Forwarded-Uri: /version\r\n",
            403,
        ),
        (
            format!("GET {secrets} HTTP/1.1"),
            "Host: other.test\r\n",
            400,
        ),
        (
            format!("GET {secrets} HTTP/1.1"),
            "Impersonate-User: system:admin\r\n",
            403,
        ),
        (
            format!("GET {secrets} HTTP/1.1"),
            "Connection: authorization, host\r\n",
            403,
        ),
        (
            format!("GET {secrets} HTTP/1.1"),
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
            403,
        ),
    ];
    for (line, fields, status) in &closed {
        let token = jane();
        let bytes = format!("{line}\r\nHost: {HOST}\r\nAuthorization: {token}\r\n{fields}\r\n");
        assert_eq!(raw(&proxy, &bytes).await, *status, "{line} {fields}");
    }
    for (method, target, fields, status) in [
        ("GET", secrets, ("x-http-method-override", "OPTIONS"), 403),
        ("HEAD", secrets, ("x-original-url", "/version"), 403),
        ("FOO", secrets, ("a", "b"), 403),
        (
            "POST",
            "/api/v1/namespaces/a/pods",
            ("x-http-method-override", "GET"),
            403,
        ),
        (
            "GET",
            "/api/v1/namespaces/a/pods/b/exec",
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
            403,
        ),
        ("GET", "/apis/../api/v1/secrets", ("a", "b"), 400),
        ("GET", "/api/v1/namespaces/a/pods/b/%65xec", ("a", "b"), 400),
    ] {
        let token = jane();
        let fields = [("authorization", token.as_str()), fields];
        let response = proxy
            .request(Protocol::Http2, method, target, &fields, b"")
            .await;
        assert_eq!(response.code, status, "{method} {target} {fields:?}");
    }
    assert_eq!(upstream.accepted(), 0);
    let served = raw(
        &proxy,
        format!("GET /version HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
    )
    .await;
    assert_eq!((served, upstream.requests().len()), (200, 1));
}

/// Each is no credential, one of another kind, or one that two readers could read differently.
#[tokio::test]
async fn credential_in_disguise_goes_nowhere() {
    let world = World::new();
    let access = "
  - deny: {credentials: [none, serviceAccount, opaque]}
  - allow: {issuers: ['https://login.test']}
";
    let (upstream, proxy) = start(&world, access).await;
    let good = jane();
    let token = good.trim_start_matches("Bearer ");
    let account = jwt(r#"{"iss":"https://login.test","kubernetes.io":{}}"#);
    let issued = |issuer: &str| jwt(&format!(r#"{{"iss":{issuer},"sub":"jane"}}"#));
    let long = format!(r#"{{"iss":"{ISSUER}","sub":"{}"}}"#, "x".repeat(16 * 1024));
    let nested = jwt(&format!("\"{token}\""));
    let cookie = format!("token={token}");
    let payload = token.split('.').nth(1).unwrap();
    let rows: Vec<(Vec<(&str, String)>, u16)> = vec![
        // Fields that carry no credential for the apiserver.
        (vec![("proxy-authorization", good.clone())], 401),
        (vec![("x-authorization", good.clone())], 401),
        (vec![("authorization_", good.clone())], 401),
        (vec![("x-forwarded-access-token", token.to_owned())], 401),
        (vec![("x-remote-user", "jane".to_owned())], 401),
        (vec![("x_remote_user", "jane".to_owned())], 401),
        (
            vec![("x-forwarded-client-cert", "Subject=\"CN=jane\"".to_owned())],
            401,
        ),
        (vec![("impersonate-user", "jane".to_owned())], 401),
        (vec![("cookie", cookie)], 401),
        (
            vec![(
                "sec-websocket-protocol",
                format!(
                    "base64url.bearer.authorization.k8s.io.{}",
                    URL_SAFE_NO_PAD.encode(token)
                ),
            )],
            401,
        ),
        // Schemes.
        (vec![("authorization", token.to_owned())], 401),
        (vec![("authorization", format!("Bearer  {token}"))], 401),
        (vec![("authorization", format!("Bearer\u{a0}{token}"))], 401),
        (vec![("authorization", format!("Bearer, {token}"))], 401),
        (vec![("authorization", format!("Token {token}"))], 401),
        (vec![("authorization", format!("Digest {token}"))], 401),
        (vec![("authorization", format!("Basic {token}"))], 403),
        (vec![("authorization", String::new())], 401),
        // More than one.
        (
            vec![
                ("authorization", good.clone()),
                ("authorization", good.clone()),
            ],
            400,
        ),
        (
            vec![
                ("authorization", good.clone()),
                ("authorization", account.clone()),
            ],
            400,
        ),
        (
            vec![
                ("authorization", account.clone()),
                ("authorization", good.clone()),
            ],
            400,
        ),
        (
            vec![
                ("authorization", good.clone()),
                ("authorization", String::new()),
            ],
            400,
        ),
        (vec![("authorization", format!("{account}, {good}"))], 403),
        (vec![("authorization", format!("Bearer x {good}"))], 403),
        // Issuers.
        (vec![("authorization", issued("null"))], 403),
        (vec![("authorization", issued("1"))], 403),
        (vec![("authorization", issued("true"))], 403),
        (
            vec![("authorization", issued(r#"["https://login.test"]"#))],
            403,
        ),
        (
            vec![("authorization", issued(r#"{"iss":"https://login.test"}"#))],
            403,
        ),
        (
            vec![("authorization", issued(r#""https://login.test/""#))],
            403,
        ),
        (
            vec![("authorization", issued(r#"" https://login.test""#))],
            403,
        ),
        (
            vec![("authorization", issued(r#""https://login.test\u0000""#))],
            403,
        ),
        (
            vec![("authorization", issued(r#""HTTPS://login.test""#))],
            403,
        ),
        (
            vec![(
                "authorization",
                issued(r#""https://login.test","ISS":"https://login.test""#),
            )],
            400,
        ),
        (
            vec![(
                "authorization",
                issued(r#""https://a.test","iss":"https://login.test""#),
            )],
            400,
        ),
        (
            vec![(
                "authorization",
                issued("\"https://a.test\",\"i\u{17f}s\":\"https://login.test\""),
            )],
            400,
        ),
        // Service accounts.
        (vec![("authorization", account.clone())], 403),
        (
            vec![(
                "authorization",
                jwt(r#"{"iss":"https://login.test","Kubernetes.IO":null}"#),
            )],
            403,
        ),
        (
            vec![(
                "authorization",
                jwt("{\"iss\":\"https://login.test\",\"\u{212a}ubernetes.io\":1}"),
            )],
            403,
        ),
        (
            vec![(
                "authorization",
                jwt(r#"{"iss":"https://login.test","\u006bubernetes.io":{}}"#),
            )],
            403,
        ),
        (
            vec![(
                "authorization",
                jwt(r#"{"iss":"https://login.test","kubernetes.io/serviceaccount/x":""}"#),
            )],
            403,
        ),
        (
            vec![(
                "authorization",
                jwt(r#"{"iss":"kubernetes/serviceaccount"}"#),
            )],
            403,
        ),
        // Forms.
        (vec![("authorization", format!("Bearer {payload}"))], 403),
        (vec![("authorization", format!("Bearer .{payload}"))], 403),
        (vec![("authorization", format!("Bearer {token}.e30"))], 403),
        (
            vec![("authorization", format!("Bearer {token}.e30.e30"))],
            403,
        ),
        (vec![("authorization", nested)], 403),
        (
            vec![("authorization", jwt(&format!("[{{\"iss\":\"{ISSUER}\"}}]")))],
            403,
        ),
        (
            vec![(
                "authorization",
                jwt(&format!("{{\"iss\":\"{ISSUER}\"}}{{}}")),
            )],
            400,
        ),
        (
            vec![("authorization", jwt(&format!("{{\"iss\":\"{ISSUER}\"")))],
            400,
        ),
        (vec![("authorization", jwt(&long))], 400),
        (
            vec![(
                "authorization",
                format!("Bearer {{\"payload\":\"{payload}\",\"signature\":\"\"}}"),
            )],
            403,
        ),
        (
            vec![(
                "authorization",
                format!(
                    "Bearer e30.{}.c2ln",
                    base64::prelude::BASE64_STANDARD.encode(r#"{"iss":"https://login.test?>>>>"}"#)
                ),
            )],
            403,
        ),
    ];
    assert!(rows.len() >= 50, "{}", rows.len());
    for (fields, status) in &rows {
        for protocol in BOTH {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let response = proxy
                .request(protocol, "GET", "/api/v1/pods", &fields, b"")
                .await;
            assert_eq!(
                response.code,
                *status,
                "{protocol:?} {fields:.200?}: {}",
                response.text()
            );
        }
    }
    for target in [
        format!("/api/v1/pods?access_token={token}"),
        format!("/api/v1/pods?token={token}"),
    ] {
        assert_eq!(proxy.get(Protocol::Http1, &target).await.code, 401);
    }
    // In trailers.
    let head = format!(
        "POST /api/v1/pods HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n"
    );
    assert_eq!(
        raw(&proxy, format!("{head}0\r\nAuthorization: {good}\r\n\r\n")).await,
        401
    );
    // In both places, of which the apiserver takes the one that is valid.
    let protocol = |token: &str| {
        let token = URL_SAFE_NO_PAD.encode(token.trim_start_matches("Bearer "));
        format!("base64url.bearer.authorization.k8s.io.{token}, v5.channel.k8s.io")
    };
    for (authorization, subprotocol, status) in [
        (good.as_str(), protocol(&account), 403),
        (account.as_str(), protocol(&good), 403),
        (good.as_str(), protocol("opaque"), 403),
        (
            good.as_str(),
            format!("{}, {}", protocol(&good), protocol(&account)),
            400,
        ),
        (
            good.as_str(),
            format!(
                "{}\r\nSec-WebSocket-Protocol: {}",
                protocol(&good),
                protocol(&account)
            ),
            400,
        ),
        (
            good.as_str(),
            format!("v5.channel.k8s.io,\u{a0}{}", protocol(&account)),
            403,
        ),
        ("Basic eDp5", protocol(&good), 403),
    ] {
        let bytes = WEBSOCKET
            .replace("Bearer t", authorization)
            .replace("v5.channel.k8s.io", &subprotocol);
        assert_eq!(raw(&proxy, &bytes).await, status, "{bytes}");
    }
    assert_eq!(upstream.accepted(), 0);
    let response = proxy
        .request(
            Protocol::Http2,
            "GET",
            "/api/v1/pods",
            &[("authorization", &good)],
            b"",
        )
        .await;
    assert_eq!((response.code, upstream.requests().len()), (200, 1));
}

/// Only a peer that is trusted may name another address, and only at the end of the list.
#[tokio::test]
async fn claimed_address_opens_nothing() {
    let world = World::new();
    let office = "203.0.113.5";
    let fields: &[(&str, &str)] = &[
        ("x-forwarded-for", office),
        ("x_forwarded_for", office),
        ("forwarded", "for=203.0.113.5"),
        ("x-real-ip", office),
        ("x-client-ip", office),
        ("true-client-ip", office),
        ("cf-connecting-ip", office),
        ("x-cluster-client-ip", office),
        ("x-envoy-external-address", office),
        ("x-original-forwarded-for", office),
        ("via", "1.1 203.0.113.5"),
        ("proxy", "TCP4 203.0.113.5 127.0.0.1 1 2"),
    ];
    let lists: &[&[&str]] = &[
        &["203.0.113.5, 198.51.100.9"],
        &["203.0.113.5", "198.51.100.9"],
        &["203.0.113.5, 198.51.100.9, 127.0.0.1"],
        &["203.0.113.5,198.51.100.9,"],
        &["203.0.113.5, ,"],
        &["203.0.113.5 198.51.100.9"],
        &["203.0.113.5;"],
        &["\"203.0.113.5\""],
        &["for=203.0.113.5"],
        &["203.0.113.5/32"],
        &["203.0.113.05"],
        &["::ffff:203.0.113.5, 198.51.100.9"],
        &["203.0.113.5, ::ffff:198.51.100.9"],
        &["[203.0.113.5]"],
        &["203.0.113.5:x"],
        &["0xcb.0.113.5"],
        &["3405803781"],
    ];
    for is_trusted in [false, true] {
        let upstream = world.apiserver().start().await;
        let access = "  - allow: {from: [203.0.113.0/24]}";
        let mut setup = with_rules(world.proxy(upstream.address()), access);
        if is_trusted {
            setup.config.trusted_proxies = list(&["127.0.0.1"]);
        }
        let proxy = setup.start();
        let singles = fields.iter().skip(usize::from(is_trusted));
        let lists = lists.iter().map(|lines| {
            lines
                .iter()
                .map(|line| ("x-forwarded-for", *line))
                .collect::<Vec<_>>()
        });
        let rows = singles.map(|field| vec![*field]).chain(lists);
        for row in rows {
            for protocol in BOTH {
                let mut fields = row.clone();
                fields.push(("authorization", "Bearer good"));
                let response = proxy
                    .request(protocol, "GET", "/version", &fields, b"")
                    .await;
                assert_eq!(response.code, 403, "{is_trusted} {protocol:?} {row:?}");
                assert!(!response.text().contains(office), "{}", response.text());
            }
        }
        assert_eq!(upstream.accepted(), 0);
        let fields = [
            ("authorization", "Bearer good"),
            ("x-forwarded-for", office),
        ];
        let served = proxy
            .request(Protocol::Http2, "GET", "/version", &fields, b"")
            .await;
        assert_eq!(served.code, if is_trusted { 200 } else { 403 });
    }
}

/// A header that names no client, or comes from elsewhere, is the address of the socket or the end of the connection.
#[tokio::test]
async fn proxy_header_opens_only_what_its_balancer_names() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let access = "  - allow: {from: [203.0.113.0/24]}";
    let proxy = with_rules(world.proxy(upstream.address()), access)
        .peers(|peers| peers.balancers = list(&["127.0.0.1"]))
        .start();
    let office = [203, 0, 113, 5, 127, 0, 0, 1, 0, 1, 0, 2];
    let other = [198, 51, 100, 9, 203, 0, 113, 5, 0, 1, 0, 2];
    let v2 = |command: u8, family: u8, block: &[u8]| {
        let length = u8::try_from(block.len()).unwrap();
        let start = b"\r\n\r\n\0\r\nQUIT\n".as_slice();
        [start, &[command, family, 0, length], block].concat()
    };
    let line = |line: &str| format!("{line}\r\n").into_bytes();
    let mapped = [
        &[0; 10],
        [0xff; 2].as_slice(),
        &other[..4],
        &[0; 10],
        &[0xff; 2],
        &office[..4],
        &[0, 1, 0, 2],
    ];
    let closed = [
        ("unknown", line("PROXY UNKNOWN")),
        (
            "unknown with an address",
            line("PROXY UNKNOWN 203.0.113.5 127.0.0.1 1 2"),
        ),
        (
            "other client",
            line("PROXY TCP4 198.51.100.9 203.0.113.5 1 2"),
        ),
        (
            "other client, IPv6",
            line("PROXY TCP6 ::ffff:198.51.100.9 ::ffff:203.0.113.5 1 2"),
        ),
        (
            "IPv6 that ends alike",
            line("PROXY TCP6 64:ff9b::203.0.113.5 ::1 1 2"),
        ),
        ("local with an address", v2(0x20, 0x11, &office)),
        (
            "unspecified with an address",
            v2(0x21, 0x00, &[&[0xea, 0, 12], office.as_slice()].concat()),
        ),
        ("other client, version 2", v2(0x21, 0x11, &other)),
        ("other client, mapped", v2(0x21, 0x21, &mapped.concat())),
        (
            "address in a field",
            v2(
                0x21,
                0x11,
                &[&other, [0xea, 0, 12].as_slice(), &office].concat(),
            ),
        ),
    ];
    for (row, header) in closed {
        let mut client = proxy.client().preamble(&header).http1().await;
        let claim = "X-Forwarded-For: 203.0.113.5\r\nAuthorization: Bearer x\r\n";
        assert_eq!(
            client.get(HOST, "/version", claim).await.status,
            403,
            "{row}"
        );
    }
    let good = line("PROXY TCP4 203.0.113.5 127.0.0.1 1 2");
    let refused = [
        ("no header", Vec::new()),
        (
            "two headers",
            [line("PROXY UNKNOWN"), good.clone()].concat(),
        ),
        ("two versions", [v2(0x20, 0x00, &[]), good.clone()].concat()),
        ("blank before it", [b" ", good.as_slice()].concat()),
        ("line break before it", [b"\r\n", good.as_slice()].concat()),
        ("no line break", good[..good.len() - 2].to_vec()),
        (
            "only a line feed",
            b"PROXY TCP4 203.0.113.5 127.0.0.1 1 2\n".to_vec(),
        ),
        ("lower case", line("proxy TCP4 203.0.113.5 127.0.0.1 1 2")),
        ("datagram", v2(0x21, 0x12, &office)),
        ("cut short", v2(0x21, 0x11, &office[..11])),
        ("version 3", v2(0x31, 0x11, &office)),
    ];
    for (row, header) in refused {
        assert!(
            proxy.client().preamble(&header).connect().await.is_err(),
            "{row}"
        );
    }
    let stranger = proxy.client().from([127, 0, 0, 2].into());
    for header in [good.clone(), v2(0x21, 0x11, &office)] {
        assert!(stranger.clone().preamble(&header).connect().await.is_err());
    }
    assert_eq!(upstream.accepted(), 0);
    let mut served = proxy.client().preamble(&good).http1().await;
    assert_eq!(served.get(HOST, "/version", "").await.status, 200);
}
