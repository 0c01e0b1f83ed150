//! Faults between here and a verified connection.

use std::{net::SocketAddr, time::Duration};

use socket2::{Domain, Socket, Type};
use standin::tcp::{Behaviour, Peer, refused};
use tokio::{net::TcpStream, time::timeout};

use crate::world::{APISERVER, Ended, World, check, flags, path};

const UNREACHED: [&str; 7] = [
    "tls", "verify", "alpn", "version", "clock", "readyz", "upgrade",
];

/// Checks with little patience for the apiserver.
async fn impatiently(world: &World, upstream: SocketAddr) -> Ended {
    let file = world
        .dir
        .write("config.yaml", "timeouts: { upstreamConnect: 300ms }\n");
    let good = [
        world.flags(upstream),
        world.clients_trust(),
        flags(&[("--config", path(&file))]),
    ];
    check(&good.concat(), &[]).await
}

#[tokio::test]
async fn dns() {
    let world = World::new();
    let flags = world.flags_as("https://apiserver.invalid:6443", &world.identity());
    let ended = check(&[flags, world.clients_trust()].concat(), &[]).await;
    ended.names(
        1,
        '✗',
        "dns",
        "apiserver.invalid cannot be looked up: ",
        "check the name in the URL of the apiserver (--upstream, the kubeconfig or `clusters`), and the DNS of this machine",
    );
    assert_eq!(ended.marked('–'), [&["tcp"], &UNREACHED[..]].concat());
}

#[tokio::test]
async fn nobody_listens() {
    let world = World::new();
    let address = refused().await;
    let ended = world.check(address, &[]).await;
    ended.names(
        1,
        '✗',
        "tcp",
        &format!("{address} refuses connections: nothing listens on that port"),
        "start the apiserver there, or correct the port",
    );
    assert_eq!(ended.marked('–'), UNREACHED);
}

/// A listener whose queue is full drops what comes, as a firewall does.
#[tokio::test]
async fn filtered() {
    let world = World::new();
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(tcp) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queued.push(tcp.unwrap());
        assert!(queued.len() < 16, "the queue has no end");
    }
    let ended = impatiently(&world, address).await;
    ended.names(
        1,
        '✗',
        "tcp",
        &format!("no answer from {address} within 300 ms: the packets are dropped on the way, as a firewall does"),
        &format!("let this machine reach TCP port {} there (firewall", address.port()),
    );
    assert_eq!(ended.marked('–'), UNREACHED);
}

#[tokio::test]
async fn plain_http_upstream() {
    let world = World::new();
    let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec();
    let peer = Peer::start(Behaviour::Says(answer)).await;
    let ended = world.check(peer.address(), &[]).await;
    ended.names(
        1,
        '✗',
        "tls",
        &format!(
            "{} does not answer with TLS; it seems to speak plain HTTP",
            peer.address()
        ),
        "give the HTTPS port of the apiserver",
    );
    assert_eq!(ended.marked('–'), UNREACHED[1..]);
}

#[tokio::test]
async fn silence_and_hang_ups_in_the_handshake() {
    let world = World::new();
    let peer = Peer::start(Behaviour::Silent).await;
    impatiently(&world, peer.address()).await.names(
        1,
        '✗',
        "tls",
        "accepts connections and then says nothing for 300 ms",
        "check that the apiserver listens there and is not overloaded",
    );
    for behaviour in [Behaviour::CloseInHandshake, Behaviour::ResetInHandshake] {
        let peer = Peer::start(behaviour).await;
        world.check(peer.address(), &[]).await.names(
            1,
            '✗',
            "tls",
            "closes the connection in the TLS handshake",
            "check that the apiserver listens there and not something else",
        );
    }
}

#[tokio::test]
async fn clock_before_the_certificate_begins() {
    let world = World::new();
    let identity = world.cluster_ca.leaf(&[APISERVER]).not_yet_valid().build();
    let upstream = world.apiserver_as(identity).start().await;
    world.check(upstream.address(), &[]).await.names(
        1,
        '✗',
        "verify",
        "is not valid before 2089-01-01T00:00:00Z, and the clock here says 20",
        "set the clock of this machine (NTP)",
    );
}

/// It works, slower than it could, so that it is a warning.
#[tokio::test]
async fn no_h2() {
    let world = World::new();
    let upstream = world.apiserver().alpn(&["http/1.1"]).start().await;
    let ended = world.check(upstream.address(), &[]).await;
    ended.names(
        0,
        '!',
        "alpn",
        "HTTP/2 is offered and not chosen, so that all goes over HTTP/1.1",
        "let the apiserver speak HTTP/2 (no --disable-http2-serving",
    );
    assert_eq!(ended.marked('!'), ["alpn"]);
}

/// One of several addresses being down is what the proxy is made for.
#[tokio::test]
async fn an_address_that_does_not_work_beside_one_that_does_is_a_warning() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    world.flags(upstream.address());
    let (well, down) = (upstream.address(), refused().await);
    let config = format!(
        "listen: [\"127.0.0.1:0\"]
certificates: [{{ certificate: public.crt, key: public.key }}]
clusters:
- name: several
  upstream:
    url: https://apiserver.invalid:6443
    addresses: [\"{down}\", \"{well}\"]
    ca: cluster-ca.crt
    name: {APISERVER}
"
    );
    let file = world.dir.write("config.yaml", config);
    let flags = [flags(&[("--config", path(&file))]), world.clients_trust()].concat();
    let ended = check(&flags, &[]).await;
    ended.names(
        0,
        '!',
        "tcp",
        &format!("{down} refuses connections"),
        "start the apiserver there",
    );
    assert_eq!(
        ended.of("dns")[0].what,
        "the addresses are configured, apiserver.invalid is not looked up"
    );
    assert!(
        ended.stdout.ends_with("works, with one warning.\n"),
        "{}",
        ended.stdout
    );
}
