//! TLS as a client sees it, and clients that do not speak TLS.

mod deadlines;

use std::io;

use rustls::{NamedGroup, ProtocolVersion, version};
use rustls_pki_types::CertificateDer;
use standin::{client::Client, within};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    admin::wait_for_numbers,
    proxy::{HOST, Proxy, World, watch_or_ok},
    tunnels,
    upgrades::ManualApiserver,
};

/// The certificate that the proxy presents for this name.
async fn presented(client: &Client, name: &str) -> CertificateDer<'static> {
    let tls = client.clone().sni(name).connect().await.unwrap();
    tls.server_certificates()[0].clone()
}

/// SNI selects the certificate. Without SNI, or with an unknown name, the proxy presents the first certificate.
#[tokio::test]
async fn certificate_is_selected_by_sni() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let default = world.public_ca.server(&[HOST, "127.0.0.1", "unknown.test"]);
    let exact = world.public_ca.server(&["one.example.test"]);
    let wildcard = world.public_ca.server(&["*.example.test"]);
    let mut setup = world.proxy_as(upstream.address(), &default);
    for (name, identity) in [("exact", &exact), ("wildcard", &wildcard)] {
        let (certificate, key) = identity.write(&world.dir, name);
        let files = kube_tls_proxy::config::IdentityFiles { certificate, key };
        setup.config.identities.push(files.into());
    }
    let proxy = setup.start();
    for (name, identity) in [
        (HOST, &default),
        ("KUBE.test", &default),
        ("one.example.test", &exact),
        ("two.example.test", &wildcard),
        ("unknown.test", &default),
        ("127.0.0.1", &default),
    ] {
        assert!(
            presented(&proxy.client(), name).await == identity.chain[0],
            "{name}"
        );
    }
    // A wildcard matches one label (RFC 6125 §6.4.3), so this name gets the default certificate, which is for
    // another name.
    let refused = proxy.client().sni("a.b.example.test").connect().await;
    assert!(refused.is_err(), "the default certificate has another name");
}

/// The offer of the client decides. Without ALPN the proxy speaks HTTP/1.1, as kubectl's upgrade requests need.
#[tokio::test]
async fn protocol_is_selected_by_alpn() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&["h2"], Some("h2")),
        (&["spdy/3", "http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let client = proxy.client().alpn(offered);
        let tls = client.connect().await.unwrap();
        assert_eq!(tls.alpn(), chosen, "{offered:?}");
        let text = if chosen == Some("h2") {
            let http2 = standin::client::Http2::new(tls).await;
            http2.get("https://kube.test/version").await.unwrap().text()
        } else {
            let mut http1 = standin::client::Http1::new(tls);
            http1.get(HOST, "/version", "").await.text()
        };
        assert_eq!(text, "ok", "{offered:?}");
    }
    let refused = proxy
        .client()
        .alpn(&["http/1.0"])
        .connect()
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("NoApplicationProtocol"),
        "{refused}"
    );
}

#[tokio::test]
async fn tls_1_2_and_tls_1_3_are_supported() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    for (version, negotiated) in [
        (&version::TLS12, ProtocolVersion::TLSv1_2),
        (&version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let client = proxy.client().tls_versions(&[version]);
        let mut http1 = client.http1().await;
        assert_eq!(http1.get(HOST, "/version", "").await.text(), "ok");
        assert_eq!(http1.stream().version(), Some(negotiated));
    }
}

/// This key exchange also protects recorded traffic against a future quantum computer.
#[tokio::test]
async fn post_quantum_key_exchange_is_negotiated() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    let tls = proxy.client().connect().await.unwrap();
    assert_eq!(tls.key_exchange(), Some(NamedGroup::X25519MLKEM768));
}

/// A client can resume its session after a reload, even after a reload that replaced the certificate.
#[tokio::test]
async fn sessions_are_resumed_and_survive_a_reload() {
    let (world, _upstream, proxy) = World::with_proxy().await;
    for version in [&version::TLS12, &version::TLS13] {
        let client = proxy.client().tls_versions(&[version]);
        assert!(
            !resumes(&client).await,
            "the first connection has no session to resume"
        );
        assert!(resumes(&client).await, "{version:?}");
        world
            .public_ca
            .server(&[HOST, "127.0.0.1"])
            .write(&world.dir, "public");
        let before = presented(&proxy.client().alpn(&[]), HOST).await;
        proxy.reload();
        wait_for_new_certificate(&proxy, &before).await;
        assert!(resumes(&client).await, "{version:?} after a reload");
    }
}

/// Whether a connection resumes a session. When the response has arrived, the session tickets have arrived too.
async fn resumes(client: &Client) -> bool {
    let mut http1 = client.http1().await;
    assert_eq!(http1.get(HOST, "/version", "").await.text(), "ok");
    http1.stream().is_resumed()
}

/// Waits until a new client receives another certificate than this one.
async fn wait_for_new_certificate(proxy: &Proxy, old: &CertificateDer<'_>) {
    let shown = async {
        // Use a new client each time, because a resumed session shows the certificate of its first handshake.
        while presented(&proxy.client().alpn(&[]), HOST).await == *old {}
    };
    within("the new certificate", shown).await;
}

/// Plain HTTP on the TLS port gets a response in words, as from Go and nginx. Other bytes get a TLS alert.
#[tokio::test]
async fn plain_http_on_the_tls_port_is_refused_in_words() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let long = format!("POST / HTTP/1.1\r\n\r\n{}", "x".repeat(100_000));
    for (bytes, is_http) in [
        ("GET /version HTTP/1.1\r\nHost: kube.test\r\n\r\n", true),
        ("POST / HTTP/1.0\r\n\r\n", true),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true),
        (&long, true),
        ("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", false),
        ("GETS", false),
        ("\0\0\0", false),
        ("\u{16}\u{3}\u{1}\0\u{5}hello", false),
    ] {
        let mut plain = TcpStream::connect(proxy.address()).await.unwrap();
        plain.write_all(bytes.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        let end: io::Result<usize> = within("the end", plain.read_to_end(&mut response)).await;
        let response = String::from_utf8_lossy(&response);
        let start = bytes.get(..20).unwrap_or(bytes);
        if is_http {
            end.unwrap();
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with("HTTP/1.1 400 Bad Request\r\n"),
                "{start:?}: {head}"
            );
            assert!(
                head.contains(&format!("Content-Length: {}\r\n", body.len())),
                "{head}"
            );
            assert!(body.contains("this port speaks HTTPS"), "{start:?}: {body}");
        } else {
            assert!(!response.contains("HTTP"), "{start:?}: {response}");
        }
    }
    let mut client = proxy.client().http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");
    assert_eq!(upstream.requests().len(), 1);
    let counted = ("handshakes_total{result=\"plain_http\"}", 4.0);
    wait_for_numbers(proxy.admin(), &[counted]).await;
}

/// After clients that connect and reset, the proxy still serves the next client.
#[tokio::test]
async fn next_client_is_served_after_connections_that_break() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    for _ in 0..50 {
        let tcp = TcpStream::connect(proxy.address()).await.unwrap();
        standin::tcp::reset(tcp);
        proxy.client().connect().await.unwrap().reset();
    }
    let mut client = proxy.client().http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");
}

/// A connection above the limit waits while requests run on all others, and is served after one of them closes.
#[tokio::test]
async fn connection_above_the_limit_waits_for_a_permit() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.connections = 2)
        .start();
    let (first, second) = (proxy.client().http2().await, proxy.client().http2().await);
    let _watches = (
        first.open("https://kube.test/watch").await.unwrap(),
        second.open("https://kube.test/watch").await.unwrap(),
    );
    let third = connect_and_wait(&proxy).await;
    let response = second.get("https://kube.test/version").await.unwrap();
    assert_eq!(response.text(), "ok");
    drop(first);
    wait_until_served(third).await;
}

/// A tunnel counts towards `limits.connections` while it is open.
#[tokio::test]
async fn tunnel_counts_towards_the_connection_limit() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world
        .proxy(apiserver.upstream.address())
        .limits(|limits| limits.connections = 1)
        .start();
    let (client, server) = tunnels::open(&proxy, &apiserver).await;
    let next = connect_and_wait(&proxy).await;
    drop((client, server));
    wait_until_served(next).await;
}

type Waiting = tokio::task::JoinHandle<io::Result<standin::client::TlsConnection>>;

/// Connects a client, and asserts that it gets no handshake in 500 ms, many times the duration of a handshake.
async fn connect_and_wait(proxy: &Proxy) -> Waiting {
    let client = proxy.client();
    let mut connecting = tokio::spawn(async move { client.connect().await });
    let early = tokio::time::timeout(std::time::Duration::from_millis(500), &mut connecting).await;
    assert!(early.is_err(), "no permit was free for this connection");
    connecting
}

async fn wait_until_served(waiting: Waiting) {
    within("a permit for the connection", waiting)
        .await
        .unwrap()
        .unwrap();
}
