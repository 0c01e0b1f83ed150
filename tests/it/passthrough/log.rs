//! The line of a passed connection: who it was, where it went, how much it carried, and who ended it.

use std::net::SocketAddr;

use serde_json::Value;
use standin::tcp::{self, refused};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::{ANSWER, PASSED, RawApiserver, hello, read, rest};
use crate::{binary::Binary, logs::events, proxy::World};

/// The binary with a JSON log and a passthrough cluster at `direct`.
async fn start(world: &World, direct: SocketAddr) -> Binary {
    let config = format!(
        "timeouts: {{drain: 0s, drainTunnels: 0s, probeInterval: 0s}}
clusters:
- {{name: prod, upstream: {{url: 'https://127.0.0.1:1', ca: cluster-ca.crt}}}}
- {{name: direct, hosts: [{PASSED}], passthrough: true, upstream: {{url: 'https://{direct}'}}}}
"
    );
    let config = world.dir.write("config.yaml", config);
    // An empty flag counts as absent.
    let none = ["--upstream", "", "--upstream-ca", "", "--upstream-name", ""];
    let flags = ["--log-format", "json", "--config", config.to_str().unwrap()];
    Binary::start(world, direct, &[&flags[..], &none].concat()).await
}

/// Waits for an event with this message.
async fn event(binary: &Binary, message: &str) -> Value {
    let find = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        (event["message"] == message).then_some(event)
    };
    binary.wait_for(message, find).await
}

#[tokio::test]
async fn each_end_of_a_passed_connection_has_its_reason() {
    let world = World::new();
    let direct = RawApiserver::start().await;
    for (case, expected) in [
        ("client ends", ["complete", "client", "eof"]),
        ("client reset", ["aborted", "client", "reset"]),
        ("apiserver ends", ["complete", "apiserver", "eof"]),
        ("apiserver reset", ["aborted", "apiserver", "reset"]),
        ("drain", ["drained", "proxy", "drain"]),
    ] {
        let binary = start(&world, direct.address()).await;
        let mut client = TcpStream::connect(binary.address()).await.unwrap();
        let address = client.local_addr().unwrap().to_string();
        let hello = hello("KuberNetes");
        client.write_all(&hello).await.unwrap();
        let mut server = direct.greet(&hello).await;
        assert_eq!(read(&mut client, ANSWER.len()).await, ANSWER);
        match case {
            "client ends" => {
                client.write_all(b"more").await.unwrap();
                client.shutdown().await.unwrap();
                assert_eq!(rest(&mut server).await, b"more");
                drop(server);
                rest(&mut client).await;
            }
            "client reset" => tcp::reset(client),
            "apiserver ends" => {
                server.shutdown().await.unwrap();
                rest(&mut client).await;
                drop(client);
                rest(&mut server).await;
            }
            "apiserver reset" => tcp::reset(server),
            _ => {
                binary.signal("TERM").await;
                // It counts as a tunnel, which no client can resume, and as no connection of requests.
                let draining = event(&binary, "draining").await;
                let open = ["connections", "tunnels"].map(|field| draining[field].as_u64());
                assert_eq!(open, [Some(0), Some(1)], "{draining}");
            }
        }
        let line = event(&binary, "passthrough").await;
        let end = ["outcome", "ended_by", "reason"].map(|field| line[field].as_str().unwrap());
        assert_eq!(end, expected, "{case}: {line}");
        assert_eq!(line["cluster"], "direct");
        assert_eq!(line["client.address"], address);
        assert_eq!(line["tls.client.server_name"], PASSED);
        assert_eq!(line["upstream.address"], direct.address().to_string());
        let more = if case == "client ends" { 4 } else { 0 };
        assert_eq!(line["received_bytes"], hello.len() + more, "{case}");
        assert_eq!(line["sent_bytes"], ANSWER.len(), "{case}");
    }
}

#[tokio::test]
async fn too_large_hello_is_logged_with_its_reason() {
    let world = World::new();
    let binary = start(&world, refused().await).await;
    let mut client = TcpStream::connect(binary.address()).await.unwrap();
    // A message of 17 KiB in two records, of which no byte matters.
    let record = |length: u16| [&[22, 3, 1][..], &length.to_be_bytes()].concat();
    let message = [&[1, 0, 0x44, 0], [0; 17 * 1024].as_slice()].concat();
    let (first, second) = message.split_at(16_000);
    let rest = u16::try_from(second.len()).unwrap();
    let bytes = [&record(16_000), first, &record(rest), second].concat();
    client.write_all(&bytes).await.unwrap();
    let line = event(&binary, "downstream handshake failed").await;
    assert_eq!(line["reason"], "hello_too_large", "{line}");
}

#[tokio::test]
async fn failed_passthrough_is_logged_with_its_cause() {
    let world = World::new();
    let endpoint = refused().await;
    let binary = start(&world, endpoint).await;
    let mut client = TcpStream::connect(binary.address()).await.unwrap();
    client.write_all(&hello(PASSED)).await.unwrap();
    rest(&mut client).await;
    let line = event(&binary, "passthrough").await;
    let end = ["outcome", "ended_by", "reason"].map(|field| line[field].as_str().unwrap());
    assert_eq!(end, ["connect", "apiserver", "no_connection"], "{line}");
    let cause = event(&binary, "passthrough failed").await;
    assert_eq!(cause["error.type"], "connect");
    assert_eq!(cause["upstream.address"], endpoint.to_string());
    assert!(
        cause["error"]
            .as_str()
            .unwrap()
            .contains("Connection refused"),
        "{cause}"
    );
}

/// Strangers can open as many connections as they like; each client has some lines, and then one a second.
#[tokio::test]
async fn flood_of_failing_connections_does_not_fill_the_log() {
    let world = World::new();
    let binary = start(&world, refused().await).await;
    for _ in 0..60 {
        let mut client = TcpStream::connect(binary.address()).await.unwrap();
        client.write_all(&hello(PASSED)).await.unwrap();
        rest(&mut client).await;
    }
    event(&binary, "passthrough").await;
    let lines = events(&binary);
    let about = lines.iter().filter(|line| line["message"] == "passthrough");
    let about = about.count();
    assert!((5..30).contains(&about), "{about} lines");
}
