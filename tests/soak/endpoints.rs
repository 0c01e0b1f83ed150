//! Three apiservers, of which one is killed, one falls silent and one is slow.

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

/// A listener that takes no connection any more: what comes is dropped by the kernel, as by a host that is
/// gone. Holds its port for as long as it lives.
struct BlackHole {
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    async fn at(address: SocketAddr) -> Self {
        // The process that listened there before may not have ended yet.
        let listener = loop {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            match socket.bind(address).and_then(|()| socket.listen(1)) {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let mut queue = Vec::new();
        // Until the queue is full, which shows in a connection that is not made.
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

/// When `instance` noticed that the endpoint at `address` is unhealthy or healthy.
async fn noticed(
    instance: &Instance,
    what: &[&str],
    address: SocketAddr,
    since: Instant,
) -> Duration {
    let address = address.to_string();
    for what in std::iter::repeat_with(|| what.iter()).take(400) {
        for what in what {
            if let Some(at) = instance.said(&[what, &address], since) {
                return at - since;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing was noticed of {address} within 20 s");
}

const UNHEALTHY: [&str; 2] = ["upstream probe failed", "upstream connection failed"];
const HEALTHY: [&str; 1] = ["upstream endpoint healthy"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_apiserver_killed_one_silent_and_one_slow() {
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
        noticed(&instance, &HEALTHY, address, start).await;
    }

    let mut report = Vec::new();
    // Killed: connections are reset and refused.
    let kill = Instant::now();
    drop(killed);
    let detected = noticed(&instance, &UNHEALTHY, at_killed, kill).await;
    report.push(format!("killed: noticed after {detected:?}"));
    assert!(detected < LIMIT, "{detected:?}");
    quiet(&load, "after the first detection").await;

    // Silent: packets vanish, on connections that exist too.
    let freeze = Instant::now();
    silent.freeze();
    let detected = noticed(&instance, &UNHEALTHY, at_silent, freeze).await;
    report.push(format!("silent: noticed after {detected:?}"));
    assert!(detected < LIMIT, "{detected:?}");
    quiet(&load, "with one of three").await;
    let asked = load.tally().requests();

    let back = Instant::now();
    let listener = loop {
        match TcpListener::bind(at_killed).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let again = Upstream::builder(ca.server(&[APISERVER])).serve(listener);
    let recovered = noticed(&instance, &HEALTHY, at_killed, back).await;
    report.push(format!("killed: taken back after {recovered:?}"));
    assert!(recovered < LIMIT, "{recovered:?}");
    let back = Instant::now();
    silent.thaw();
    let recovered = noticed(&instance, &HEALTHY, at_silent, back).await;
    report.push(format!("silent: taken back after {recovered:?}"));
    assert!(recovered < LIMIT, "{recovered:?}");
    quiet(&load, "with all of them").await;
    assert!(load.tally().requests() > asked);

    // Gone: not even a connection is made.
    let gone = Instant::now();
    drop(again);
    let _hole = tokio::time::timeout(LIMIT, BlackHole::at(at_killed))
        .await
        .unwrap();
    let detected = noticed(&instance, &UNHEALTHY, at_killed, gone).await;
    report.push(format!("gone: noticed after {detected:?}"));
    assert!(detected < LIMIT, "{detected:?}");
    quiet(&load, "with one of three gone").await;
    println!("{}\n{}", load.finish().await, report.join("\n"));
}

/// What was begun before may fail, however long that takes: a request that went to an apiserver before it was
/// known to be silent has no deadline. From here on nothing does.
async fn quiet(load: &Load, when: &str) {
    let from_here = Instant::now();
    let before = load.tally().take_failures();
    println!("{when}: {} requests had failed before", before.len());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut failures = load.tally().take_failures();
    failures.retain(|(begun, _)| *begun >= from_here);
    assert!(failures.is_empty(), "{when}: {failures:#?}");
}

/// For detection and for recovery.
const LIMIT: Duration = Duration::from_secs(10);
