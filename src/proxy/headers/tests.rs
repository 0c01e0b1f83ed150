//! Which header fields pass, which are removed, and which the proxy sets.

use super::*;
use crate::http1::RequestParser;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| {
            (
                name.parse::<HeaderName>().unwrap(),
                value.parse::<HeaderValue>().unwrap(),
            )
        })
        .collect()
}

fn rewrite(headers: &mut HeaderMap) {
    let forwarded = Forwarded {
        client: &HeaderValue::from_static("192.0.2.1"),
        host: "kube.example",
        request_id: HeaderValue::from_static("7c3b"),
    };
    rewrite_request(headers, forwarded, None);
}

fn rewritten(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut headers = map(fields);
    rewrite(&mut headers);
    let mut fields: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    fields.sort();
    fields
}

fn ours() -> Vec<(String, String)> {
    [
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-host", "kube.example"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "7c3b"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// The map would grow, and move all fields, in nearly every request.
#[test]
fn fields_of_the_proxy_fit_into_a_parsed_head() {
    for fields in 0..40 {
        let lines: String = (0..fields).map(|n| format!("a{n}: b\r\n")).collect();
        let mut unread = format!("GET / HTTP/1.1\r\n{lines}\r\n").into();
        let head = RequestParser::new(100, 10_000).take(&mut unread);
        let mut headers = head.unwrap().unwrap().parts.headers;
        let before = headers.capacity();
        rewrite(&mut headers);
        assert_eq!(headers.capacity(), before, "{fields} fields");
    }
}

#[test]
fn drops_fields_named_by_every_connection_line() {
    let fields = [
        ("connection", "close, a"),
        ("connection", "B , keep-alive"),
        ("a", "1"),
        ("b", "2"),
    ];
    assert_eq!(rewritten(&fields), ours());
}

#[test]
fn no_connection_line_removes_identity() {
    let fields = [
        (
            "connection",
            "authorization, impersonate-user, x-forwarded-for, sec-websocket-protocol",
        ),
        ("authorization", "Bearer t"),
        ("impersonate-user", "bob"),
        ("sec-websocket-protocol", "token"),
    ];
    let kept = rewritten(&fields);
    for field in [
        ("authorization", "Bearer t"),
        ("impersonate-user", "bob"),
        ("sec-websocket-protocol", "token"),
        ("x-forwarded-for", "192.0.2.1"),
    ] {
        assert!(
            kept.contains(&(field.0.into(), field.1.into())),
            "{field:?} in {kept:?}"
        );
    }
}

#[test]
fn drops_forwarding_headers_in_every_spelling() {
    for name in [
        "X-Remote-User",
        "x-remote-group",
        "X-Remote-Extra-Foo",
        "X-Remote-Uid",
        "x_remote_user",
        "X-Forwarded-For",
        "x-forwarded-prefix",
        "X_Forwarded_Host",
        "Forwarded",
        "X-Real-Ip",
        "x_real_ip",
        "X-Forwarded-Client-Cert",
    ] {
        assert_eq!(
            rewritten(&[
                (&name.to_ascii_lowercase(), "evil"),
                (&name.to_ascii_lowercase(), "evil")
            ]),
            ours(),
            "{name}"
        );
    }
}

#[test]
fn keeps_end_to_end_fields() {
    let fields = [
        ("accept-encoding", "gzip"),
        ("origin", "https://a"),
        ("sec-websocket-protocol", "a, b"),
        ("x-custom", "1"),
        ("x-custom", "2"),
    ];
    let kept = rewritten(&fields);
    for field in fields {
        assert!(
            kept.contains(&(field.0.into(), field.1.into())),
            "{field:?}"
        );
    }
    assert_eq!(kept.len(), fields.len() + ours().len());
}

#[test]
fn te_survives_only_as_trailers() {
    for (te, kept) in [
        ("trailers", true),
        ("gzip, Trailers", true),
        ("gzip", false),
    ] {
        let fields = rewritten(&[("te", te)]);
        assert_eq!(
            fields.contains(&("te".into(), "trailers".into())),
            kept,
            "{te}"
        );
        assert_eq!(fields.len(), ours().len() + usize::from(kept));
    }
}

/// A small random generator with a fixed seed, so that every run tries the same thousands of headers.
struct Dice(u64);

impl Dice {
    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        // Knuth's MMIX constants. Only the high bits are random enough.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        &from[usize::try_from(self.0 >> 33).unwrap() % from.len()]
    }
}

const NAMES: [&str; 24] = [
    "accept",
    "authorization",
    "cookie",
    "forwarded",
    "http2-settings",
    "impersonate-extra-a",
    "impersonate-user",
    "keep-alive",
    "origin",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-a",
    "x-b",
    "x-forwarded-for",
    "x-forwarded-server",
    "x-real-ip",
    "x-remote-user",
    "x_forwarded_for",
    "x_remote_group",
    "expect",
];
const NEVER: [&str; 14] = [
    "forwarded",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-server",
    "x-real-ip",
    "x-remote-user",
    "x_forwarded_for",
    "x_remote_group",
    "expect",
];
const ALWAYS: [&str; 4] = [
    "authorization",
    "cookie",
    "impersonate-extra-a",
    "impersonate-user",
];

/// For any fields in any order: hop-by-hop fields and forwarding headers of the client never pass, identity
/// always passes, each of the proxy's own fields is there once, and everything else passes unless a
/// `Connection` line names it.
#[test]
fn rules_hold_for_random_mixtures_of_fields() {
    let mut dice = Dice(7);
    for round in 0..4_000 {
        let mut fields = Vec::new();
        let mut named = Vec::new();
        for _ in 0..*dice.pick(&[0, 1, 3, 8, 20]) {
            if *dice.pick(&[true, false, false, false]) {
                let names = [*dice.pick(&NAMES), *dice.pick(&NAMES)];
                let comma = *dice.pick(&[",", ", ", " ,\t", ",,"]);
                fields.push(("connection", names.join(comma).to_ascii_uppercase()));
                named.extend(names);
            } else {
                let value = dice.pick(&["1", "trailers", "a, b", ""]);
                fields.push((*dice.pick(&NAMES), (*value).to_owned()));
            }
        }
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let kept = rewritten(&fields);
        let kept_of = |name: &str| kept.iter().filter(|(kept, _)| kept == name).count();
        let sent_of = |name: &str| fields.iter().filter(|(sent, _)| *sent == name).count();
        for name in NEVER {
            assert_eq!(kept_of(name), 0, "{round}: {name} of {fields:?}");
        }
        for name in ALWAYS {
            assert_eq!(
                kept_of(name),
                sent_of(name),
                "{round}: {name} of {fields:?}"
            );
        }
        for name in ["accept", "origin", "x-a", "x-b"] {
            let expected = if named.contains(&name) {
                0
            } else {
                sent_of(name)
            };
            assert_eq!(kept_of(name), expected, "{round}: {name} of {fields:?}");
        }
        for field in ours() {
            assert!(kept.contains(&field), "{round}: {field:?} of {fields:?}");
            assert_eq!(kept_of(&field.0), 1);
        }
        let te = u8::from(fields.contains(&("te", "trailers")));
        assert_eq!(kept_of("te"), usize::from(te), "{round}: {fields:?}");
        assert_eq!(kept_of("connection"), 0);
    }
}

#[test]
fn upgrade_keeps_exactly_its_two_fields() {
    let mut headers = map(&[
        ("connection", "keep-alive, Upgrade, http2-settings"),
        ("upgrade", "WebSocket"),
        ("http2-settings", "x"),
        ("sec-websocket-key", "k"),
    ]);
    let client = HeaderValue::from_static("192.0.2.1");
    let forwarded = Forwarded {
        client: &client,
        host: "kube.example",
        request_id: HeaderValue::from_static("7c3b"),
    };
    rewrite_request(
        &mut headers,
        forwarded,
        Some(HeaderValue::from_static("websocket")),
    );
    let lines = |name: &str| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
    assert_eq!(lines("connection"), ["Upgrade"]);
    assert_eq!(lines("upgrade"), ["websocket"]);
    assert_eq!(lines("sec-websocket-key"), ["k"]);
    assert_eq!(headers.len(), 7);
}

#[test]
fn responses_lose_hop_by_hop_fields_only() {
    let mut headers = map(&[
        ("connection", "close, x-internal"),
        ("x-internal", "1"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "h2c"),
        ("proxy-authenticate", "Basic"),
        ("www-authenticate", "Basic"),
        ("warning", "299 - \"a\""),
        ("warning", "299 - \"b\""),
        ("x-remote-user", "not a request"),
        ("trailer", "x-checksum"),
    ]);
    rewrite_response(&mut headers);
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["trailer", "warning", "www-authenticate", "x-remote-user"]
    );
    assert_eq!(headers.get_all("warning").iter().count(), 2);
}

#[test]
fn fast_path_covers_every_removed_field() {
    let hop_by_hop = HOP_BY_HOP.into_iter().chain([header::CONNECTION]);
    assert!(hop_by_hop.clone().all(|name| may_be_hop_by_hop(&name)));
    let forwarding = ["x-remote-user", "x_remote_group", "forwarded", "x-real-ip"];
    let removed = hop_by_hop
        .chain([header::EXPECT, header::TRAILER])
        .chain(forwarding.map(HeaderName::from_static));
    for name in removed {
        assert!(needs_rewrite(&name), "{name}");
        let mut headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("x"))]);
        let client = HeaderValue::from_static("192.0.2.1");
        let forwarded = Forwarded {
            client: &client,
            host: "kube.example",
            request_id: HeaderValue::from_static("7c3b"),
        };
        rewrite_request(&mut headers, forwarded, None);
        assert!(!headers.contains_key(&name), "{name}");
    }
    for name in [
        "user-agent",
        "accept",
        "authorization",
        "content-type",
        "host",
    ] {
        assert!(!needs_rewrite(&HeaderName::from_static(name)));
    }
}
