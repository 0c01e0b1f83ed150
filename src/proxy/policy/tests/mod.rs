//! Which requests may pass, rule by rule, and which cluster they go to.

mod prefixes;

use http::{Request, Version};
use standin::pki::Ca;

use super::*;
use crate::upstream::{ClientTls, Endpoints};

fn route(name: &str) -> Arc<Route> {
    let server_name = "apiserver.test".try_into().unwrap();
    let tls = ClientTls::new(Arc::new(Ca::new("cluster").roots()), server_name).unwrap();
    let endpoints = Arc::new(Endpoints::new("192.0.2.1", 6443));
    Arc::new(Route::new(Arc::new(Cluster::new(
        crate::metrics::ClusterLabels::default().label(name),
        String::new(),
        endpoints,
        tls,
    ))))
}

fn routes() -> Routes {
    let mut routes = Routes::default();
    for (host, name) in [
        ("kube.test", "kube"),
        ("*.b.test", "wildcard"),
        ("x.b.test", "exact"),
        ("192.0.2.7", "address"),
        ("2001:db8::7", "address"),
    ] {
        routes.add(host, &route(name));
    }
    routes
}

fn limits() -> Limits {
    Limits {
        header_fields: 4,
        header_bytes: 60,
        uri_bytes: 10,
        ..Limits::default()
    }
}

fn head(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn verdict(head: &Parts) -> Result<Option<UpgradeToken>, Rejection> {
    admit(head, &routes(), &limits(), ConnectionNames::default(), None)
        .map(|admitted| admitted.upgrade)
}

fn with(fields: &[(&str, &str)]) -> Result<Option<UpgradeToken>, Rejection> {
    verdict(&head("POST", "https://kube.test/", fields))
}

#[test]
fn uri_limit_counts_path_and_query() {
    for (uri, expected) in [
        ("https://kube.test/23456789T", Ok(None)),
        ("https://kube.test/2345?789T", Ok(None)),
        ("/23456789T", Err(Rejection::NoHost)),
        ("https://kube.test/23456789TE", Err(Rejection::Uri(10))),
        ("https://kube.test/2345?789TE", Err(Rejection::Uri(10))),
        ("https://kube.test?2345678T", Ok(None)),
    ] {
        assert_eq!(verdict(&head("GET", uri, &[])), expected, "{uri}");
    }
}

#[test]
fn field_limit_counts_every_line() {
    let fields = [
        ("cookie", "a"),
        ("cookie", "b"),
        ("x", "1"),
        ("y", "2"),
        ("z", "3"),
    ];
    assert_eq!(with(&fields[..4]), Ok(None));
    assert_eq!(with(&fields), Err(Rejection::HeaderFields(4)));
}

#[test]
fn byte_limit_counts_names_and_values_of_every_line() {
    let value = "v".repeat(59);
    assert_eq!(with(&[("x", &value)]), Ok(None));
    assert_eq!(with(&[("xy", &value)]), Err(Rejection::HeaderBytes(60)));
    let halves = [("x", &value[..29]), ("x", &value[..29])];
    assert_eq!(with(&halves), Ok(None));
    let more = [("x", &value[..29]), ("x", &value[..30])];
    assert_eq!(with(&more), Err(Rejection::HeaderBytes(60)));
}

#[test]
fn body_length_must_be_unambiguous() {
    const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");
    const LENGTH: (&str, &str) = ("content-length", "1");
    for (fields, expected) in [
        (&[LENGTH][..], Ok(None)),
        (&[CHUNKED], Ok(None)),
        (&[("transfer-encoding", "Chunked")], Ok(None)),
        (&[LENGTH, LENGTH], Err(Rejection::AmbiguousLength)),
        (&[("content-length", "")], Err(Rejection::AmbiguousLength)),
        (&[CHUNKED, LENGTH], Err(Rejection::AmbiguousLength)),
        (&[CHUNKED, CHUNKED], Err(Rejection::TransferEncoding)),
        (
            &[("transfer-encoding", "gzip, chunked")],
            Err(Rejection::TransferEncoding),
        ),
        (
            &[("transfer-encoding", "chunked, chunked")],
            Err(Rejection::TransferEncoding),
        ),
        (
            &[("transfer-encoding", "chunked;q=1")],
            Err(Rejection::TransferEncoding),
        ),
        (
            &[("transfer-encoding", "identity")],
            Err(Rejection::TransferEncoding),
        ),
        (
            &[("transfer-encoding", "xchunked")],
            Err(Rejection::TransferEncoding),
        ),
        (
            &[("transfer-encoding", "")],
            Err(Rejection::TransferEncoding),
        ),
    ] {
        assert_eq!(with(fields), expected, "{fields:?}");
    }
}

#[test]
fn only_100_continue_is_accepted_in_expect() {
    for (expect, expected) in [
        ("100-continue", Ok(None)),
        ("100-Continue", Ok(None)),
        ("200-ok", Err(Rejection::Expectation)),
        ("100-continue, x", Err(Rejection::Expectation)),
        ("", Err(Rejection::Expectation)),
    ] {
        assert_eq!(with(&[("expect", expect)]), expected, "{expect:?}");
    }
}

#[test]
fn every_expect_line_is_checked() {
    let fields = [("expect", "100-continue"), ("expect", "x")];
    assert_eq!(with(&fields), Err(Rejection::Expectation));
}

#[test]
fn target_is_path_or_asterisk_with_options() {
    for (method, uri, expected) in [
        ("GET", "https://kube.test", Ok(None)),
        ("GET", "https://kube.test//a", Ok(None)),
        ("GET", "http://kube.test/", Err(Rejection::Scheme)),
        ("GET", "ws://kube.test/", Err(Rejection::Scheme)),
        ("GET", "kube.test:443", Err(Rejection::Target)),
        ("GET", "*", Err(Rejection::Target)),
        ("CONNECT", "kube.test:443", Err(Rejection::Connect)),
        ("CONNECT", "https://kube.test/", Err(Rejection::Connect)),
    ] {
        assert_eq!(verdict(&head(method, uri, &[])), expected, "{method} {uri}");
    }
    let options = head("OPTIONS", "*", &[("host", "kube.test")]);
    assert_eq!(verdict(&options), Ok(None));
}

#[test]
fn request_names_one_valid_host() {
    for (uri, hosts, expected) in [
        ("/", &[][..], Err(Rejection::NoHost)),
        ("/", &["kube.test"], Ok(None)),
        ("/", &["kube.test:443"], Ok(None)),
        ("/", &["kube.test", "kube.test"], Err(Rejection::BadHost)),
        ("/", &[""], Err(Rejection::BadHost)),
        ("/", &[":443"], Err(Rejection::BadHost)),
        ("/", &["kube.test:"], Ok(None)),
        ("/", &["kube.test:65535"], Ok(None)),
        ("/", &["kube.test:65536"], Err(Rejection::BadHost)),
        ("/", &["kube.test:99999"], Err(Rejection::BadHost)),
        ("/", &["kube.test:abc"], Err(Rejection::BadHost)),
        ("/", &["kube.test:+443"], Err(Rejection::BadHost)),
        ("/", &["[::1]:abc"], Err(Rejection::BadHost)),
        ("https://kube.test:99999/", &[], Err(Rejection::BadHost)),
        ("/", &["u@kube.test"], Err(Rejection::BadHost)),
        ("/", &["kube.test/"], Err(Rejection::BadHost)),
        ("/", &["kube.test,kube.test"], Err(Rejection::NotOurs)),
        ("/", &["other.test"], Err(Rejection::NotOurs)),
        ("https://kube.test/", &["KUBE.TEST"], Ok(None)),
        ("https://kube.test/", &["other.test"], Ok(None)),
        (
            "https://kube.test/",
            &["other.test/"],
            Err(Rejection::BadHost),
        ),
        (
            "https://other.test/",
            &["kube.test"],
            Err(Rejection::NotOurs),
        ),
        (
            "https://kube.test/",
            &["kube.test", "kube.test"],
            Err(Rejection::BadHost),
        ),
        ("https://u:p@kube.test/", &[], Err(Rejection::BadHost)),
    ] {
        let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        let verdict = verdict(&head("GET", uri, &fields));
        assert_eq!(verdict, expected, "{uri} {hosts:?}");
    }
}

#[test]
fn http2_authority_and_host_are_compared_as_origins() {
    for (authority, host, is_same) in [
        ("kube.test", "kube.test", true),
        ("kube.test", "KUBE.Test", true),
        ("kube.test:443", "kube.test", true),
        ("kube.test", "kube.test:443", true),
        ("kube.test:", "kube.test:0443", true),
        ("kube.test:6443", "kube.test:6443", true),
        ("192.0.2.7:443", "192.0.2.7", true),
        ("[2001:db8::7]", "[2001:DB8::7]:443", true),
        ("kube.test:6443", "kube.test", false),
        ("kube.test", "kube.test:80", false),
        ("kube.test", "x.b.test", false),
        ("kube.test", "kube.test.b.test", false),
        ("kube.test", "kube.test:x", false),
    ] {
        let uri = format!("https://{authority}/");
        let mut head = head("GET", &uri, &[("host", host)]);
        head.version = Version::HTTP_2;
        let expected = if is_same {
            Ok(None)
        } else {
            Err(Rejection::HostMismatch)
        };
        assert_eq!(verdict(&head), expected, "{authority} {host}");
    }
}

/// A request, the address that its client connected to, and the name of the handshake.
fn find_cluster(
    routes: &Routes,
    version: Version,
    host: Option<&str>,
    names: ConnectionNames<'_>,
) -> Result<String, Rejection> {
    let fields: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
    let mut head = head("GET", "/healthz", &fields);
    head.version = version;
    admit(&head, routes, &limits(), names, None)
        .map(|admitted| admitted.route.cluster.name().to_owned())
}

#[test]
fn sole_cluster_serves_health_checks_by_address() {
    const LOCAL: &str = "10.0.0.7:8443";
    const MAPPED: &str = "[::ffff:10.0.0.7]:8443";
    const NO_HOST: Result<&str, Rejection> = Err(Rejection::NoHost);
    const NOT_OURS: Result<&str, Rejection> = Err(Rejection::NotOurs);
    for (version, host, local, of_sole, of_several) in [
        // kubeadm's HAProxy page, and what `option httpchk` sends without more.
        (Version::HTTP_10, None, LOCAL, Ok("kube"), NO_HOST),
        (Version::HTTP_10, None, MAPPED, Ok("kube"), NO_HOST),
        (Version::HTTP_11, None, LOCAL, NO_HOST, NO_HOST),
        (Version::HTTP_2, None, LOCAL, NO_HOST, NO_HOST),
        // The checks of clouds, with the address of the target or of the load balancer, and probes of the kubelet.
        (
            Version::HTTP_11,
            Some("10.0.0.7:8443"),
            LOCAL,
            Ok("kube"),
            NOT_OURS,
        ),
        (
            Version::HTTP_11,
            Some("10.0.0.7"),
            LOCAL,
            Ok("kube"),
            NOT_OURS,
        ),
        (
            Version::HTTP_11,
            Some("[2001:DB8::1]"),
            "[2001:db8::1]:1",
            Ok("kube"),
            NOT_OURS,
        ),
        (
            Version::HTTP_11,
            Some("198.51.100.1:443"),
            LOCAL,
            Ok("kube"),
            NOT_OURS,
        ),
        // A name that resolves to this address is not ours.
        (
            Version::HTTP_11,
            Some("10.0.0.7.nip.test"),
            LOCAL,
            NOT_OURS,
            NOT_OURS,
        ),
        (
            Version::HTTP_11,
            Some("localhost"),
            "127.0.0.1:1",
            NOT_OURS,
            NOT_OURS,
        ),
        (
            Version::HTTP_10,
            Some("rebound.test"),
            LOCAL,
            NOT_OURS,
            NOT_OURS,
        ),
    ] {
        let names = ConnectionNames {
            sni: None,
            local: Some(local.parse().unwrap()),
        };
        let mut sole = routes();
        sole.set_sole(&route("kube"));
        for (routes, expected) in [(sole, of_sole), (routes(), of_several)] {
            let found = find_cluster(&routes, version, host, names);
            assert_eq!(
                found.as_deref().map_err(|error| *error),
                expected,
                "{version:?} {host:?} {local}"
            );
        }
        // A name that the client has verified says which cluster, even without a host.
        let names = ConnectionNames {
            sni: Some("x.b.test"),
            ..names
        };
        if version == Version::HTTP_10 && host.is_none() {
            let found = find_cluster(&routes(), version, host, names);
            assert_eq!(found.as_deref(), Ok("exact"));
        }
    }
}

#[test]
fn upgrade_needs_one_known_token_and_connection_option() {
    const WEBSOCKET: Result<Option<UpgradeToken>, Rejection> = Ok(Some(UpgradeToken::WebSocket));
    for (fields, expected) in [
        (
            &[("connection", "Upgrade"), ("upgrade", "websocket")][..],
            WEBSOCKET,
        ),
        (
            &[
                ("connection", "keep-alive, upgrade"),
                ("upgrade", "WebSocket"),
            ],
            WEBSOCKET,
        ),
        (
            &[
                ("connection", "a"),
                ("connection", "UPGRADE"),
                ("upgrade", "websocket"),
            ],
            WEBSOCKET,
        ),
        (
            &[("connection", "upgrade"), ("upgrade", "spdy/3.1")],
            Ok(Some(UpgradeToken::Spdy)),
        ),
        (
            &[("connection", "upgrade"), ("upgrade", "SPDY/3.0")],
            Ok(None),
        ),
        (&[("connection", "upgrade"), ("upgrade", "h2c")], Ok(None)),
        (
            &[("connection", "upgrade"), ("upgrade", "websocket, h2c")],
            Ok(None),
        ),
        (
            &[
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("upgrade", "h2c"),
            ],
            Ok(None),
        ),
        (
            &[
                ("connection", "upgrade"),
                ("upgrade", "h2c"),
                ("upgrade", "websocket"),
            ],
            Ok(None),
        ),
        (
            &[("connection", "upgrades"), ("upgrade", "websocket")],
            Ok(None),
        ),
        (&[("upgrade", "websocket")], Ok(None)),
        (&[("connection", "upgrade")], Ok(None)),
    ] {
        assert_eq!(with(fields), expected, "{fields:?}");
    }
}

#[test]
fn upgrade_has_no_body_and_is_http1_1() {
    const ASKED: [(&str, &str); 2] = [("connection", "upgrade"), ("upgrade", "SPDY/3.1")];
    for (field, expected) in [
        (("content-length", "0"), Ok(Some(UpgradeToken::Spdy))),
        (("content-length", "1"), Err(Rejection::UpgradeWithBody)),
        (
            ("transfer-encoding", "chunked"),
            Err(Rejection::UpgradeWithBody),
        ),
    ] {
        assert_eq!(with(&[ASKED[0], ASKED[1], field]), expected, "{field:?}");
    }
    for version in [Version::HTTP_10, Version::HTTP_2] {
        let mut head = head("GET", "https://kube.test/", &ASKED);
        head.version = version;
        assert_eq!(verdict(&head), Ok(None), "{version:?}");
    }
}

#[test]
fn upgrade_is_granted_by_exactly_this_protocol() {
    for (lines, granted) in [
        (&["websocket"][..], true),
        (&["WebSocket"], true),
        (&[], false),
        (&["SPDY/3.1"], false),
        (&["websocket", "websocket"], false),
        (&["websocket, SPDY/3.1"], false),
    ] {
        let headers: HeaderMap = lines
            .iter()
            .map(|line| (header::UPGRADE, line.parse().unwrap()))
            .collect();
        assert_eq!(
            UpgradeToken::WebSocket.is_granted_by(&headers),
            granted,
            "{lines:?}"
        );
    }
}

#[test]
fn route_is_found_for_every_spelling_of_host() {
    for (host, sni, expected) in [
        ("kube.test", None, Some("kube")),
        ("KUBE.TEST", None, Some("kube")),
        ("kube.test.", None, Some("kube")),
        ("kube.test:443", None, Some("kube")),
        ("Kube.test.:6443", None, Some("kube")),
        ("192.0.2.7", None, Some("address")),
        ("192.0.2.7:1", None, Some("address")),
        ("[2001:db8::7]", None, Some("address")),
        ("[2001:DB8::7]:443", None, Some("address")),
        // A wildcard stands for one label, and an exact name wins over it.
        ("y.b.test", None, Some("wildcard")),
        ("*.b.test", None, Some("wildcard")),
        ("x.b.test", None, Some("exact")),
        ("b.test", None, None),
        (".b.test", None, None),
        ("y.z.b.test", None, None),
        // The TLS handshake decides for an address and for `localhost` only.
        ("localhost:6443", Some("kube.test"), Some("kube")),
        ("LOCALHOST", Some("kube.test"), Some("kube")),
        ("localhost", None, None),
        ("localhost.evil.test", Some("kube.test"), None),
        ("192.0.2.1", Some("kube.test"), Some("kube")),
        ("[2001:db8::1]:6443", Some("y.b.test"), Some("wildcard")),
        ("192.0.2.7", Some("kube.test"), Some("address")),
        ("192.0.2.1", None, None),
        ("192.0.2.1", Some("other.test"), None),
        ("other.test", Some("kube.test"), None),
        ("kube.test..", Some("kube.test"), None),
        ("192.0.2.1.nip.test", Some("kube.test"), None),
    ] {
        let routes = routes();
        let found = routes.find(&host.parse().unwrap(), sni);
        let found = found.ok().map(|route| route.cluster.name());
        assert_eq!(found, expected, "{host} {sni:?}");
    }
}

#[test]
fn routes_know_which_names_are_served() {
    for (name, served) in [("kube.test", true), ("y.b.test", true), ("b.test", false)] {
        assert_eq!(routes().serves(name), served, "{name}");
    }
}
