//! Fields with which a client could pose as another user, or change what another parser sees: none reaches the
//! apiserver, and no field that the client may send is lost.

use standin::upstream::{Received, Upstream};

use crate::{
    proxy::{HOST, Proxy, World},
    responses::{BOTH, Protocol},
};

/// Fields that only a front proxy may set.
pub(crate) const FORGED: &[&str] = &[
    "x-remote-user",
    "x-remote-uid",
    "x-remote-group",
    "x-remote-extra-scopes",
    "x-remote-extra-acme.com%2fproject",
    "x-remote-extra-",
    "x-remote-",
    "x-remote-anything",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-forwarded-server",
    "x-forwarded-by",
    "x-forwarded-client-cert",
    "x-forwarded-user",
    "x-forwarded-groups",
    "x-forwarded-access-token",
    "x-forwarded-",
    "forwarded",
    "x-real-ip",
];

/// Fields for one connection only.
const HOP_BY_HOP: &[(&str, &str)] = &[
    ("connection", "close"),
    ("connection", "x-mine"),
    ("connection", "keep-alive, x-mine"),
    ("keep-alive", "timeout=5"),
    ("proxy-connection", "keep-alive"),
    ("proxy-authenticate", "Basic"),
    ("proxy-authorization", "Basic YTpi"),
    ("te", "gzip"),
    ("te", "chunked;q=1"),
    ("trailer", "X-T"),
    ("upgrade", "h2c"),
    ("upgrade", "websocket"),
    ("http2-settings", "AAMAAABk"),
    ("expect", "100-continue"),
];

/// Fields that HTTP/2 does not have: a request with one is malformed.
const NOT_IN_HTTP2: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "te",
];

/// Fields that belong to the client and the apiserver, whatever `Connection` names.
const END_TO_END: &[(&str, &str)] = &[
    ("authorization", "Bearer t"),
    ("cookie", "a=b"),
    ("impersonate-user", "jane"),
    ("impersonate-uid", "1"),
    ("impersonate-group", "developers"),
    ("impersonate-extra-scopes", "view"),
];

/// Fields that look like others, and are none of them.
const HARMLESS: &[(&str, &str)] = &[
    ("accept", "application/json;as=Table"),
    ("accept-encoding", "gzip"),
    ("audit-id", "0a1b"),
    ("content-type", "application/json"),
    ("if-none-match", "\"a\""),
    ("kubectl-command", "kubectl get"),
    ("kubectl-session", "s"),
    ("origin", "https://kube.test"),
    ("referer", "https://kube.test/a"),
    (
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    ("user-agent", "kubectl/v1.37"),
    ("via", "1.1 other"),
    ("x-csrf-token", "t"),
    ("x-remote", "a"),
    ("x-remoteuser", "a"),
    ("x-request-id", "1"),
    ("x-stream-protocol-version", "v4.channel.k8s.io"),
];

/// The fields that the proxy sets itself.
const OWN: [(&str, &str); 3] = [
    ("x-forwarded-for", "127.0.0.1"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", HOST),
];

/// Sends a GET with these fields. Returns what reached the apiserver.
async fn send(
    proxy: &Proxy,
    upstream: &Upstream,
    protocol: Protocol,
    fields: &[(&str, &str)],
) -> Received {
    let response = proxy.request(protocol, "GET", "/", fields, b"").await;
    assert_eq!(response.code, 200, "{fields:?}: {}", response.text());
    upstream.next_request().await
}

/// Asserts that the apiserver received the fields of the proxy, and under the name of this field only that.
#[track_caller]
fn assert_own_fields(request: &Received, name: &str, context: &str) {
    for (own, value) in OWN {
        assert_eq!(request.lines(own), [value], "{context}");
    }
    let is_own = OWN.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
    assert!(
        is_own || request.lines(name).is_empty(),
        "{context}: {name} reached the apiserver"
    );
    for (name, value) in &request.headers {
        let value = String::from_utf8_lossy(value);
        assert!(!value.contains("forged"), "{context}: {name}: {value}");
    }
}

/// In lower case, in upper case, with `_` in place of `-`, and twice.
pub(crate) fn spellings(name: &str) -> Vec<Vec<String>> {
    let underscored = name.replace('-', "_");
    let mixed = name.replacen('-', "_", 1);
    let one = |name: String| vec![name];
    let mut spellings = vec![
        one(name.to_owned()),
        one(name.to_ascii_uppercase()),
        vec![name.to_owned(), name.to_owned()],
    ];
    if underscored != name {
        spellings.push(one(underscored));
        spellings.push(one(mixed));
    }
    spellings
}

/// Cases 29, 43.
#[tokio::test]
async fn forged_fields_never_reach_the_apiserver() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut cases = 0;
    for protocol in BOTH {
        for (name, names) in FORGED
            .iter()
            .flat_map(|name| spellings(name).into_iter().map(move |all| (name, all)))
        {
            // A name in upper case makes an HTTP/2 request malformed.
            if protocol == Protocol::Http2 && names[0] != names[0].to_ascii_lowercase() {
                continue;
            }
            cases += 1;
            let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "forged")).collect();
            let request = send(&proxy, &upstream, protocol, &fields).await;
            let context = format!("{protocol:?} {names:?}");
            assert_own_fields(&request, name, &context);
            for name in &names {
                assert_own_fields(&request, name, &context);
            }
        }
    }
    // `Connection` names the field, so that a parser which removes those fields last would remove the proxy's own.
    for name in FORGED {
        cases += 1;
        let fields = [
            ("connection", *name),
            (*name, "forged"),
            ("connection", "keep-alive"),
        ];
        let request = send(&proxy, &upstream, Protocol::Http1, &fields).await;
        assert_own_fields(&request, name, &format!("Connection: {name}"));
    }
    assert!(cases >= 60, "{cases} cases");
}

/// Case 29.
#[tokio::test]
async fn hop_by_hop_fields_never_reach_the_apiserver() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for protocol in BOTH {
        for (name, value) in HOP_BY_HOP {
            if protocol == Protocol::Http2 && NOT_IN_HTTP2.contains(name) {
                continue;
            }
            let fields = [(*name, *value), ("x-mine", "1"), ("x-other", "2")];
            let request = send(&proxy, &upstream, protocol, &fields).await;
            assert_eq!(request.lines(name), [""; 0], "{protocol:?} {name}: {value}");
            assert_eq!(
                request.lines("x-other"),
                ["2"],
                "{protocol:?} {name}: {value}"
            );
            let is_named = value.contains("x-mine");
            assert_eq!(
                request.lines("x-mine").is_empty(),
                is_named,
                "{name}: {value}"
            );
        }
    }
}

/// Case 29. Also when `Connection` names them, which would remove them from a careless proxy (CVE-2021-31999).
#[tokio::test]
async fn end_to_end_fields_always_reach_the_apiserver() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let all: Vec<_> = END_TO_END.iter().chain(HARMLESS).copied().collect();
    for protocol in BOTH {
        let request = send(&proxy, &upstream, protocol, &all).await;
        for (name, value) in &all {
            assert_eq!(request.lines(name), [*value], "{protocol:?} {name}");
        }
    }
    for (name, value) in END_TO_END {
        let upper = name.to_ascii_uppercase();
        for connection in [
            name.to_string(),
            upper,
            format!("close, {name}"),
            format!(",{name} , {name}"),
        ] {
            let fields = [("connection", connection.as_str()), (*name, *value)];
            let request = send(&proxy, &upstream, Protocol::Http1, &fields).await;
            assert_eq!(request.lines(name), [*value], "Connection: {connection}");
        }
    }
}
