//! Three apiservers: one is killed, one stops responding, and one is slow.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use http::Response;
use standin::{
    client::Client,
    pki::Ca,
    tcp::Relay,
    upstream::{Upstream, full},
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::{ALONE, APISERVER, HOST, World, instance::Instance, load::Load, size};

async fn apiserver(ca: &Ca) -> Upstream {
    Upstream::builder(ca.server(&[APISERVER])).start().await
}

/// A listener that accepts no connection: the kernel drops new connections, as a host that is gone would.
/// It keeps its port until it is dropped.
struct BlackHole {
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    async fn at(address: SocketAddr) -> Self {
        // The earlier listener on this address may not be closed yet.
        let listener = loop {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            match socket.bind(address).and_then(|()| socket.listen(1)) {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let mut queue = Vec::new();
        // Fills the queue. It is full when a connection is not established.
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            queue.push(connected.unwrap());
        }
        Self {
            _listener: listener,
            _queue: queue,
        }
    }
}

/// How long after `since` the log of `instance` reported the endpoint at `address` as unhealthy or healthy.
async fn wait_for_report(
    instance: &Instance,
    what: &[&str],
    address: SocketAddr,
    since: Instant,
) -> Duration {
    let address = address.to_string();
    for what in std::iter::repeat_with(|| what.iter()).take(400) {
        for what in what {
            if let Some(at) = instance.time_of_line(&[what, &address], since) {
                return at - since;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no log line about {address} within 20 s");
}

const UNHEALTHY: [&str; 1] = ["upstream endpoint unhealthy"];
const HEALTHY: [&str; 1] = ["upstream endpoint healthy"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_succeed_with_killed_silent_and_slow_apiservers() {
    let _alone = ALONE.lock().await;
    let ca = Ca::new("cluster");
    let world = World::new(&ca, "10s");
    let killed = apiserver(&ca).await;
    let hidden = apiserver(&ca).await;
    let silent = Relay::start(hidden.address()).await;
    let slow = Upstream::builder(ca.server(&[APISERVER]))
        .http(|_| async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Response::new(full("ok"))
        })
        .start()
        .await;
    let (at_killed, at_silent) = (killed.address(), silent.address());
    let instance = Instance::start(&world, &[at_killed, at_silent, slow.address()]).await;
    let client = Client::new(instance.address())
        .trust(&world.public_ca)
        .sni(HOST);
    let load = Load::requests(client, size().shape.requests_per_second);
    let start = Instant::now();
    for address in [at_killed, at_silent, slow.address()] {
        wait_for_report(&instance, &HEALTHY, address, start).await;
    }

    let mut report = Vec::new();
    // Killed: connections are reset and refused.
    let kill = Instant::now();
    drop(killed);
    let detected = wait_for_report(&instance, &UNHEALTHY, at_killed, kill).await;
    report.push(format!("killed: detected after {detected:?}"));
    assert!(detected < LIMIT, "{detected:?}");
    assert_no_failures(&load, "after the first detection").await;

    // Silent: all packets are lost, on existing connections too.
    let freeze = Instant::now();
    silent.freeze();
    let detected = wait_for_report(&instance, &UNHEALTHY, at_silent, freeze).await;
    report.push(format!("silent: detected after {detected:?}"));
    assert!(detected < LIMIT, "{detected:?}");
    assert_no_failures(&load, "with one of three").await;
    let requests_before = load.tally().requests();

    let back = Instant::now();
    let listener = loop {
        match TcpListener::bind(at_killed).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let restarted = Upstream::builder(ca.server(&[APISERVER])).serve(listener);
    let recovered = wait_for_report(&instance, &HEALTHY, at_killed, back).await;
    report.push(format!("killed: used again after {recovered:?}"));
    assert!(recovered < LIMIT, "{recovered:?}");
    let back = Instant::now();
    silent.thaw();
    let recovered = wait_for_report(&instance, &HEALTHY, at_silent, back).await;
    report.push(format!("silent: used again after {recovered:?}"));
    assert!(recovered < LIMIT, "{recovered:?}");
    assert_no_failures(&load, "with all of them").await;
    assert!(load.tally().requests() > requests_before);

    // Gone: no connection can be established.
    let gone = Instant::now();
    drop(restarted);
    let _hole = tokio::time::timeout(LIMIT, BlackHole::at(at_killed))
        .await
        .unwrap();
    let detected = wait_for_report(&instance, &UNHEALTHY, at_killed, gone).await;
    report.push(format!("gone: detected after {detected:?}"));
    assert!(detected < LIMIT, "{detected:?}");
    assert_no_failures(&load, "with one of three gone").await;
    println!("{}\n{}", load.finish().await, report.join("\n"));
}

/// Asserts that no request fails that begins from now on. Earlier requests may fail at any time: a request that
/// was sent to an apiserver before the proxy knew that it is silent has no deadline.
async fn assert_no_failures(load: &Load, when: &str) {
    let from_here = Instant::now();
    let before = load.tally().take_failures();
    println!("{when}: {} requests had failed before", before.len());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut failures = load.tally().take_failures();
    failures.retain(|(begun, _)| *begun >= from_here);
    assert!(failures.is_empty(), "{when}: {failures:#?}");
}

/// The limit for detection and for recovery.
const LIMIT: Duration = Duration::from_secs(10);
