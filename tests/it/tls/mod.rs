//! What a client sees of TLS, and what becomes of one that does not speak it.

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
    proxy::{HOST, Proxy, World},
    tunnels,
    upgrades::ManualApiserver,
};

/// The certificate that is presented for this name.
async fn presented(client: &Client, name: &str) -> CertificateDer<'static> {
    let tls = client.clone().sni(name).connect().await.unwrap();
    tls.server_certificates()[0].clone()
}

/// The name decides; without one, or with an unknown one, the first certificate is presented.
#[tokio::test]
async fn the_certificate_is_chosen_by_sni() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let default = world.public_ca.server(&[HOST, "127.0.0.1", "unknown.test"]);
    let exact = world.public_ca.server(&["one.example.test"]);
    let wildcard = world.public_ca.server(&["*.example.test"]);
    let mut setup = world.proxy_as(upstream.address(), &default);
    for (name, identity) in [("exact", &exact), ("wildcard", &wildcard)] {
        let (certificate, key) = identity.write(&world.dir, name);
        let files = kube_tls_proxy::config::IdentityFiles { certificate, key };
        setup.config.identities.push(files);
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
    // A wildcard stands for one label (RFC 6125 §6.4.3), so this one is told by its certificate.
    let refused = proxy.client().sni("a.b.example.test").connect().await;
    assert!(refused.is_err(), "the default certificate has another name");
}

/// What is offered decides; nothing offered is HTTP/1.1, as kubectl's upgrade requests need it.
#[tokio::test]
async fn the_protocol_is_chosen_by_alpn() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
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
async fn tls_1_2_and_1_3_are_spoken() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for (version, spoken) in [
        (&version::TLS12, ProtocolVersion::TLSv1_2),
        (&version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let client = proxy.client().tls_versions(&[version]);
        let mut http1 = client.http1().await;
        assert_eq!(http1.get(HOST, "/version", "").await.text(), "ok");
        assert_eq!(http1.stream().version(), Some(spoken));
    }
}

/// The key exchange that stays secret when quantum computers come.
#[tokio::test]
async fn a_capable_client_gets_the_post_quantum_key_exchange() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let tls = proxy.client().connect().await.unwrap();
    assert_eq!(tls.key_exchange(), Some(NamedGroup::X25519MLKEM768));
}

/// A session that began before a reload, even one that replaced the certificate, can be resumed after it.
#[tokio::test]
async fn sessions_are_resumed_and_survive_a_reload() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for version in [&version::TLS12, &version::TLS13] {
        let client = proxy.client().tls_versions(&[version]);
        assert!(!resumes(&client).await, "the first has nothing to resume");
        assert!(resumes(&client).await, "{version:?}");
        world
            .public_ca
            .server(&[HOST, "127.0.0.1"])
            .write(&world.dir, "public");
        let before = presented(&proxy.client().alpn(&[]), HOST).await;
        proxy.reload();
        new_certificate(&proxy, &before).await;
        assert!(resumes(&client).await, "{version:?} after a reload");
    }
}

/// Whether a connection resumes a session. The response sees to it that the tickets have come.
async fn resumes(client: &Client) -> bool {
    let mut http1 = client.http1().await;
    assert_eq!(http1.get(HOST, "/version", "").await.text(), "ok");
    http1.stream().is_resumed()
}

/// Waits until a new client is shown another certificate than this one.
async fn new_certificate(proxy: &Proxy, old: &CertificateDer<'_>) {
    let shown = async {
        // A client of its own each time, because a resumed session shows the certificate it began with.
        while presented(&proxy.client().alpn(&[]), HOST).await == *old {}
    };
    within("the new certificate", shown).await;
}

/// Plain HTTP on the TLS port is refused, and other clients are not affected.
#[tokio::test]
async fn plain_http_does_no_harm() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for words in [
        "GET /version HTTP/1.1\r\nHost: kube.test\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\0\0\0",
        "\u{16}\u{3}\u{1}\0\u{5}hello",
    ] {
        let mut plain = TcpStream::connect(proxy.address()).await.unwrap();
        plain.write_all(words.as_bytes()).await.unwrap();
        plain.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        let end: io::Result<usize> = within("the end", plain.read_to_end(&mut answer)).await;
        drop(end);
        assert!(!answer.starts_with(b"HTTP"), "{words:?} is not served");
    }
    let mut client = proxy.client().http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");
    assert_eq!(upstream.requests().len(), 1);
}

/// Clients that connect and vanish do not stop the next one from being served.
#[tokio::test]
async fn next_client_is_served_after_connections_that_break() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for _ in 0..50 {
        let tcp = TcpStream::connect(proxy.address()).await.unwrap();
        standin::tcp::reset(tcp);
        proxy.client().connect().await.unwrap().reset();
    }
    let mut client = proxy.client().http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");
}

/// Beyond the limit a connection waits in the kernel, and is served once another has ended.
#[tokio::test]
async fn a_connection_beyond_the_limit_waits_for_its_turn() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.connections = 2)
        .start();
    let first = proxy.client().http1().await;
    let mut second = proxy.client().http1().await;
    let third = waits(&proxy).await;
    assert_eq!(second.get(HOST, "/version", "").await.text(), "ok");
    drop(first);
    served(third).await;
}

/// A tunnel is a connection like any other, for as long as it is open.
#[tokio::test]
async fn a_tunnel_counts_as_a_connection() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world
        .proxy(apiserver.upstream.address())
        .limits(|limits| limits.connections = 1)
        .start();
    let (client, server) = tunnels::open(&proxy, &apiserver).await;
    let next = waits(&proxy).await;
    drop((client, server));
    served(next).await;
}

type Waiting = tokio::task::JoinHandle<io::Result<standin::client::TlsConnection>>;

/// A client that gets no handshake for as long as a handshake takes many times over.
async fn waits(proxy: &Proxy) -> Waiting {
    let client = proxy.client();
    let mut connecting = tokio::spawn(async move { client.connect().await });
    let early = tokio::time::timeout(std::time::Duration::from_millis(500), &mut connecting).await;
    assert!(early.is_err(), "there was no place for this connection");
    connecting
}

async fn served(waiting: Waiting) {
    within("a place for the connection", waiting)
        .await
        .unwrap()
        .unwrap();
}
