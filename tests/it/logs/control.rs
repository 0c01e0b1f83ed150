//! What the log says about the process itself, and how its level changes while it runs.

use std::time::Duration;

use serde_json::Value;
use standin::tcp;
use tokio::time::Instant;

use super::{events, start};
use crate::{
    binary::Binary,
    proxy::{APISERVER, HOST, World},
};

fn has(binary: &Binary, message: &str) -> bool {
    binary.stderr().iter().any(|line| line.contains(message))
}

/// Sends refused requests until `message` is in the log: at level `debug` each has the line `request refused`.
async fn refuse_until(world: &World, binary: &Binary, message: &str) {
    let deadline = Instant::now() + standin::WAIT;
    while !has(binary, message) {
        let mut client = binary.client(world).alpn(&["http/1.1"]).http1().await;
        let response = client.get("wrong.test", "/ok", "").await;
        assert_eq!(response.status, 421);
        assert!(Instant::now() < deadline, "{:#?}", binary.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn sigusr1_switches_debugging_on_and_off() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let binary = Binary::start(&world, upstream.address(), &["--log-level", "warn"]).await;
    binary.signal("USR1").await;
    binary
        .wait_for_line("debug logging switched on by SIGUSR1")
        .await;
    refuse_until(&world, &binary, "request refused").await;
    binary.signal("USR1").await;
    binary
        .wait_for_line("debug logging switched off by SIGUSR1")
        .await;
    let refused = |binary: &Binary| {
        let lines = binary.stderr();
        lines
            .iter()
            .filter(|line| line.contains("request refused"))
            .count()
    };
    let before = refused(&binary);
    let mut client = binary.client(&world).alpn(&["http/1.1"]).http1().await;
    client.get("wrong.test", "/last", "").await;
    binary.signal("TERM").await;
    binary.wait_for_line("/last").await;
    assert_eq!(refused(&binary), before);
}

/// nginx upgrades itself at SIGUSR2. By default the signal would end the process, and each exec with it.
#[tokio::test]
async fn sigusr2_is_ignored() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let binary = start(&world, upstream.address(), "info").await;
    let mut client = binary.client(&world).http1().await;
    client.get(HOST, "/version", "").await;
    binary.signal("USR2").await;
    binary.wait_for_line("SIGUSR2 ignored").await;
    assert_eq!(client.get(HOST, "/version", "").await.status, 200);
}

#[tokio::test]
async fn reload_changes_log_filter_and_access_log() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let write = |log: &str| {
        let text = format!("timeouts: {{reload: 1h}}\nlog: {{format: json, {log}}}\n");
        world.dir.write("log.yaml", text)
    };
    let config = write("filter: info, access: false");
    let flags = ["--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let mut client = binary.client(&world).alpn(&["http/1.1"]).http1().await;
    client.get(HOST, "/before", "").await;
    write("filter: debug, access: true");
    binary.signal("HUP").await;
    let line = binary
        .wait_for_line("configuration and certificates reloaded")
        .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["settings"], "log", "{line}");
    refuse_until(&world, &binary, "request refused").await;
    client.get(HOST, "/after", "").await;
    binary.wait_for_line("/after").await;
    assert!(!has(&binary, "/before"));
    assert!(!has(&binary, "need a restart"), "{:#?}", binary.stderr());
}

/// The line answers which certificate is in use now, and until when.
#[tokio::test]
async fn reload_names_the_certificate_that_changed_and_its_end() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let binary = start(&world, upstream.address(), "info").await;
    let new = world.public_ca.server(&[HOST, "127.0.0.1"]);
    new.write(&world.dir, "public");
    binary.signal("HUP").await;
    let line = binary
        .wait_for_line("configuration and certificates reloaded")
        .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    let certificates = line["certificates"].as_str().unwrap();
    let path = world.dir.path().join("public.crt");
    let named = format!("{HOST} 127.0.0.1 from {} until 2", path.display());
    assert!(certificates.starts_with(&named), "{certificates}");
    assert!(line.get("clusters").is_none(), "{line}");

    world
        .dir
        .write("cluster-ca.crt", standin::pki::Ca::new("next").pem());
    binary.signal("HUP").await;
    let line = binary.wait_for_line("\"clusters\":\"default: CA\"").await;
    assert!(!line.contains("certificates\""), "{line}");
}

/// A program can read each fact of the start without parsing a sentence.
#[tokio::test]
async fn start_is_logged_as_structured_events() {
    let world = World::new();
    let dead = tcp::refused().await;
    let binary = start(&world, dead, "info").await;
    binary.wait_for_line("cluster CA in use").await;
    let events = events(&binary);
    let find = |message: &str| events.iter().find(|event| event["message"] == message);
    let started = find("started").unwrap();
    assert!(
        started["connections"].is_u64() && started["workers"].is_u64(),
        "{started}"
    );
    assert_eq!(started["version"], env!("CARGO_PKG_VERSION"));
    let certificate = find("certificate in use").unwrap();
    assert_eq!(certificate["names"], format!("{HOST}, 127.0.0.1"));
    assert!(certificate["not_after"].as_str().unwrap().starts_with('2'));
    let cluster = find("cluster in use").unwrap();
    assert_eq!(cluster["url"], format!("https://{dead}"));
    assert_eq!(cluster["expected_name"], APISERVER);
    assert!(find("cluster CA in use").unwrap()["sha256"].is_string());
}

/// Text lines are logfmt: keys and values, with quotes where they are needed.
#[tokio::test]
async fn text_lines_are_logfmt() {
    let world = World::new();
    let binary = Binary::start(&world, tcp::refused().await, &[]).await;
    let mut client = binary.client(&world).alpn(&["http/1.1"]).http1().await;
    client.get(HOST, "/version", "").await;
    let line = binary.wait_for_line("msg=\"request\" ").await;
    for part in [
        "time=2",
        " level=INFO target=kube_tls_proxy::access msg=\"request\" cluster=default ",
        " url.path=/version http.response.status_code=502 k8s.verb=get ",
        " outcome=connect ended_by=apiserver reason=no_connection",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!line.contains("k8s.resource"), "an empty value: {line}");
    assert!(!line.contains("e-"), "an exponent: {line}");
    let line = binary.wait_for_line("msg=\"request failed\"").await;
    assert!(
        line.contains(" error=\"no response from the apiserver: "),
        "{line}"
    );
}
