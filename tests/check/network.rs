//! Problems between this machine and a verified connection.

use std::{net::SocketAddr, time::Duration};

use socket2::{Domain, Socket, Type};
use standin::{
    outbound::{CONNECTED, Outbound, Script},
    tcp::{Behaviour, Peer, refused},
};
use tokio::{net::TcpStream, time::timeout};

use crate::world::{APISERVER, RunResult, World, check, flags, path};

const AFTER_TCP: [&str; 7] = [
    "tls", "verify", "alpn", "version", "clock", "readyz", "upgrade",
];

/// Checks with a short connect timeout.
async fn check_with_short_timeout(world: &World, upstream: SocketAddr) -> RunResult {
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
async fn unknown_name_fails_dns() {
    let world = World::new();
    let flags = world.flags_as("https://apiserver.invalid:6443", &world.identity());
    let result = check(&[flags, world.clients_trust()].concat(), &[]).await;
    result.assert_finding(
        1,
        '✗',
        "dns",
        "cannot resolve apiserver.invalid: ",
        "check the name in the URL of --upstream, and the DNS settings of this machine",
    );
    assert_eq!(result.marked('–'), [&["tcp"], &AFTER_TCP[..]].concat());
}

#[tokio::test]
async fn closed_port_fails_tcp() {
    let world = World::new();
    let address = refused().await;
    let result = world.check(address, &[]).await;
    result.assert_finding(
        1,
        '✗',
        "tcp",
        &format!("{address} refuses connections: nothing listens on this port"),
        "start the apiserver there, or correct the port",
    );
    assert_eq!(result.marked('–'), AFTER_TCP);
}

/// k3s calls the cluster of its kubeconfig `default`, which is also the name of the one at --upstream.
#[tokio::test]
async fn fix_names_the_file_that_has_the_url() {
    let world = World::new();
    let address = refused().await;
    let mut good = world.flags(address);
    let at = good.iter().position(|flag| flag == "--upstream").unwrap();
    good.drain(at..at + 4);
    let kubeconfig = format!(
        "current-context: default
contexts: [{{ name: default, context: {{ cluster: default }} }}]
clusters:
- name: default
  cluster: {{ server: \"https://{address}\", certificate-authority: cluster-ca.crt }}
"
    );
    let kubeconfig = world.dir.write("k3s.yaml", kubeconfig);
    let flags = [
        good,
        world.clients_trust(),
        flags(&[("--kubeconfig", path(&kubeconfig))]),
    ];
    check(&flags.concat(), &[]).await.assert_finding(
        1,
        '✗',
        "tcp",
        "refuses connections",
        &format!(
            "correct the port in the URL of the apiserver in {}",
            path(&kubeconfig)
        ),
    );
}

/// A listener with a full queue drops packets, as a firewall does.
#[tokio::test]
async fn dropped_packets_fail_tcp() {
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
        assert!(queued.len() < 16, "the queue never fills");
    }
    let result = check_with_short_timeout(&world, address).await;
    result.assert_finding(
        1,
        '✗',
        "tcp",
        &format!("{address} does not respond within 300 ms: a firewall drops the packets, or no machine has this address"),
        &format!("allow connections from this machine to TCP port {} there (firewall", address.port()),
    );
    assert_eq!(result.marked('–'), AFTER_TCP);
}

#[tokio::test]
async fn plain_http_server_fails_tls() {
    let world = World::new();
    let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec();
    let peer = Peer::start(Behaviour::Responds(answer)).await;
    let result = world.check(peer.address(), &[]).await;
    result.assert_finding(
        1,
        '✗',
        "tls",
        &format!(
            "{} does not speak TLS; it speaks plain HTTP",
            peer.address()
        ),
        "write the HTTPS port of the apiserver",
    );
    assert_eq!(result.marked('–'), AFTER_TCP[1..]);
}

#[tokio::test]
async fn ssh_server_fails_tls_and_is_named() {
    let world = World::new();
    let peer = Peer::start(Behaviour::Responds(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())).await;
    world.check(peer.address(), &[]).await.assert_finding(
        1,
        '✗',
        "tls",
        "does not speak TLS; it speaks SSH",
        "write the HTTPS port of the apiserver",
    );
}

#[tokio::test]
async fn silent_or_closing_server_fails_tls() {
    let world = World::new();
    let peer = Peer::start(Behaviour::Silent).await;
    check_with_short_timeout(&world, peer.address())
        .await
        .assert_finding(
            1,
            '✗',
            "tls",
            "accepts connections but sends nothing for 300 ms",
            "check that the process on this port is the apiserver and is not overloaded",
        );
    for behaviour in [Behaviour::CloseInHandshake, Behaviour::ResetInHandshake] {
        let peer = Peer::start(behaviour).await;
        world.check(peer.address(), &[]).await.assert_finding(
            1,
            '✗',
            "tls",
            "closes the connection during the TLS handshake",
            "check that the process on this port is the apiserver",
        );
    }
}

#[tokio::test]
async fn certificate_not_yet_valid_fails_verify() {
    let world = World::new();
    let identity = world.cluster_ca.leaf(&[APISERVER]).not_yet_valid().build();
    let upstream = world.apiserver_as(identity).start().await;
    world.check(upstream.address(), &[]).await.assert_finding(
        1,
        '✗',
        "verify",
        "is not valid before 2089-01-01T00:00:00Z; the clock of this machine says 20",
        "correct the clock of this machine (NTP)",
    );
}

/// HTTP/1.1 works but costs more connections, so it is a warning.
#[tokio::test]
async fn http1_only_apiserver_is_a_warning() {
    let world = World::new();
    let upstream = world.apiserver().alpn(&["http/1.1"]).start().await;
    let result = world.check(upstream.address(), &[]).await;
    result.assert_finding(
        0,
        '!',
        "alpn",
        "the server does not choose HTTP/2: requests work over HTTP/1.1",
        "enable HTTP/2 on the apiserver (no --disable-http2-serving",
    );
    assert_eq!(result.marked('!'), ["alpn"]);
}

/// The proxy is made to work while some of its endpoints are unhealthy.
#[tokio::test]
async fn one_bad_address_of_two_is_a_warning() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    world.flags(upstream.address());
    let (healthy, down) = (upstream.address(), refused().await);
    let config = format!(
        "listen: [\"127.0.0.1:0\"]
certificates: [{{ certificate: public.crt, key: public.key }}]
clusters:
- name: several
  upstream:
    url: https://apiserver.invalid:6443
    addresses: [\"{down}\", \"{healthy}\"]
    ca: cluster-ca.crt
    name: {APISERVER}
"
    );
    let file = world.dir.write("config.yaml", config);
    let flags = [flags(&[("--config", path(&file))]), world.clients_trust()].concat();
    let result = check(&flags, &[]).await;
    result.assert_finding(
        0,
        '!',
        "tcp",
        &format!("{down} refuses connections"),
        "start the apiserver there",
    );
    assert_eq!(
        result.of("dns")[0].message,
        "the configuration gives the addresses; no DNS lookup of apiserver.invalid is needed"
    );
    assert!(
        result.stdout.ends_with("passed, with one warning.\n"),
        "{}",
        result.stdout
    );
}

/// Checks an apiserver that only the outbound proxy can reach.
async fn check_through_outbound(world: &World, url: &str) -> RunResult {
    let flags = [
        world.flags_as("https://apiserver.inside.test:6443", &world.identity()),
        world.clients_trust(),
    ];
    check(&flags.concat(), &["--upstream-proxy-url", url]).await
}

#[tokio::test]
async fn apiserver_through_outbound_proxy_passes_every_check() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    for (scheme, script) in [
        ("http", Script::Connects(CONNECTED)),
        ("socks5", Script::Socks(None, 0)),
    ] {
        let outbound = Outbound::start(script, upstream.address(), None).await;
        let url = format!("{scheme}://{}", outbound.address());
        let result = check_through_outbound(&world, &url).await;
        assert_eq!(result.code, 0, "{}", result.stdout);
        let text = format!(
            "{url} ({}) connects to apiserver.inside.test:6443",
            outbound.address()
        );
        assert!(result.stdout.contains(&text), "{}", result.stdout);
        assert!(outbound.asked().len() > 2);
    }
}

/// The two halves of the way, and TLS with the apiserver after it.
#[tokio::test]
async fn failure_says_which_side_of_the_outbound_proxy_it_is() {
    let world = World::new();
    let foreign = standin::pki::Ca::new("foreign").server(&[APISERVER]);
    let upstream = world.apiserver_as(foreign).start().await;
    let down = refused().await;
    let says = |text: &str| Script::Ends(text.as_bytes().to_vec());
    for (script, check, message, fix) in [
        (
            None,
            "tcp",
            "no connection with http://AT (AT): cannot connect to it: ",
            "start the outbound proxy or tunnel there",
        ),
        (
            Some(says("HTTP/1.1 407 Login\r\n\r\n")),
            "tcp",
            "no connection with http://AT (AT): it refused: 407 Login; check user name",
            "write a user name and a password that it accepts into its URL",
        ),
        (
            Some(says("HTTP/1.1 403 Forbidden\r\n\r\n")),
            "tcp",
            "http://AT (AT) does not connect to apiserver.inside.test:6443: it refused: 403 Forbidden",
            "let it connect to that address",
        ),
        (
            Some(Script::Connects(CONNECTED)),
            "verify",
            "the certificate of apiserver.inside.test:6443 through http://AT is not signed by",
            "pass the CA that issued it",
        ),
        (
            Some(Script::Connects("HTTP/1.1 200 OK\r\n\r\nSSH-2.0-x\r\n")),
            "tls",
            "apiserver.inside.test:6443 through http://AT does not speak TLS",
            "write the HTTPS port",
        ),
    ] {
        let outbound = match script {
            Some(script) => Some(Outbound::start(script, upstream.address(), None).await),
            None => None,
        };
        let at = outbound
            .as_ref()
            .map_or(down, Outbound::address)
            .to_string();
        let result = check_through_outbound(&world, &format!("http://u:hunter2@{at}")).await;
        result.assert_finding(1, '✗', check, &message.replace("AT", &at), fix);
        assert!(!result.stdout.contains("hunter2"), "{}", result.stdout);
    }
}
