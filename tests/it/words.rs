//! What a person reads: errors of the proxy in API discovery, and warnings that explain a refused credential.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{Request, Response, StatusCode, header};
use standin::{
    tcp::refused,
    upstream::{RequestBody, ResponseBody, full},
};

use crate::{
    proxy::World,
    responses::{BOTH, Protocol},
};

/// What kubectl sends with `kubectl get pods` and an empty discovery cache.
const DISCOVERY: (&str, &str) = (
    "Accept",
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
);
const KUBECTL: (&str, &str) = ("Kubectl-Command", "kubectl get");
const NO_TOKEN: &str = "299 kube-tls-proxy \"this request has no token; a client certificate ends at this proxy, so log in with a token\"";
const EXPIRED: &str =
    "299 kube-tls-proxy \"the token expired at 2001-09-09T01:46:40Z; get a new one\"";

/// The bytes of a 401 or 403 of an apiserver, which must not change.
const STATUS: &str = r#"{"kind":"Status", "message":"as the apiserver wrote it"}"#;

/// Responds with the status code that is the path, and with a warning of its own.
async fn status_of_path(request: Request<RequestBody>) -> Response<ResponseBody> {
    let code: u16 = request.uri().path().trim_matches('/').parse().unwrap();
    let mut response = Response::new(full(STATUS));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    let headers = response.headers_mut();
    headers.insert(
        header::WARNING,
        "299 - \"of the apiserver\"".parse().unwrap(),
    );
    response
}

fn jwt(claims: &str) -> String {
    format!("Bearer e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

#[tokio::test]
async fn discovery_of_kubectl_gets_sentence_without_retry_after() {
    let world = World::new();
    let proxy = world.proxy(refused().await).start();
    let sentence =
        "kube-tls-proxy: the apiserver does not accept connections; it may be restarting";
    for protocol in BOTH {
        for target in ["/api?timeout=32s", "/apis", "/version", "/openapi/v3"] {
            let fields = [DISCOVERY, KUBECTL];
            let response = proxy.request(protocol, "GET", target, &fields, b"").await;
            assert_eq!(
                (response.code, &*response.text()),
                (502, sentence),
                "{target}"
            );
            assert_eq!(response.lines("content-type"), ["text/plain"]);
            assert_eq!(response.lines("retry-after"), Vec::<&str>::new());
        }
        // A controller that starts now tries again.
        let response = proxy
            .request(protocol, "GET", "/apis", &[DISCOVERY], b"")
            .await;
        assert_eq!((response.code, &*response.text()), (502, sentence));
        assert_eq!(response.lines("retry-after"), ["1"]);
        // Everything else is a `Status`, for kubectl too.
        let response = proxy
            .request(protocol, "GET", "/api/v1/pods", &[KUBECTL], b"")
            .await;
        response.assert_status(503, "ServiceUnavailable");
        assert_eq!(response.lines("retry-after"), ["1"]);
    }
}

#[tokio::test]
async fn discovery_of_unknown_host_gets_403_that_kubectl_prints() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for target in ["/api", "/version"] {
        let mut http1 = proxy.client().http1().await;
        let response = http1.get("other.test", target, "").await;
        assert_eq!(response.status, 403);
        let sentence = "kube-tls-proxy: no cluster is configured for this host name; ";
        assert!(response.text().starts_with(sentence), "{}", response.text());
        let http2 = proxy.client().http2().await;
        let response = http2
            .get(&format!("https://other.test{target}"))
            .await
            .unwrap();
        assert_eq!(response.status, 403);
        assert!(response.text().starts_with(sentence), "{}", response.text());
        assert_eq!(response.headers[header::CONTENT_TYPE], "text/plain");
    }
    assert_eq!(upstream.connections().len(), 0);
}

#[tokio::test]
async fn refused_credential_gets_warning_and_keeps_its_body() {
    let world = World::new();
    let upstream = world.apiserver().http(status_of_path).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let (expired, valid) = (jwt(r#"{"exp":1e9}"#), jwt(r#"{"exp":99999999999}"#));
    for protocol in BOTH {
        for (target, token, hint) in [
            ("/401", None, Some(NO_TOKEN)),
            ("/403", None, Some(NO_TOKEN)),
            ("/401", Some(&*expired), Some(EXPIRED)),
            ("/401", Some(&*valid), None),
            ("/401", Some("Bearer opaque"), None),
            // A permission is missing, or the apiserver has accepted the token.
            ("/403", Some(&*expired), None),
            ("/200", None, None),
            ("/200", Some(&*expired), None),
            ("/404", None, None),
            ("/500", None, None),
        ] {
            let field = token.map(|token| ("Authorization", token));
            let fields = Vec::from_iter(field);
            let response = proxy.request(protocol, "GET", target, &fields, b"").await;
            let case = format!("{protocol:?} {target} {token:?}");
            assert_eq!(format!("/{}", response.code), target, "{case}");
            assert_eq!(response.text(), STATUS, "{case}");
            let own = "299 - \"of the apiserver\"";
            let expected: Vec<_> = [own].into_iter().chain(hint).collect();
            assert_eq!(response.lines("warning"), expected, "{case}");
        }
    }
}

#[tokio::test]
async fn refused_upgrade_gets_warning() {
    let world = World::new();
    let upstream = world.apiserver().http(status_of_path).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    let response = proxy
        .request(Protocol::Http1, "GET", "/403", &upgrade, b"")
        .await;
    assert!(
        response.lines("warning").contains(&NO_TOKEN),
        "{response:?}"
    );
    let expired = jwt(r#"{"exp":1000000000}"#);
    let fields = [&upgrade[..], &[("Authorization", &expired)]].concat();
    let response = proxy
        .request(Protocol::Http1, "GET", "/401", &fields, b"")
        .await;
    assert!(response.lines("warning").contains(&EXPIRED), "{response:?}");
}

#[tokio::test]
async fn hints_false_adds_no_warning() {
    let world = World::new();
    let upstream = world.apiserver().http(status_of_path).start().await;
    let mut setup = world.proxy(upstream.address());
    setup.config.hints = false;
    let proxy = setup.start();
    let expired = jwt(r#"{"exp":1000000000}"#);
    for protocol in BOTH {
        for fields in [&[][..], &[("Authorization", &*expired)]] {
            let response = proxy.request(protocol, "GET", "/401", fields, b"").await;
            assert_eq!(response.lines("warning"), ["299 - \"of the apiserver\""]);
        }
    }
}
