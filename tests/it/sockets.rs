//! Open files: how the two legs share them, and what happens when none is left.

use std::{fs, time::Duration};

use kube_tls_proxy::memory::MemoryLimit;
use standin::{
    frames::{END_STREAM, FrameConnection, kind},
    within,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::{
    admin::{scrape, wait_for_numbers},
    binary::Binary,
    proxy::{HOST, World, data, watch_or_ok},
};

const OK: &str = "https://kube.test/ok";
const WATCH: &str = "https://kube.test/watch";

/// A client beyond its share fails alone, and can use what it has.
#[tokio::test]
async fn client_without_a_free_socket_gets_503_alone() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .alpn(&["http/1.1"])
        .http(watch_or_ok)
        .start()
        .await;
    let mut setup = world.proxy(upstream.address()).admin();
    setup.config.capacity.spare_sockets = 1;
    let proxy = setup.start();
    let greedy = proxy.client().http2().await;
    // Each stream needs a connection of its own: the one of the client, then the spare one.
    let mut watches = [
        greedy.open(WATCH).await.unwrap(),
        greedy.open(WATCH).await.unwrap(),
    ];
    let refused = greedy.get(OK).await.unwrap();
    assert_eq!(
        (
            refused.status.as_u16(),
            refused.headers["retry-after"].to_str().ok()
        ),
        (503, Some("1"))
    );
    assert!(
        refused
            .text()
            .contains("has no socket for another connection"),
        "{}",
        refused.text()
    );
    let other = proxy.client().http2().await;
    assert_eq!(other.get(OK).await.unwrap().text(), "ok");
    let numbers = [
        ("limits_hit_total{limit=\"upstream_sockets\"}", 1.0),
        (
            "errors_total{cluster=\"test\",reason=\"upstream_connections\"}",
            1.0,
        ),
    ];
    wait_for_numbers(proxy.admin(), &numbers).await;
    for watch in &mut watches {
        assert_eq!(data(watch).await.unwrap(), "first");
    }
    let [first, _second] = watches;
    drop(first);
    within("the socket of the first watch", async {
        while greedy.get(OK).await.unwrap().status == 503 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A connection that no client uses is worth less than a request.
#[tokio::test]
async fn idle_connection_gives_its_socket_to_a_client() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let mut setup = world.proxy(upstream.address()).admin();
    setup.config.capacity.spare_sockets = 1;
    setup = setup.limits(|limits| limits.streams_per_connection = 200);
    let proxy = setup.start();
    let mut leaves = proxy.client().http1().await;
    assert_eq!(leaves.get(HOST, "/ok", "").await.text(), "ok");
    drop(leaves);
    wait_for_numbers(proxy.admin(), &[("connections", 0.0)]).await;
    let client = proxy.client().http2().await;
    let mut watches = Vec::new();
    for _ in 0..101 {
        watches.push(client.open(WATCH).await.unwrap());
    }
    assert_eq!(
        upstream.connections().len(),
        3,
        "the second one of this client is new"
    );
    within(
        "the idle connection to be closed",
        upstream.connection_end(0),
    )
    .await;
}

/// While memory is short, clients are accepted slowly, idle connections are closed, and a client that leaves a hundred
/// responses unread loses all but a few. Clients that read are served.
#[tokio::test]
async fn short_memory_costs_only_clients_that_do_not_read() {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    const REQUESTS: u32 = 40;
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let set_use = |mib: u64| {
        world.dir.write("cgroup/memory.max", "104857600");
        world
            .dir
            .write("cgroup/memory.current", (mib << 20).to_string())
    };
    let cgroup = set_use(10).parent().unwrap().to_owned();
    let mut setup = world.proxy(upstream.address()).admin();
    setup.config.capacity.memory = MemoryLimit {
        bytes: 100 << 20,
        cgroup: Some(cgroup),
        own_cgroup: None,
    };
    let proxy = setup.start();
    let reads = proxy.client().http2().await;
    assert_eq!(reads.get(OK).await.unwrap().text(), "ok");
    let mut leaves = proxy.client().http1().await;
    assert_eq!(leaves.get(HOST, "/ok", "").await.text(), "ok");
    drop(leaves);
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    let settings = [(INITIAL_WINDOW_SIZE, 0)];
    let mut unread = FrameConnection::client(tls, &settings).await.unwrap();
    let mut idle = proxy.client().connect().await.unwrap();
    // A connection with a request is not idle.
    let _watch = reads.open(WATCH).await.unwrap();
    set_use(90);
    wait_for_numbers(proxy.admin(), &[("memory_short", 1.0)]).await;
    within(
        "the idle connection to be closed",
        upstream.connection_end(1),
    )
    .await;
    for number in 0..REQUESTS {
        let get = [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", HOST),
            (":path", "/ok"),
            ("authorization", "Bearer good"),
        ];
        unread
            .headers(2 * number + 1, &get, END_STREAM)
            .await
            .unwrap();
    }
    let mut resets = 0;
    while resets < REQUESTS - 8 {
        let frame = within("a reset", unread.next()).await.unwrap().unwrap();
        resets += u32::from(frame.kind == kind::RST_STREAM);
    }
    let late = TcpStream::connect(proxy.address()).await.unwrap();
    drop(late);
    let numbers = [
        ("limits_hit_total{limit=\"memory\"}", 33.0),
        ("memory_limit_bytes", 104_857_600.0),
    ];
    wait_for_numbers(proxy.admin(), &numbers).await;
    assert_eq!(reads.get(OK).await.unwrap().text(), "ok");
    let closed = within("the idle client to be closed", idle.read(&mut [0; 64])).await;
    assert_eq!(closed.unwrap_or(0), 0);
    for _ in 0..3 {
        let accepted = within("a client to be accepted", proxy.client().http2()).await;
        assert_eq!(accepted.get(OK).await.unwrap().text(), "ok");
    }
    set_use(50);
    wait_for_numbers(proxy.admin(), &[("memory_short", 0.0)]).await;
}

/// The soft limit exists for programs that use `select`.
#[tokio::test]
async fn binary_raises_the_soft_limit_of_open_files() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let limit = "ulimit -Sn 100 && ulimit -Sc $(ulimit -Hc)";
    let binary = Binary::start_limited(&world, upstream.address(), limit).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", binary.pid())).unwrap();
    let of = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let mut numbers = line.unwrap().split_whitespace();
        [numbers.next(), numbers.next()].map(|number| number.unwrap().to_owned())
    };
    let [soft, hard] = of("Max open files");
    assert_eq!(soft, hard);
    // A core dump would hold keys and tokens.
    assert_eq!(of("Max core file size"), ["0", "0"]);
}

/// With 256 open files and four times as many connections, the proxy neither exits nor spins, and it serves as soon as
/// the others are gone.
#[tokio::test]
async fn binary_survives_more_connections_than_open_files() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let binary = Binary::start_limited(&world, upstream.address(), "ulimit -n 256").await;
    let line = binary.wait_for_line("  connections").await;
    assert!(line.ends_with("(256 open files)"), "{line}");
    let established = binary.client(&world).http2().await;
    let mut watch = established.open(WATCH).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..1_000 {
        // The proxy may refuse it, because this client has the most connections.
        silent.extend(TcpStream::connect(binary.address()).await.ok());
    }
    let admin = binary.admin().await;
    let before = cpu_seconds(&binary);
    let began = std::time::SystemTime::now();
    // An established client is served meanwhile.
    for _ in 0..20 {
        assert_eq!(established.get(OK).await.unwrap().text(), "ok");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let spent = cpu_seconds(&binary) - before;
    let lasted = began.elapsed().unwrap().as_secs_f64();
    assert!(
        spent <= 0.1 * lasted + 0.1,
        "{spent} s of CPU time in {lasted} s"
    );
    let files = scrape(admin).await.text;
    let files = files
        .lines()
        .find_map(|line| line.strip_prefix("process_open_fds "));
    let files: f64 = files.unwrap().parse().unwrap();
    assert!(files <= 256.0, "{files}");
    drop(silent);
    let client = binary.client(&world);
    let late = tokio::time::timeout(Duration::from_secs(2), client.http2());
    let late = late.await.expect("the proxy accepts again within 2 s");
    assert_eq!(late.get(OK).await.unwrap().text(), "ok");
    assert_eq!(data(&mut watch).await.unwrap(), "first");
}

/// User and system time of a process.
fn cpu_seconds(binary: &Binary) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", binary.pid())).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<f64> = after_name
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // utime and stime are fields 14 and 15; the first one here that is a number is field 4. A tick is 10 ms.
    (fields[10] + fields[11]) / 100.0
}
