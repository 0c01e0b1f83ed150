//! HTTP/2 requests that would be several requests, or another one, if the proxy wrote them to an HTTP/1.1 apiserver as
//! they are.

use standin::{
    client::TlsConnection,
    frames::{self, END_STREAM, FrameConnection, kind},
    within,
};

use super::{Echo, Partials};
use crate::proxy::{HOST, Proxy, World};

/// A request that no case may smuggle in.
const SMUGGLED: &str = "GET /s HTTP/1.1\r\nHost: kube.test\r\n\r\n";

/// One request, and what becomes of it.
struct Case {
    name: String,
    fields: Vec<(String, String)>,
    /// One DATA frame each.
    data: Vec<String>,
    trailers: Vec<(String, String)>,
    expected: Expected,
}

enum Expected {
    /// The apiserver receives this request, and the client its response.
    Forwarded(String),
    /// The client gets an error status, a reset or a GOAWAY, and the apiserver no whole request.
    Refused,
    /// As `Refused`, or the apiserver receives this request, which has no body: the proxy may forward the head of a
    /// request before it sees the data that contradicts its length of 0.
    RefusedOrBare(&'static str),
}

/// A GET of `/a`.
fn get(name: impl Into<String>) -> Case {
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", HOST),
        (":path", "/a"),
    ];
    Case {
        name: name.into(),
        fields: owned(&fields),
        data: Vec::new(),
        trailers: Vec::new(),
        expected: Expected::Refused,
    }
}

/// A POST to `/a` with this body in one DATA frame.
fn post(name: impl Into<String>, body: &str) -> Case {
    get(name).field(":method", "POST").data(body)
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    fields.iter().map(owned).collect()
}

impl Case {
    /// Replaces the field with this name, or adds it.
    fn field(mut self, name: &str, value: &str) -> Self {
        match self.fields.iter_mut().find(|(known, _)| known == name) {
            Some(field) => field.1 = value.to_owned(),
            None => self = self.another(name, value),
        }
        self
    }

    /// Adds a field, even if there is one with the same name.
    fn another(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(known, _)| known != name);
        self
    }

    fn data(mut self, data: &str) -> Self {
        self.data.push(data.to_owned());
        self
    }

    fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn forwarded(mut self, request: impl Into<String>) -> Self {
        self.expected = Expected::Forwarded(request.into());
        self
    }
}

/// Line ends and NUL in every place of a head: written to HTTP/1.1, each would begin a new line or end the text.
fn line_ends() -> Vec<Case> {
    let mut cases = Vec::new();
    for (end, called) in [("\r\n", "CR LF"), ("\r", "CR"), ("\n", "LF"), ("\0", "NUL")] {
        for (place, value) in [
            ("alone", end.to_owned()),
            ("at the end", format!("a{end}")),
            (
                "before a field",
                format!("a{end}transfer-encoding: chunked"),
            ),
            ("before a request", format!("a{end}{end}{SMUGGLED}")),
        ] {
            for name in [
                ":method",
                ":scheme",
                ":authority",
                ":path",
                "host",
                "x",
                "cookie",
            ] {
                let value = match name {
                    ":path" => format!("/{value}"),
                    "host" | ":authority" => value.replacen('a', HOST, 1),
                    _ => value.clone(),
                };
                cases.push(get(format!("{called} {place} in {name}")).field(name, &value));
            }
        }
        for name in [
            format!("x{end}"),
            format!("x{end}y"),
            format!("x: y{end}transfer-encoding"),
        ] {
            cases.push(get(format!("{called} in a name")).field(&name, "chunked"));
        }
    }
    cases
}

/// Names that HTTP/1.1 would read differently, and fields that HTTP/2 does not have.
fn names() -> Vec<Case> {
    let mut cases = Vec::new();
    for name in [
        "X",
        "Host",
        "Content-Length",
        "x ",
        " x",
        "x:",
        "x: y",
        "x\t",
        "x\x7f",
        "x(",
        "xä",
        "",
        "transfer-encoding ",
        "transfer-encoding:chunked",
    ] {
        cases.push(get(format!("name {name:?}")).another(name, "chunked"));
    }
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "gzip"),
        ("transfer-encoding", "identity"),
        ("transfer-encoding", ""),
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("connection", "transfer-encoding"),
        ("connection", "x"),
        ("connection", ""),
        ("upgrade", "websocket"),
        ("upgrade", "h2c"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "chunked"),
        ("te", "gzip"),
        ("te", "trailers, chunked"),
    ] {
        cases.push(get(format!("{name}: {value}")).another(name, value));
        cases.push(post(format!("{name}: {value}, with a body"), "0\r\n\r\n").another(name, value));
    }
    cases.push(
        get("http2-settings")
            .another("http2-settings", "AAMAAABk")
            .forwarded("GET/a"),
    );
    cases.push(
        get("te: trailers")
            .another("te", "trailers")
            .forwarded("GET/a"),
    );
    cases.push(
        get("transfer_encoding")
            .another("transfer_encoding", "chunked")
            .forwarded("GET/a"),
    );
    cases
}

/// Lengths that do not match the body, or are no number.
fn lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for (length, body) in [
        ("5", "hell"),
        ("5", "hello!"),
        ("5", ""),
        ("0", "hello"),
        ("1", "hello"),
        ("+5", "hello"),
        ("-5", "hello"),
        ("0x5", "hello"),
        ("5.0", "hello"),
        ("5,5", "hello"),
        ("5, 5", "hello"),
        ("5 5", "hello"),
        ("5a", "hello"),
        ("", "hello"),
        (" ", "hello"),
        ("five", "hello"),
        ("18446744073709551621", "hello"),
        ("99999999999999999999999999", "hello"),
    ] {
        cases.push(
            post(format!("content-length {length:?}, body {body:?}"), body)
                .another("content-length", length),
        );
    }
    for (first, second) in [("5", "5"), ("5", "0"), ("0", "5"), ("5", ""), ("", "5")] {
        let case = post(format!("content-length {first:?} and {second:?}"), "hello");
        cases.push(
            case.another("content-length", first)
                .another("content-length", second),
        );
    }
    cases.push(get("length without a body").another("content-length", "5"));
    cases.push(get("an empty length without a body").another("content-length", ""));
    cases.push(
        post("the right length", "hello")
            .another("content-length", "5")
            .forwarded("POST/a=hello"),
    );
    cases.push(
        post("the right length in two frames", "hel")
            .data("lo")
            .another("content-length", "5")
            .forwarded("POST/a=hello"),
    );
    cases.push(
        post("empty frames", "")
            .data("")
            .data("hello")
            .data("")
            .forwarded("POST/a=hello"),
    );
    cases.push(
        post("length 0", "")
            .another("content-length", "0")
            .forwarded("POST/a"),
    );
    for body in [
        SMUGGLED.to_owned(),
        format!("0\r\n\r\n{SMUGGLED}"),
        format!("\r\n0\r\n\r\n{SMUGGLED}"),
    ] {
        let reached = format!("POST/a={body}");
        let length = body.len().to_string();
        cases.push(post("a request as the body", &body).forwarded(reached.clone()));
        cases.push(
            post("a request as the body, with its length", &body)
                .another("content-length", &length)
                .forwarded(reached.clone()),
        );
        let reached = reached.replacen("POST", "GET", 1);
        cases.push(
            get("a request as the body of a GET")
                .data(&body)
                .forwarded(reached.clone()),
        );
        cases.push(
            get("a request in two frames")
                .data(&body[..5])
                .data(&body[5..])
                .forwarded(reached),
        );
        let mut contradiction =
            post("a request, and length 0", &body).another("content-length", "0");
        contradiction.expected = Expected::RefusedOrBare("POST/a");
        cases.push(contradiction);
    }
    cases
}

/// Pseudo-fields: missing, twice, late, unknown and malformed.
fn pseudo_fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for name in [":method", ":scheme", ":path"] {
        cases.push(get(format!("no {name}")).without(name));
        cases.push(get(format!("empty {name}")).field(name, ""));
        let first = get(format!("{name} after a field")).without(name);
        let value = match name {
            ":method" => "GET",
            ":scheme" => "https",
            _ => "/a",
        };
        cases.push(first.another("x", "y").another(name, value));
    }
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/s"),
        (":authority", "other.test"),
        (":authority", HOST),
    ] {
        cases.push(get(format!("second {name} {value}")).another(name, value));
    }
    for name in [":status", ":protocol", ":foo", ":", ":Path", ":host"] {
        cases.push(get(format!("field {name}")).another(name, "200"));
    }
    for method in ["GET /s HTTP/1.1", "GET ", " GET", "G\tT", "G:T", "CONNECT"] {
        cases.push(get(format!("method {method:?}")).field(":method", method));
    }
    for path in [
        "a",
        "?x",
        "#",
        "/#",
        "/a#b",
        "#/..",
        "*",
        "**",
        "/a b",
        "/ HTTP/1.1",
        "/a\tb",
        "/a\x7f",
        "https://other.test/s",
        "https://kube.test/a",
        "kube.test:443",
        "/<",
        "@other.test/a",
        ":443/a",
    ] {
        cases.push(get(format!("path {path:?}")).field(":path", path));
    }
    for authority in [
        "other.test",
        "user@kube.test",
        "kube.test@other.test",
        "kube.test:abc",
        "kube.test:99999",
        "kube.test,other.test",
        "kube.test other.test",
        "kube.test/s",
        "kube.test#",
        "kube.test?x",
        "[::1",
        "",
    ] {
        cases.push(get(format!("authority {authority:?}")).field(":authority", authority));
    }
    for host in [
        "other.test",
        "kube.test:444",
        "kube.test,kube.test",
        "",
        "kube.test/a",
    ] {
        cases.push(get(format!("host {host:?} beside the authority")).another("host", host));
    }
    cases.push(get("neither host nor authority").without(":authority"));
    cases.push(
        get("two hosts")
            .without(":authority")
            .another("host", HOST)
            .another("host", HOST),
    );
    for scheme in ["http", "ftp", "https:", "https://other.test/"] {
        cases.push(get(format!("scheme {scheme:?}")).field(":scheme", scheme));
    }
    cases.push(
        get("host equal to the authority")
            .another("host", HOST)
            .forwarded("GET/a"),
    );
    cases.push(
        get("host without an authority")
            .without(":authority")
            .another("host", HOST)
            .forwarded("GET/a"),
    );
    cases.push(
        get("OPTIONS *")
            .field(":method", "OPTIONS")
            .field(":path", "*")
            .forwarded("OPTIONS*"),
    );
    cases.push(
        get("odd but valid target")
            .field(":path", "//a/../%2e\";b?c&{d}|^")
            .forwarded("GET//a/../%2e\";b?c&{d}|^"),
    );
    cases
}

/// Trailers: the proxy forwards none, and none may change the request.
fn trailers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, value) in [
        ("x", "y"),
        ("content-length", "0"),
        ("host", "other.test"),
        ("cookie", "a=b"),
        ("authorization", "Bearer x"),
        (":path", "/s"),
        (":method", "GET"),
    ] {
        let case = post(format!("trailer {name}"), "hello").trailer(name, value);
        cases.push(case.forwarded("POST/a=hello"));
    }
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("X", "y"),
        ("x", "y\r\n"),
        ("x\r\ny", "z"),
    ] {
        cases.push(post(format!("trailer {name:?}: {value:?}"), "hello").trailer(name, value));
    }
    cases
}

/// Sends one request and returns the body of its response if that is a 200.
async fn send(wire: &mut FrameConnection<TlsConnection>, case: &Case) -> Option<Vec<u8>> {
    let borrowed = |fields: &[(String, String)]| -> Vec<u8> {
        let fields: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (&name[..], &value[..]))
            .collect();
        frames::encode_fields(&fields)
    };
    let end = |is_last: bool| if is_last { END_STREAM } else { 0 };
    let without_body = case.data.is_empty() && case.trailers.is_empty();
    let flags = frames::END_HEADERS | end(without_body);
    // The proxy may have closed the connection after an earlier frame.
    wire.send(kind::HEADERS, flags, 1, borrowed(&case.fields))
        .await
        .ok()?;
    for (at, data) in case.data.iter().enumerate() {
        let is_last = at + 1 == case.data.len() && case.trailers.is_empty();
        wire.data(1, data.clone(), end(is_last)).await.ok()?;
    }
    if !case.trailers.is_empty() {
        let flags = frames::END_HEADERS | END_STREAM;
        wire.send(kind::HEADERS, flags, 1, borrowed(&case.trailers))
            .await
            .ok()?;
    }
    let mut body = Vec::new();
    let mut is_ok = false;
    loop {
        let frame = within("the response", wire.next()).await.ok()??;
        match frame.kind {
            // The first byte of a response head: `:status` 200 in the static table of HPACK.
            kind::HEADERS if frame.stream == 1 => is_ok = frame.payload.first() == Some(&0x88),
            kind::DATA if frame.stream == 1 => body.extend(&frame.payload),
            kind::RST_STREAM | kind::GOAWAY => return None,
            kind::SETTINGS if !frame.has(frames::ACK) => wire.acknowledge(&frame).await.ok()?,
            _ => {}
        }
        let ends = matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.has(END_STREAM);
        if ends && frame.stream == 1 {
            return is_ok.then_some(body);
        }
    }
}

/// Sends one case on a connection of its own, and then a request of another client. Returns what differs.
async fn check(
    apiserver: &mut Echo,
    proxy: &Proxy,
    number: usize,
    case: &Case,
    partials: &mut Partials,
) -> Result<(), String> {
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    let mut wire = FrameConnection::client(tls, &[]).await.unwrap();
    let answered = send(&mut wire, case).await;
    drop(wire);
    if !matches!(case.expected, Expected::Forwarded(_)) {
        let method = case.fields.iter().find(|(name, _)| name == ":method");
        let method = method.map_or("", |(_, value)| value);
        partials.allow(format!("{method}/a={}", case.data.concat()).as_bytes());
    }
    let mut received = apiserver.requests_before_victim(proxy, number).await;
    received.retain(|request| !partials.take(request));
    let mut received = received
        .iter()
        .map(|request| String::from_utf8_lossy(&request.text));
    let (first, more) = (received.next(), received.next());
    let answered = answered.map(|body| String::from_utf8_lossy(&body).into_owned());
    let is_expected = match &case.expected {
        Expected::Forwarded(request) => {
            answered.as_ref() == Some(request) && first.as_deref() == Some(request)
        }
        Expected::Refused => answered.is_none() && first.is_none(),
        Expected::RefusedOrBare(request) => {
            let may_be = |text: Option<&str>| text.is_none_or(|text| text == *request);
            may_be(answered.as_deref()) && may_be(first.as_deref())
        }
    };
    if is_expected && more.is_none() {
        return Ok(());
    }
    Err(format!(
        "{}: the client got {answered:?}, the apiserver {first:?} and {more:?}",
        case.name
    ))
}

#[tokio::test]
async fn http2_requests_reach_an_http1_apiserver_as_listed() {
    let groups = [line_ends(), names(), lengths(), pseudo_fields(), trailers()];
    let cases: Vec<Case> = groups.into_iter().flatten().collect();
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let world = World::new();
    let mut apiserver = Echo::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let mut partials = Partials::default();
    let mut failed = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        failed.extend(
            check(&mut apiserver, &proxy, number, case, &mut partials)
                .await
                .err(),
        );
    }
    assert!(
        failed.is_empty(),
        "{} of {} cases:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}
