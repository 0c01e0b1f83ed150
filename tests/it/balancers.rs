//! Load balancers that name their clients in PROXY headers, lists of addresses, and HTTP proxies in front.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use kube_tls_proxy::{
    cidr::AddressList,
    config::{Config, TokenBucketSize},
};
use standin::{
    client::{Client, Http1},
    haproxy::HaProxy,
    upstream::Upstream,
    within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    admin::{scrape, wait_for_numbers},
    limits::clients::authenticated,
    logs::event,
    proxy::{HOST, Proxy, World},
    responses::{BOTH, Protocol},
};

/// On Linux every loopback address works without configuration.
const BALANCER: &str = "127.0.0.1";
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

pub(crate) fn list(ranges: &[&str]) -> AddressList {
    ranges.iter().map(|range| range.parse().unwrap()).collect()
}

fn v1(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let (family, destination) = match client {
        SocketAddr::V4(_) => ("TCP4", "198.51.100.1"),
        SocketAddr::V6(_) => ("TCP6", "2001:db8::1"),
    };
    let (ip, port) = (client.ip(), client.port());
    format!("PROXY {family} {ip} {destination} {port} 443\r\n").into_bytes()
}

fn v2(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let (family, mut block) = match client.ip() {
        IpAddr::V4(ip) => (0x11, [ip.octets(), [198, 51, 100, 1]].concat()),
        IpAddr::V6(ip) => (0x21, [ip.octets(), [9; 16]].concat()),
    };
    block.extend(client.port().to_be_bytes());
    block.extend(443_u16.to_be_bytes());
    // A field that means nothing here, as load balancers send them.
    block.extend([0xea, 0, 3, 1, 2, 3]);
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [
        b"\r\n\r\n\0\r\nQUIT\n\x21".as_slice(),
        &[family],
        &length,
        &block,
    ]
    .concat()
}

/// A proxy that expects a PROXY header from [`BALANCER`].
async fn behind_balancer(world: &World) -> (Upstream, Proxy) {
    let upstream = world.apiserver().start().await;
    let setup = world.proxy(upstream.address()).admin();
    let setup = setup.timeouts(|timeouts| timeouts.handshake = Duration::from_secs(2));
    let setup = setup.peers(|peers| peers.balancers = list(&[BALANCER]));
    (upstream, setup.start())
}

/// What the proxy sends in response to these bytes, until it closes the connection.
async fn response_to(client: &Client, bytes: &[u8]) -> Vec<u8> {
    // The proxy may have reset the connection already.
    let Ok(mut tcp) = client.tcp().await else {
        return Vec::new();
    };
    tcp.write_all(bytes).await.ok();
    let mut received = Vec::new();
    within("the end of the connection", tcp.read_to_end(&mut received))
        .await
        .ok();
    received
}

async fn serves(client: &Client, protocol: Protocol) -> bool {
    let client = match protocol {
        Protocol::Http1 => client.clone().alpn(&["http/1.1"]),
        Protocol::Http2 => client.clone().alpn(&["h2"]),
    };
    let Ok(tls) = client.connect().await else {
        return false;
    };
    match protocol {
        Protocol::Http1 => Http1::new(tls).get(HOST, "/version", "").await.status == 200,
        Protocol::Http2 => {
            let http2 = standin::client::Http2::new(tls).await;
            http2.get("https://kube.test/version").await.unwrap().text() == "ok"
        }
    }
}

#[tokio::test]
async fn proxy_header_names_the_client_to_the_apiserver() {
    let world = World::new();
    let (upstream, proxy) = behind_balancer(&world).await;
    for (header, expected) in [
        (v1("192.0.2.7:56324"), "192.0.2.7"),
        (v2("192.0.2.8:56324"), "192.0.2.8"),
        (v1("[2001:db8::7]:1"), "2001:db8::7"),
        (v2("[2001:db8::8]:1"), "2001:db8::8"),
        (v1("[::ffff:192.0.2.9]:1"), "192.0.2.9"),
        (v2("[::ffff:192.0.2.10]:1"), "192.0.2.10"),
        (b"PROXY UNKNOWN\r\n".to_vec(), BALANCER),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), BALANCER),
    ] {
        for protocol in BOTH {
            let client = proxy.client().preamble(&header);
            assert!(serves(&client, protocol).await, "{expected} {protocol:?}");
            let requests = upstream.requests();
            let request = requests.last().unwrap();
            let lines = request.headers.iter();
            let lines: Vec<_> = lines
                .filter(|(name, _)| name == "x-forwarded-for")
                .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
                .collect();
            assert_eq!(lines, [expected], "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn header_and_hello_arrive_together_or_byte_by_byte() {
    let world = World::new();
    let (_upstream, proxy) = behind_balancer(&world).await;
    let hello = proxy.client().hello();
    for header in [v1("192.0.2.7:1"), v2("192.0.2.7:1")] {
        let bytes = [header, hello.clone()].concat();
        for piece in [bytes.len(), 1] {
            let mut tcp = proxy.client().tcp().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            for piece in bytes.chunks(piece) {
                tcp.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut first = [0];
            within("a ServerHello", tcp.read_exact(&mut first))
                .await
                .unwrap();
            assert_eq!(first, [22], "a record of the handshake");
        }
    }
}

/// It must not learn anything about the certificate, either.
#[tokio::test]
async fn balancer_without_a_valid_header_gets_no_byte() {
    let world = World::new();
    let (upstream, proxy) = behind_balancer(&world).await;
    let client = proxy.client();
    let hello = client.hello();
    let cut = v2("192.0.2.7:1");
    let starts: [&[u8]; 6] = [
        &hello,
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 192.0.2.7\r\n",
        b"PROXY TCP5 192.0.2.7 192.0.2.8 1 2\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31",
        &[&[22], v1("192.0.2.7:1").as_slice()].concat(),
    ];
    for start in starts {
        let received = response_to(&client, &[start, &hello].concat()).await;
        assert_eq!(received, b"", "{}", start.escape_ascii());
    }
    // It ends within the header, and it never comes.
    let mut tcp = client.tcp().await.unwrap();
    tcp.write_all(&cut[..20]).await.unwrap();
    drop(tcp);
    assert_eq!(response_to(&client, &cut[..20]).await, b"");
    let failed = "handshakes_total{result=\"proxy_header\"}";
    wait_for_numbers(proxy.admin(), &[(failed, 8.0)]).await;
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn probe_of_a_balancer_is_no_failed_handshake() {
    let world = World::new();
    let (_upstream, proxy) = behind_balancer(&world).await;
    for _ in 0..20 {
        let mut tcp = TcpStream::connect(proxy.address()).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut received = Vec::new();
        within("the end of the connection", tcp.read_to_end(&mut received))
            .await
            .ok();
    }
    assert!(
        serves(
            &proxy.client().preamble(&v1("192.0.2.7:1")),
            Protocol::Http2
        )
        .await
    );
    let numbers = scrape(proxy.admin()).await;
    for result in ["proxy_header", "failed", "closed", "timeout"] {
        let series = format!("handshakes_total{{result=\"{result}\"}}");
        assert_eq!(numbers.get(&series).to_bits(), 0, "{result}");
    }
}

/// Otherwise any client could name another address.
#[tokio::test]
async fn header_of_another_peer_is_a_failed_handshake() {
    let world = World::new();
    let (upstream, proxy) = behind_balancer(&world).await;
    let client = proxy.client().from(OTHER);
    for header in [v1("192.0.2.7:1"), v2("192.0.2.7:1")] {
        let received = response_to(&client, &[header.as_slice(), &client.hello()].concat()).await;
        let alert = [21, 3, 3, 0, 2, 2, 10];
        assert!(received.is_empty() || received == alert, "{received:?}");
    }
    let failed = "handshakes_total{result=\"proxy_header\"}";
    wait_for_numbers(proxy.admin(), &[(failed, 2.0)]).await;
    assert_eq!(upstream.requests().len(), 0);
    assert!(serves(&client, Protocol::Http2).await);
    let requests = upstream.requests();
    assert_eq!(requests[0].header("x-forwarded-for"), Some("127.0.0.2"));
    // A second header would name a second client.
    let client = proxy
        .client()
        .preamble(&[v1("192.0.2.7:1"), v1("192.0.2.8:1")].concat());
    client.connect().await.unwrap_err();
}

#[tokio::test]
async fn plain_http_after_a_header_is_told_to_use_https() {
    let world = World::new();
    let (_upstream, proxy) = behind_balancer(&world).await;
    let bytes = [
        v1("192.0.2.7:1").as_slice(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    .concat();
    let received = response_to(&proxy.client(), &bytes).await;
    let text = String::from_utf8(received).unwrap();
    assert!(text.contains("this port speaks HTTPS"), "{text}");
}

#[tokio::test]
async fn denied_address_is_closed_before_tls() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let setup = world.proxy(upstream.address()).admin();
    let proxy = setup
        .peers(|peers| {
            peers.balancers = list(&[BALANCER]);
            peers.allow = Some(list(&["127.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]));
            peers.deny = list(&["127.0.0.2", "192.0.2.7", "2001:db8:bad::/48"]);
        })
        .start();
    // The socket's address, and the address in a header.
    let denied = proxy.client().from(OTHER);
    assert_eq!(response_to(&denied, &denied.hello()).await, b"");
    for client in [
        "192.0.2.7:1",
        "198.51.100.9:1",
        "[2001:db8:bad::1]:1",
        "[::ffff:192.0.2.7]:1",
    ] {
        for header in [v1(client), v2(client)] {
            let bytes = [header, proxy.client().hello()].concat();
            assert_eq!(response_to(&proxy.client(), &bytes).await, b"", "{client}");
        }
    }
    let counted = [
        ("handshakes_total{result=\"denied\"}", 9.0),
        ("handshakes_total{result=\"ok\"}", 0.0),
    ];
    wait_for_numbers(proxy.admin(), &counted).await;
    for client in ["192.0.2.8:1", "[2001:db8::1]:1"] {
        assert!(
            serves(&proxy.client().preamble(&v2(client)), Protocol::Http2).await,
            "{client}"
        );
    }
    let allowed = proxy.client().from(Ipv4Addr::new(127, 0, 0, 3).into());
    assert!(serves(&allowed, Protocol::Http1).await);
}

/// A proxy whose configuration the test changes.
fn reloading(world: &World, upstream: SocketAddr) -> (Arc<Mutex<Config>>, Proxy) {
    let mut setup = world.proxy(upstream);
    // A reload reads the configuration again only if a file has changed.
    setup.config.sources = vec![world.dir.write("proxy.yaml", "")];
    let config = Arc::new(Mutex::new(setup.config.clone()));
    let source = Arc::clone(&config);
    let proxy = setup.start_from(Box::new(move || Ok(source.lock().unwrap().clone())));
    (config, proxy)
}

#[tokio::test]
async fn lists_change_while_the_listener_stays() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let (config, proxy) = reloading(&world, upstream.address());
    let mut open = proxy.client().from(OTHER).http1().await;
    let change = |change: &dyn Fn(&mut Config)| {
        let mut config = config.lock().unwrap();
        change(&mut config);
        world.dir.write("proxy.yaml", format!("{config:?}"));
        proxy.reload();
    };
    let until = async |client: Client, served: bool| {
        let reached = async {
            while serves(&client, Protocol::Http1).await != served {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("the reload", reached).await;
    };
    let (plain, other) = (proxy.client(), proxy.client().from(OTHER));
    change(&|config| config.listen[0].peers.deny = list(&["127.0.0.2"]));
    until(other.clone(), false).await;
    assert!(serves(&plain, Protocol::Http2).await);
    assert_eq!(open.get(HOST, "/version", "").await.text(), "ok");
    change(&|config| {
        config.listen[0].peers.deny = AddressList::default();
        config.listen[0].peers.balancers = list(&[BALANCER]);
    });
    until(other, true).await;
    assert!(!serves(&plain, Protocol::Http2).await);
    assert!(serves(&plain.clone().preamble(&v1("192.0.2.7:1")), Protocol::Http2).await);
    // The entry of another address has no effect, and the lists stay.
    change(&|config| {
        let others = ["127.0.0.1:1", "127.0.0.1:2"];
        config.listen = others.map(|address| address.parse().unwrap()).into();
        config.listen[1].peers.deny = list(&["127.0.0.2"]);
        config.trusted_proxies = list(&["192.0.2.7"]);
    });
    let named = plain.clone().preamble(&v1("192.0.2.7:1"));
    let reached = async {
        loop {
            let mut client = named.http1().await;
            client
                .get(HOST, "/version", "X-Forwarded-For: 203.0.113.9\r\n")
                .await;
            let requests = upstream.requests();
            if requests.last().unwrap().header("x-forwarded-for") == Some("203.0.113.9") {
                break;
            }
        }
    };
    within("the reload", reached).await;
    assert!(!serves(&plain, Protocol::Http2).await);
}

/// The one of many that share a load balancer.
#[tokio::test]
async fn client_behind_a_balancer_has_limits_of_its_own() {
    let world = World::new();
    let upstream = world.apiserver().http(authenticated).start().await;
    let proxy = world
        .proxy(upstream.address())
        .admin()
        .peers(|peers| peers.balancers = list(&[BALANCER]))
        .limits(|limits| {
            limits.connections_per_client = Some(2);
            limits.unauthorized_per_client = TokenBucketSize::new(2, Duration::from_secs(3600));
        })
        .start();
    let client = |address| proxy.client().preamble(&v2(address));
    let (one, _two) = (
        client("192.0.2.7:1").http1().await,
        client("192.0.2.7:2").http1().await,
    );
    client("192.0.2.7:3").connect().await.unwrap_err();
    let hits = "limits_hit_total{limit=\"client_connections\"}";
    wait_for_numbers(proxy.admin(), &[(hits, 1.0)]).await;
    let (mut one, mut other) = (one, client("192.0.2.8:1").http1().await);
    let bad = "Authorization: Bearer bad\r\n";
    for _ in 0..10 {
        assert_eq!(one.get(HOST, "/api/v1/pods", bad).await.status, 401);
    }
    let before = upstream.requests().len();
    assert_eq!(other.get(HOST, "/api/v1/pods", bad).await.status, 401);
    assert_eq!((before, upstream.requests().len()), (2, 3));
}

#[tokio::test]
async fn trusted_proxy_names_the_client_of_each_request() {
    let world = World::new();
    let upstream = world.apiserver().http(authenticated).start().await;
    let mut setup = world.proxy(upstream.address()).admin();
    setup.config.trusted_proxies = list(&[BALANCER, "10.0.0.0/8"]);
    let proxy = setup
        .limits(|limits| {
            limits.unauthorized_per_client = TokenBucketSize::new(2, Duration::from_secs(3600));
        })
        .start();
    let bad = ("authorization", "Bearer bad");
    for protocol in BOTH {
        for (lines, expected) in [
            (&["192.0.2.7"][..], "192.0.2.7"),
            (&["6.6.6.6", "192.0.2.8, 10.0.0.2"], "192.0.2.8"),
            (&["6.6.6.6, [2001:db8::7]:4711"], "2001:db8::7"),
            (&["6.6.6.6, unknown"], BALANCER),
            (&[], BALANCER),
        ] {
            let mut fields: Vec<_> = lines
                .iter()
                .map(|line| ("x-forwarded-for", *line))
                .collect();
            fields.push(("authorization", "Bearer good"));
            let response = proxy.request(protocol, "GET", "/api", &fields, b"").await;
            assert_eq!(response.code, 200);
            let requests = upstream.requests();
            let request = requests.last().unwrap();
            assert_eq!(
                request.header("x-forwarded-for"),
                Some(expected),
                "{protocol:?}"
            );
            let lines = request.headers.iter();
            assert_eq!(
                lines.filter(|(name, _)| name == "x-forwarded-for").count(),
                1
            );
        }
        // The budget is that of the client, not of the proxy in front.
        let guessing = match protocol {
            Protocol::Http1 => "203.0.113.1",
            Protocol::Http2 => "203.0.113.2",
        };
        let before = upstream.requests().len();
        for _ in 0..10 {
            let fields = [bad, ("x-forwarded-for", guessing)];
            let response = proxy.request(protocol, "GET", "/api", &fields, b"").await;
            assert_eq!(response.code, 401);
        }
        assert_eq!(upstream.requests().len() - before, 2, "{protocol:?}");
        let fields = [bad, ("x-forwarded-for", "203.0.113.99")];
        proxy.request(protocol, "GET", "/api", &fields, b"").await;
        let counted = upstream.requests().len() - before;
        assert_eq!(counted, 3, "{protocol:?}");
    }
    // A client that is not trusted cannot do that.
    let mut client = proxy.client().from(OTHER).http1().await;
    client
        .get(HOST, "/livez", "X-Forwarded-For: 192.0.2.7\r\n")
        .await;
    let requests = upstream.requests();
    let request = requests.last().unwrap();
    assert_eq!(request.header("x-forwarded-for"), Some("127.0.0.2"));
}

#[tokio::test]
async fn log_names_the_client_and_the_balancer() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let flags = ["--log-format", "json", "--proxy-protocol-from", BALANCER];
    let binary = crate::binary::Binary::start(&world, upstream.address(), &flags).await;
    let client = binary.client(&world).preamble(&v2("192.0.2.7:56324"));
    client.http1().await.get(HOST, "/named", "").await;
    let line = event(&binary, "request", "/named").await;
    assert_eq!(line["client.address"], "192.0.2.7:56324", "{line}");
    let peer = line["network.peer.address"].as_str().unwrap();
    assert!(peer.starts_with("127.0.0.1:"), "{line}");
    let direct = binary.client(&world).from(OTHER);
    direct.http1().await.get(HOST, "/direct", "").await;
    let line = event(&binary, "request", "/direct").await;
    assert!(
        line["client.address"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.2:"),
        "{line}"
    );
    assert_eq!(line.get("network.peer.address"), None, "{line}");
    // One line for each peer in 10 s.
    for _ in 0..5 {
        binary.client(&world).connect().await.unwrap_err();
    }
    let failed = "downstream handshake failed";
    let find = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        (event["message"] == failed).then_some(event)
    };
    let line = binary.wait_for(failed, find).await;
    assert_eq!(line["reason"], "proxy_header", "{line}");
    assert!(
        line["error"]
            .as_str()
            .unwrap()
            .contains("proxyProtocol.from"),
        "{line}"
    );
    let lines = binary.stderr();
    let lines = lines.iter().filter(|line| line.contains(failed));
    assert_eq!(lines.count(), 1);
}

/// Debian's `HAProxy`, as most clusters outside clouds have it.
#[tokio::test]
async fn haproxy_names_the_client_in_each_version() {
    let world = World::new();
    let (upstream, proxy) = behind_balancer(&world).await;
    for (listen, source) in [("127.0.0.1", "127.0.0.9"), ("::1", "::1")] {
        for options in [
            "send-proxy",
            "send-proxy-v2",
            "send-proxy-v2 proxy-v2-options crc32c,unique-id",
            "send-proxy-v2 check check-send-proxy inter 100",
        ] {
            let listen = listen.parse().unwrap();
            let haproxy = HaProxy::start(&world.dir, listen, proxy.address(), options).await;
            let Some(haproxy) = haproxy else { return };
            let client = Client::new(haproxy.address)
                .trust(&world.public_ca)
                .sni(HOST);
            let client = client.from(source.parse().unwrap());
            for protocol in BOTH {
                assert!(serves(&client, protocol).await, "{options} {protocol:?}");
                let requests = upstream.requests();
                let request = requests.last().unwrap();
                assert_eq!(request.header("x-forwarded-for"), Some(source), "{options}");
            }
        }
    }
    let silent = HaProxy::start(&world.dir, [127, 0, 0, 1].into(), proxy.address(), "").await;
    let silent = silent.unwrap();
    let client = Client::new(silent.address)
        .trust(&world.public_ca)
        .sni(HOST);
    client.connect().await.unwrap_err();
    let failed = "handshakes_total{result=\"proxy_header\"}";
    wait_for_numbers(proxy.admin(), &[(failed, 1.0)]).await;
}
