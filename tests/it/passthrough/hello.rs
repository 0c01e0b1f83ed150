//! How the `ClientHello` arrives, and what it decides.

use standin::client::Client;
use tokio::io::AsyncWriteExt as _;

use super::{ANSWER, PASSED, RawApiserver, connect, hello, read, rest, setup};
use crate::{
    admin::{scrape, wait_for_numbers},
    proxy::World,
};

/// The largest `ClientHello` that is passed, with its record headers.
const MAX_HELLO: usize = 16 * 1024;
const HEADER: usize = 5;

/// The same `ClientHello` in records with this many bytes each.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let mut records = Vec::new();
    for fragment in hello[HEADER..].chunks(size) {
        records.extend(&hello[..3]);
        records.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
        records.extend(fragment);
    }
    records
}

/// A `ClientHello` of exactly this many bytes: its list of protocols fills it.
fn hello_of(length: usize) -> Vec<u8> {
    let with = |names: &[String]| {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let client = Client::new(([127, 0, 0, 1], 0).into());
        client.sni(PASSED).alpn(&names).hello()
    };
    let mut names = vec!["h2".to_owned()];
    while with(&names).len() + 300 < length {
        names.push("x".repeat(200));
    }
    let missing = length - with(&names).len();
    names.extend([missing / 2, missing - missing / 2].map(|part| "y".repeat(part - 1)));
    let hello = with(&names);
    assert_eq!(hello.len(), length);
    hello
}

/// TLS lets a client split the message into records, and TCP lets the network split the records, both anywhere.
#[tokio::test]
async fn apiserver_gets_the_hello_byte_for_byte() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    let one = hello(PASSED);
    for (bytes, piece) in [
        (one.clone(), one.len()),
        (one.clone(), 1),
        (one.clone(), 4),
        (one.clone(), one.len() - 1),
        (in_records(&one, 1), 4096),
        (in_records(&one, 3), 1),
        (in_records(&one, 64), 70),
        (in_records(&one, 64), HEADER + 64),
    ] {
        let mut client = connect(&proxy).await;
        for part in bytes.chunks(piece) {
            client.write_all(part).await.unwrap();
            // The proxy may read what is there so far.
            tokio::task::yield_now().await;
        }
        let mut server = direct.greet(&bytes).await;
        assert_eq!(read(&mut client, ANSWER.len()).await, ANSWER);
        client.write_all(b"then").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut server).await, b"then", "{piece}");
    }
}

/// Early data may follow in the same segment. It comes after the `ClientHello`, once.
#[tokio::test]
async fn bytes_after_the_hello_follow_it_in_order() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    let early: Vec<u8> = (0..100_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let bytes = [hello(PASSED), early].concat();
    let mut client = connect(&proxy).await;
    let length = hello(PASSED).len();
    let (sent, server) = tokio::join!(client.write_all(&bytes), async {
        let mut server = direct.greet(&bytes[..length]).await;
        assert!(read(&mut server, bytes.len() - length).await == bytes[length..]);
        server
    });
    sent.unwrap();
    drop(server);
    assert_eq!(rest(&mut client).await, ANSWER);
}

#[tokio::test]
async fn hello_of_16_kib_is_passed_and_a_larger_one_refused() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    let largest = hello_of(MAX_HELLO);
    let mut client = connect(&proxy).await;
    client.write_all(&largest).await.unwrap();
    direct.greet(&largest).await;
    let larger = in_records(&hello_of(MAX_HELLO - 10), 8000);
    assert_eq!(larger.len(), MAX_HELLO);
    let mut client = connect(&proxy).await;
    client.write_all(&larger).await.unwrap();
    direct.greet(&larger).await;
    for larger in [
        hello_of(MAX_HELLO + 1),
        in_records(&hello_of(MAX_HELLO - 9), 8000),
    ] {
        let mut client = connect(&proxy).await;
        client.write_all(&larger).await.unwrap();
        let mut received = Vec::new();
        // A reset if the proxy has not read the last byte.
        tokio::io::AsyncReadExt::read_to_end(&mut client, &mut received)
            .await
            .ok();
        assert_eq!(received, b"");
    }
    let numbers = [
        ("handshakes_total{result=\"failed\"}", 2.0),
        ("handshakes_total{result=\"passed\"}", 2.0),
    ];
    wait_for_numbers(proxy.admin(), &numbers).await;
}

/// Without a name the proxy cannot know the cluster, and a name that it does not know is not passed to any.
#[tokio::test]
async fn no_name_and_unknown_name_are_terminated() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    // An address is no server name, so none is sent.
    let mut client = proxy.client().sni("127.0.0.1").http1().await;
    assert_eq!(client.get("127.0.0.1", "/version", "").await.text(), "ok");
    for name in ["unknown.test", "a.kubernetes", "kubernetes.default.svc"] {
        let refused = proxy.client().sni(name).connect().await.unwrap_err();
        // The proxy presents its own certificate, which is not for this name.
        assert!(
            refused.to_string().contains("not valid for name"),
            "{refused}"
        );
    }
    let scrape = scrape(proxy.admin()).await;
    assert_eq!(scrape.get("handshakes_total{result=\"passed\"}"), 0.0);
    assert_eq!(
        scrape.get("connections_total{protocol=\"passthrough\"}"),
        0.0
    );
}

/// Capitals and the dot of the root label do not change which host a name is.
#[tokio::test]
async fn spelling_of_the_name_does_not_decide() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    for (placeholder, spelling) in [("kubernetes", "KuberNetes"), ("kubernetesx", "kubernetes.")] {
        let mut bytes = hello(placeholder);
        let windows = bytes.windows(placeholder.len());
        let at = windows
            .into_iter()
            .position(|part| part == placeholder.as_bytes())
            .unwrap();
        bytes[at..at + spelling.len()].copy_from_slice(spelling.as_bytes());
        let mut client = connect(&proxy).await;
        client.write_all(&bytes).await.unwrap();
        direct.greet(&bytes).await;
    }
}

/// The same `ClientHello` with one more extension.
fn with_extension(hello: &[u8], kind: u16, body: &[u8]) -> Vec<u8> {
    let number = |at: usize| usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
    let session = HEADER + 4 + 2 + 32;
    let suites = session + 1 + usize::from(hello[session]);
    let compression = suites + 2 + number(suites);
    let extensions = compression + 1 + usize::from(hello[compression]);
    let mut bytes = hello.to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    // The lengths of the record, of the message (without its first byte, which is 0), and of the extensions.
    for at in [3, 7, extensions] {
        let length = u16::try_from(number(at) + 4 + body.len()).unwrap();
        bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

/// Browsers send values without a meaning (GREASE), and an encrypted inner `ClientHello` (ECH). The outer name counts.
#[tokio::test]
async fn hello_with_unknown_extensions_is_passed_unchanged() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    let ech = [&[0, 0, 1, 0, 1, 7, 0, 32][..], &[9; 32], &[0, 16], &[3; 16]].concat();
    for (kind, body) in [(0x0a0a, &[][..]), (0xfada, &[0]), (0xfe0d, &ech)] {
        let bytes = with_extension(&hello(PASSED), kind, body);
        let mut client = connect(&proxy).await;
        client.write_all(&bytes).await.unwrap();
        direct.greet(&bytes).await;
    }
}

/// What rustls refuses is refused with the same alert as in a configuration without passthrough, and never passed on.
#[tokio::test]
async fn malformed_hello_gets_the_alert_of_termination() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let passing = setup(&world, terminated.address(), direct.address()).start();
    let plain = world.proxy(terminated.address()).start();
    let good = hello(PASSED);
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut alerts = 0;
    let twice = with_extension(&good, 0, &[0, 5, 0, 0, 2, b'a', b'b']);
    for bytes in [
        b"\x16\x03\x01\0\x05hello".to_vec(),
        changed(0, 23),
        changed(5, 2),
        changed(HEADER + 4 + 2 + 32, 0xff),
        twice,
        with_extension(&good, 0x000a, &[1]),
    ] {
        let mut answers = Vec::new();
        for proxy in [&passing, &plain] {
            let mut client = connect(proxy).await;
            client.write_all(&bytes).await.unwrap();
            client.shutdown().await.unwrap();
            answers.push(rest(&mut client).await);
        }
        assert_eq!(answers[0], answers[1], "{bytes:?}");
        let kind = answers[0].first().copied();
        assert!(kind.is_none_or(|kind| kind == 21), "{answers:?}");
        alerts += usize::from(kind.is_some());
    }
    assert!(alerts >= 3, "{alerts}");
    let scrape = scrape(passing.admin()).await;
    assert_eq!(scrape.get("handshakes_total{result=\"passed\"}"), 0.0);
    assert_eq!(scrape.get("handshakes_total{result=\"failed\"}"), 6.0);
}
