//! Signals, one at a time and several at once, and the notifications to systemd.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use standin::within;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpStream, UnixDatagram},
    process::{Child, Command},
};

use super::{Binary, good_flags};
use crate::proxy::{HOST, World};

const WATCHDOG: &str = "WATCHDOG=1\n";

/// After SIGTERM the proxy serves new clients for `--drain-delay`. After SIGINT it does not wait for that delay.
#[tokio::test]
async fn sigterm_waits_for_the_drain_delay_and_sigint_does_not() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut binary = Binary::start(&world, upstream.address(), &["--drain-delay", "1m"]).await;
    binary.signal("TERM").await;
    binary
        .wait_for_line("shutdown announced, new clients are still served")
        .await;
    let mut client = binary.client(&world).http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");
    binary.signal("TERM").await;
    assert_eq!(binary.exit_code().await, Some(0));

    let mut binary = Binary::start(&world, upstream.address(), &["--drain-delay", "1m"]).await;
    binary.signal("INT").await;
    assert_eq!(binary.exit_code().await, Some(0));
}

/// The second signal closes the connections that the first one would have waited for.
#[tokio::test]
async fn second_signal_closes_all_connections_immediately() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(crate::drain::slow_or_endless)
        .start()
        .await;
    for (first, second) in [("TERM", "TERM"), ("TERM", "INT"), ("INT", "TERM")] {
        let flags = ["--drain-timeout", "1h"];
        let mut binary = Binary::start(&world, upstream.address(), &flags).await;
        let mut client = crate::drain::endless(&binary.client(&world)).await;
        binary.signal(first).await;
        binary.wait_for_line("draining").await;
        binary.signal(second).await;
        assert_eq!(binary.exit_code().await, Some(0), "{first} {second}");
        client.chunk().await.unwrap_err();
        binary
            .wait_for_line("second stop signal; closing all connections")
            .await;
        let line = binary.wait_for_line("stopped").await;
        assert!(line.contains("connections_closed=1"), "{line}");
    }
}

/// A shutdown during a reload, and a reload during a shutdown, both work.
#[tokio::test]
async fn sigterm_during_a_reload_finishes_running_requests() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(crate::drain::slow_or_endless)
        .start()
        .await;
    let mut binary = Binary::start(&world, upstream.address(), &[]).await;
    for _ in 0..3 {
        world
            .public_ca
            .server(&[HOST, "127.0.0.1"])
            .write(&world.dir, "public");
        binary.signal("HUP").await;
    }
    let mut slow = binary.client(&world).http1().await;
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    upstream.wait_for_open_responses(1).await;
    binary.signal("HUP").await;
    binary.signal("TERM").await;
    binary.signal("HUP").await;
    assert_eq!(slow.response().await.text(), "late");
    assert_eq!(binary.exit_code().await, Some(0), "{:?}", binary.stderr());
}

/// The proxy accepts new clients until the delay is over, and they get the current certificate.
#[tokio::test]
async fn sighup_during_the_delay_reloads_without_notifying_systemd() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let config = world.dir.write("seldom.yaml", "timeouts: {reload: 1h}");
    let systemd = Systemd::new(&world);
    let flags = ["--config", config.to_str().unwrap(), "--drain-delay", "1m"];
    let environment = [("NOTIFY_SOCKET", systemd.path())];
    let starting = Binary::start_with(&world, upstream.address(), &flags, &environment);
    let mut binary = starting.await;
    assert!(systemd.next_message().await.contains("READY=1"));
    binary.signal("TERM").await;
    binary
        .wait_for_line("shutdown announced, new clients are still served")
        .await;
    let new = world.public_ca.server(&[HOST, "127.0.0.1"]);
    new.write(&world.dir, "public");
    binary.signal("HUP").await;
    binary
        .wait_for_line("configuration and certificates reloaded")
        .await;
    let client = binary.client(&world).connect().await.unwrap();
    assert_eq!(client.server_certificates()[0], new.chain[0]);
    drop(client);
    binary.signal("TERM").await;
    assert_eq!(binary.exit_code().await, Some(0));
    assert!(systemd.next_message().await.starts_with("STOPPING=1\n"));
    systemd.assert_no_more_messages();
}

/// A failure that is logged at every poll would hide the first line, which is the one the operator needs.
#[tokio::test]
async fn each_reload_failure_is_logged_once() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let config = world.dir.write("often.yaml", "timeouts: {reload: 20ms}");
    let flags = ["--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let key = world.dir.path().join("public.key");
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, "").unwrap();
    binary.wait_for_line("is empty").await;
    // Many polls, each of which fails.
    tokio::time::sleep(Duration::from_millis(400)).await;
    std::fs::write(&key, "hello").unwrap();
    binary.wait_for_line("contains no PEM block").await;
    std::fs::write(&key, good).unwrap();
    binary.wait_for_line("reload works again").await;
    let lines = binary.stderr();
    let failures = lines.iter().filter(|line| line.contains("reload failed"));
    assert_eq!(failures.count(), 2, "{lines:?}");
}

/// The proxy logs a result for each SIGHUP, although a poll does not log the same result twice.
#[tokio::test]
async fn sighup_without_changes_logs_a_result() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    binary.signal("HUP").await;
    binary.wait_for_line("reload found no changes").await;
    std::fs::write(world.dir.path().join("public.key"), "").unwrap();
    binary.signal("HUP").await;
    binary.wait_for_line("reload failed").await;
    binary.signal("HUP").await;
    let line = binary
        .wait_for_line("reload failed again with the same error")
        .await;
    assert!(line.contains("public.key: is empty"), "{line}");
    let lines = binary.stderr();
    let results = lines
        .iter()
        .filter(|line| line.contains("reload found no changes"));
    assert_eq!(results.count(), 1, "{lines:?}");
}

/// The proxy logs once that a changed setting needs a restart.
#[tokio::test]
async fn change_that_needs_a_restart_is_logged_once() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let config = world.dir.write("often.yaml", "timeouts: {reload: 20ms}");
    let flags = ["--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let changed = "timeouts: {reload: 30ms}\nadmin: {listen: '127.0.0.1:0'}";
    std::fs::write(&config, changed).unwrap();
    let line = r#"msg="changed settings need a restart" settings=admin"#;
    binary.wait_for_line(line).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let lines = binary.stderr();
    let count = lines.iter().filter(|logged| logged.contains(line)).count();
    assert_eq!(count, 1, "{lines:?}");
}

/// A mistake in a rule or a time shows when the file changes, not at the next restart.
#[tokio::test]
async fn reload_logs_each_new_warning_once() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let config = world.dir.write("often.yaml", "timeouts: {reload: 20ms}");
    let flags = ["--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let line = r#"msg="configuration warning""#;
    std::fs::write(&config, "timeouts: {reload: 20ms, drainTunnels: 1s}").unwrap();
    binary.wait_for_line(line).await;
    std::fs::write(
        &config,
        "timeouts: {reload: 30ms, drainTunnels: 1s}\nhints: false",
    )
    .unwrap();
    binary.wait_for_line("settings=\"timeouts, hints\"").await;
    let lines = binary.stderr();
    let count = lines.iter().filter(|logged| logged.contains(line)).count();
    assert_eq!(count, 1, "{lines:?}");
}

/// The notification socket of systemd.
struct Systemd {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Systemd {
    fn new(world: &World) -> Self {
        let path = world.dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { path, socket }
    }

    /// The value of `NOTIFY_SOCKET`.
    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The next message to systemd.
    async fn next_message(&self) -> String {
        let mut text = vec![0; 4096];
        let length = within("a message to systemd", self.socket.recv(&mut text))
            .await
            .unwrap();
        text.truncate(length);
        String::from_utf8(text).unwrap()
    }

    /// The next message to systemd that is not a watchdog message.
    async fn next_message_except_watchdog(&self) -> String {
        loop {
            let message = self.next_message().await;
            if message != WATCHDOG {
                return message;
            }
        }
    }

    /// Asserts that no more messages were sent. Call it after the process has exited.
    #[track_caller]
    fn assert_no_more_messages(&self) {
        let received = self.socket.try_recv(&mut [0; 4096]);
        assert_eq!(received.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// A unit of `Type=notify-reload` with `WatchdogSec=`.
#[tokio::test]
async fn systemd_is_notified_of_start_reload_stop_and_watchdog() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let systemd = Systemd::new(&world);
    let environment = [
        ("NOTIFY_SOCKET", systemd.path()),
        ("WATCHDOG_USEC", "3000000"),
    ];
    let starting = Binary::start_with(&world, upstream.address(), &[], &environment);
    let mut binary = starting.await;
    assert!(
        systemd
            .next_message_except_watchdog()
            .await
            .contains("READY=1")
    );
    assert_eq!(systemd.next_message().await, WATCHDOG);
    binary.signal("HUP").await;
    let message = systemd.next_message_except_watchdog().await;
    let since = message
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .unwrap();
    assert!(since.trim_end().parse::<u64>().unwrap() > 0);
    assert!(
        systemd
            .next_message_except_watchdog()
            .await
            .contains("READY=1")
    );
    binary.signal("TERM").await;
    let message = systemd.next_message_except_watchdog().await;
    assert!(message.starts_with("STOPPING=1\n"), "{message}");
    assert_eq!(binary.exit_code().await, Some(0));
}

/// Starts the binary with a listening socket as systemd passes it: as file descriptor 3.
fn activated(world: &World, upstream: SocketAddr, socket: impl Into<OwnedFd>) -> Child {
    let flags = good_flags(world, upstream);
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    Command::new("sh")
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_kube-tls-proxy"),
            "serve",
        ])
        .args(flags)
        .stdin(socket.into())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// With a socket unit, no client is refused while no process runs.
#[tokio::test]
async fn client_between_two_processes_is_served_by_the_second() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let client = standin::client::Client::new(address)
        .trust(&world.public_ca)
        .sni(HOST);
    let again = socket.try_clone().unwrap();
    let mut first = activated(&world, upstream.address(), again);
    let mut early = client.http1().await;
    assert_eq!(early.get(HOST, "/version", "").await.text(), "ok");
    let pid = first.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-s", "TERM", &pid]).status();
    assert!(kill.await.unwrap().success());
    let ended = within("the first process to exit", first.wait())
        .await
        .unwrap();
    let mut output = String::new();
    let mut stderr = first.stderr.take().unwrap();
    stderr.read_to_string(&mut output).await.unwrap();
    assert_eq!(ended.code(), Some(0), "{output}");
    assert!(
        output.contains(&format!("listening   {address}")),
        "{output}"
    );

    let waiting = TcpStream::connect(address).await.unwrap();
    let _second = activated(&world, upstream.address(), socket);
    let mut late = standin::client::Http1::new(client.over(waiting).await.unwrap());
    assert_eq!(late.get(HOST, "/version", "").await.text(), "ok");
}

/// Without systemd: the second process shares the port with `--reuse-port`, and then the first one stops.
#[tokio::test]
async fn second_process_reuses_the_port_without_a_refused_client() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut first = Binary::start(&world, upstream.address(), &[]).await;
    let address = first.address.to_string();
    let flags = ["--listen", &address, "--reuse-port"];
    let second = Binary::start(&world, upstream.address(), &flags).await;
    let client = second.client(&world);
    let requests = tokio::spawn(async move {
        let mut served = 0;
        loop {
            let mut client = client.http1().await;
            let response = client.get(HOST, "/version", "").await;
            assert_eq!(response.text(), "ok");
            served += 1;
            if served == 100 {
                return;
            }
        }
    });
    first.signal("TERM").await;
    assert_eq!(first.exit_code().await, Some(0));
    within("a hundred clients", requests).await.unwrap();
}

/// A mistake in a unit file is a configuration error (exit code 2), not a failure at run time.
#[tokio::test]
async fn inherited_socket_that_does_not_listen_is_a_config_error() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let starting = activated(&world, upstream.address(), datagrams);
    let ended = within("the process to exit", starting.wait_with_output())
        .await
        .unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    let sentence = "kube-tls-proxy: socket 0 of the socket unit does not listen on TCP; give it with ListenStream=ADDRESS:PORT\n";
    assert_eq!(stderr, sentence);
    assert_eq!(ended.status.code(), Some(2));
}
