//! The stand-in records exactly the bytes that were sent, and fails exactly as the test demands.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use standin::{
    client::{Client, Http2, whole},
    frames::{self, FrameConnection, kind},
    pki::Ca,
    tcp::{Behaviour, Peer, Relay, refused},
    upstream::{BodyEnd, Builder, ConnectionEnd, ResponseEnd, Upstream, channel, full},
    within,
};

fn upstream(ca: &Ca) -> Builder {
    Upstream::builder(ca.server(&["127.0.0.1", "k8s.test"]))
}

fn client(ca: &Ca, upstream: &Upstream) -> Client {
    Client::new(upstream.address()).trust(ca).sni("k8s.test")
}

#[tokio::test]
async fn keeps_http1_heads_byte_for_byte() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca).start().await;
    let mut client = client(&ca, &upstream).http1().await;
    let head = "POST //api/%2F/../x?a=1;b=2&a=3&? HTTP/1.1\r\nHOST: k8s.test\r\nX-b: 2\r\nx-A:  1\r\nX-B: 3\r\nContent-Length: 5\r\n\r\n";
    client.send(format!("{head}hello")).await;
    assert_eq!(client.response().await.text(), "ok");
    let request = upstream.next_request().await;
    assert_eq!(request.head.as_deref(), Some(head.as_bytes()));
    assert_eq!(request.target, "//api/%2F/../x?a=1;b=2&a=3&?");
    assert_eq!(request.lines("x-b"), ["2", "3"]);
    assert_eq!(request.body().await, b"hello");
    assert_eq!(request.response_end().await, ResponseEnd::Complete);
    let connection = &upstream.connections()[0];
    assert_eq!(connection.sni.as_deref(), Some("k8s.test"));
    assert_eq!(connection.alpn_offered, None);
    assert_eq!(connection.requests, 1);
    assert!(connection.client_certificates.is_empty());
}

#[tokio::test]
async fn records_http2_request_and_client_certificate() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca).start().await;
    let alice = ca.client("alice", &["dev", "ops"]);
    let leaf = alice.chain[0].clone();
    let client = client(&ca, &upstream).identity(alice).http2().await;
    let request = http::Request::post("https://public.test/a%2Fb?x")
        .header("x-a", "1")
        .header("x-a", "2");
    let response = client
        .request(request.body(Bytes::from_static(b"hello")).unwrap())
        .await
        .unwrap();
    assert_eq!(
        (response.status, response.text().as_str()),
        (StatusCode::OK, "ok")
    );
    let request = upstream.next_request().await;
    assert_eq!(
        (request.target.as_str(), request.authority.as_deref()),
        ("/a%2Fb?x", Some("public.test"))
    );
    assert_eq!(request.lines("x-a"), ["1", "2"]);
    assert_eq!(request.body().await, b"hello");
    let connection = &upstream.connections()[0];
    assert_eq!(connection.alpn_offered, Some(vec!["h2".to_owned()]));
    assert_eq!(connection.client_certificates, [leaf]);
}

#[tokio::test]
async fn records_cancelled_response_and_incomplete_body() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca)
        .http(|request| async {
            let (sender, body) = channel();
            tokio::spawn(async move {
                drop(sender.send("first").await);
                drop(request.into_body().read().await);
                sender.closed().await;
            });
            Response::new(body)
        })
        .start()
        .await;
    let client = client(&ca, &upstream).http2().await;
    let (response, mut body) = client
        .begin(
            http::Request::post("https://k8s.test/").body(()).unwrap(),
            false,
        )
        .await
        .unwrap();
    let mut response = within("the head", response).await.unwrap();
    assert_eq!(
        within("data", response.body_mut().data())
            .await
            .unwrap()
            .unwrap(),
        "first"
    );
    let request = upstream.next_request().await;
    assert_eq!(upstream.open_responses(), 1);
    body.send_reset(h2::Reason::CANCEL);
    drop(response);
    assert_eq!(request.response_end().await, ResponseEnd::Cancelled);
    assert!(matches!(request.body_end().await, BodyEnd::Incomplete(_)));
    upstream
        .wait_for("the reset", |connections| {
            (connections[0].resets() == [(1, 8)]).then_some(())
        })
        .await;
    upstream.wait_for_open_responses(0).await;
}

#[tokio::test]
async fn response_is_incomplete_when_the_sender_aborts() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca)
        .http(|_| async {
            let (sender, body) = channel();
            tokio::spawn(async move {
                drop(sender.send("half").await);
                sender.abort().await;
            });
            Response::new(body)
        })
        .start()
        .await;
    let client = client(&ca, &upstream);
    let mut http1 = client.http1().await;
    http1.send("GET / HTTP/1.1\r\nHost: k8s.test\r\n\r\n").await;
    let head = http1.head().await.unwrap();
    assert_eq!(http1.body(&head).await.unwrap_err().received, "half");
    let http2 = client.http2().await;
    let response = http2.open("https://k8s.test/").await.unwrap();
    assert_eq!(
        whole(response).await.unwrap_err().reason(),
        Some(h2::Reason::INTERNAL_ERROR)
    );
}

#[tokio::test]
async fn sends_goaway_as_go_does_and_ignores_later_streams() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca)
        .http(|request| async move {
            if request.uri().path() == "/watch" {
                let (sender, body) = channel();
                tokio::spawn(async move {
                    drop(sender.send("first").await);
                    sender.closed().await;
                });
                return Response::new(body);
            }
            Response::builder()
                .status(401)
                .header("connection", "close")
                .body(full("no"))
                .unwrap()
        })
        .start()
        .await;
    // Written frame by frame: a library would not open a stream after a GOAWAY.
    let tls = client(&ca, &upstream)
        .alpn(&["h2"])
        .connect()
        .await
        .unwrap();
    let mut wire = FrameConnection::client(tls, &[]).await.unwrap();
    let get = |path| {
        [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "k8s.test"),
            (":path", path),
        ]
    };
    wire.headers(1, &get("/watch"), frames::END_STREAM)
        .await
        .unwrap();
    assert_eq!(
        &wire.expect(kind::DATA).await.unwrap().payload[..],
        b"first"
    );
    wire.headers(3, &get("/"), frames::END_STREAM)
        .await
        .unwrap();
    let goaway = wire.expect(kind::GOAWAY).await.unwrap();
    assert_eq!(goaway.payload[..], [0, 0, 0, 3, 0, 0, 0, 0]);
    assert_eq!(&wire.expect(kind::DATA).await.unwrap().payload[..], b"no");
    wire.headers(5, &get("/later"), frames::END_STREAM)
        .await
        .unwrap();
    assert!(upstream.connections()[0].is_open());
    wire.reset(1, 8).await.unwrap();
    assert_eq!(upstream.connection_end(0).await, ConnectionEnd::Clean);
    let targets: Vec<String> = upstream
        .requests()
        .into_iter()
        .map(|request| request.target)
        .collect();
    assert_eq!(targets, ["/watch", "/"]);
}

#[tokio::test]
async fn http2_client_shows_goaway_pings_and_the_end() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca)
        .raw(|raw| async {
            let mut wire = FrameConnection::server(raw.stream, &[(3, 1)])
                .await
                .unwrap();
            wire.send(kind::PING, 0, 0, &b"12345678"[..]).await.unwrap();
            let ack = wire.expect(kind::PING).await.unwrap();
            assert!(ack.has(frames::ACK));
            let head = wire.expect(kind::HEADERS).await.unwrap();
            wire.headers(head.stream, &[(":status", "200")], 0)
                .await
                .unwrap();
            wire.data(head.stream, "hi", frames::END_STREAM)
                .await
                .unwrap();
            wire.goaway(head.stream, 11).await.unwrap();
        })
        .start()
        .await;
    let client = client(&ca, &upstream).http2().await;
    assert_eq!(client.get("https://k8s.test/").await.unwrap().text(), "hi");
    assert_eq!(client.goaway().await, h2::Reason::ENHANCE_YOUR_CALM);
    assert_eq!(client.pings(), 1);
    assert!(client.end().await.is_err());
}

#[tokio::test]
async fn settings_announce_max_concurrent_streams() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca)
        .max_concurrent_streams(2)
        .http(|_| async {
            let (sender, body) = channel();
            tokio::spawn(async move { sender.closed().await });
            Response::new(body)
        })
        .start()
        .await;
    let client: Http2 = client(&ca, &upstream).http2().await;
    let settings = client.frame(kind::SETTINGS).await.settings();
    assert!(settings.contains(&(3, 2)), "{settings:?}");
}

#[tokio::test]
async fn client_returns_each_tls_record_separately() {
    use tokio::io::AsyncWriteExt as _;
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca)
        .alpn(&[])
        .raw(|mut raw| async move {
            for part in ["HTTP/1.1 101 Switching Protocols\r\n\r\nfirst", "second"] {
                raw.stream.write_all(part.as_bytes()).await.unwrap();
                raw.stream.flush().await.unwrap();
            }
            raw.stream.shutdown().await.unwrap();
        })
        .start()
        .await;
    let mut tls = client(&ca, &upstream).connect().await.unwrap();
    assert_eq!(
        tls.record().await.unwrap().unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\n\r\nfirst"
    );
    assert_eq!(tls.record().await.unwrap().unwrap(), "second");
    assert_eq!(tls.record().await.unwrap(), None);
}

#[tokio::test]
async fn large_body_arrives_complete_over_both_versions() {
    let ca = Ca::new("cluster");
    let long: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let body = long.clone();
    let upstream = upstream(&ca)
        .http(move |_| {
            let body = body.clone();
            async { Response::new(full(body)) }
        })
        .start()
        .await;
    let client = client(&ca, &upstream);
    assert!(client.http1().await.get("k8s.test", "/", "").await.body == long);
    assert!(
        client
            .http2()
            .await
            .get("https://k8s.test/")
            .await
            .unwrap()
            .body
            == long
    );
}

#[tokio::test]
async fn record_fails_when_close_notify_is_missing() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca).raw(|raw| async { drop(raw) }).start().await;
    let mut tls = client(&ca, &upstream).connect().await.unwrap();
    assert_eq!(
        tls.record().await.unwrap_err().kind(),
        std::io::ErrorKind::UnexpectedEof
    );
}

#[tokio::test]
async fn client_rejects_each_faulty_certificate() {
    let ca = Ca::new("cluster");
    let other = Ca::new("other");
    let names = ["k8s.test"];
    let bad = [
        ("expired", ca.leaf(&names).expired().build()),
        ("not yet valid", ca.leaf(&names).not_yet_valid().build()),
        ("no names", ca.leaf(&[]).build()),
        ("another name", ca.server(&["other.test"])),
        ("for clients", ca.leaf(&names).client_auth().build()),
        ("self-signed", standin::pki::Identity::self_signed(&names)),
        ("another CA", other.server(&names)),
        (
            "missing intermediate",
            ca.intermediate("below")
                .server(&names)
                .without_intermediates(),
        ),
    ];
    for (what, identity) in bad {
        let upstream = Upstream::builder(identity).start().await;
        let err = client(&ca, &upstream).connect().await.expect_err(what);
        assert!(
            err.get_ref().is_some_and(|err| err.is::<rustls::Error>()),
            "{what}: {err}"
        );
        assert!(
            matches!(
                upstream.connection_end(0).await,
                ConnectionEnd::Handshake(_)
            ),
            "{what}"
        );
        upstream.present(&ca.intermediate("below").server(&names));
        assert!(
            client(&ca, &upstream).connect().await.is_ok(),
            "a valid certificate after: {what}"
        );
    }
}

#[tokio::test]
async fn second_connection_of_one_client_resumes_the_session() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca).start().await;
    let client = client(&ca, &upstream);
    let mut first = client.http1().await;
    first.get("k8s.test", "/", "").await;
    client.http1().await.get("k8s.test", "/", "").await;
    let resumed: Vec<bool> = upstream
        .connections()
        .iter()
        .map(|connection| connection.resumed)
        .collect();
    assert_eq!(resumed, [false, true]);
}

#[tokio::test]
async fn peers_fail_before_the_tls_handshake_completes() {
    let ca = Ca::new("cluster");
    let fail = async |address| {
        Client::new(address)
            .trust(&ca)
            .sni("k8s.test")
            .connect()
            .await
            .unwrap_err()
            .kind()
    };
    assert_eq!(
        fail(refused().await).await,
        std::io::ErrorKind::ConnectionRefused
    );
    let peer = Peer::start(Behaviour::ResetInHandshake).await;
    assert_eq!(
        fail(peer.address()).await,
        std::io::ErrorKind::ConnectionReset
    );
    let peer = Peer::start(Behaviour::CloseInHandshake).await;
    assert_eq!(
        fail(peer.address()).await,
        std::io::ErrorKind::UnexpectedEof
    );
    let peer = Peer::start(Behaviour::Responds(
        b"HTTP/1.0 400 Bad Request\r\n\r\n".to_vec(),
    ))
    .await;
    assert_eq!(fail(peer.address()).await, std::io::ErrorKind::InvalidData);
    assert_eq!(peer.connections(), 1);
}

#[tokio::test]
async fn relay_freezes_thaws_and_resets() {
    let ca = Ca::new("cluster");
    let upstream = upstream(&ca).start().await;
    let relay = Relay::start(upstream.address()).await;
    let client = Client::new(relay.address()).trust(&ca).sni("k8s.test");
    let mut http1 = client.http1().await;
    assert_eq!(http1.get("k8s.test", "/1", "").await.status, 200);
    relay.freeze();
    http1
        .send("GET /2 HTTP/1.1\r\nHost: k8s.test\r\n\r\n")
        .await;
    tokio::time::timeout(Duration::from_millis(100), http1.head())
        .await
        .expect_err("a frozen relay forwards nothing");
    assert_eq!(upstream.requests().len(), 1);
    relay.thaw();
    assert_eq!(http1.response().await.status, 200);
    relay.reset_all();
    assert_eq!(
        http1.end().await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(matches!(
        upstream.connection_end(0).await,
        ConnectionEnd::Broken(_)
    ));
    let mut again = client.http1().await;
    assert_eq!(again.get("k8s.test", "/3", "").await.status, 200);
    assert_eq!(relay.connections(), 2);
}
