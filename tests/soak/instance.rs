//! Starts and observes one process of the proxy.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use standin::client::{Client, Http1};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::watch,
};

use crate::{APISERVER, HOST, World};

/// `--drain-delay` of every instance.
pub(crate) const DELAY: Duration = Duration::from_secs(2);
/// `--drain-tunnels` of every instance.
pub(crate) const DRAIN_TUNNELS: Duration = Duration::from_secs(20);

/// A running proxy. Dropping it kills the process.
pub(crate) struct Instance {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    client: Client,
    lines: Arc<watch::Sender<Vec<(Instant, String)>>>,
    sigterm_at: std::cell::Cell<Option<Instant>>,
}

impl Instance {
    /// Starts a proxy for these apiservers and waits until it serves.
    pub(crate) async fn start(world: &World, apiservers: &[SocketAddr]) -> Self {
        let file = |name: &str| world.dir.path().join(name).display().to_string();
        let addresses: Vec<_> = apiservers.iter().map(|one| format!("'{one}'")).collect();
        let config = format!(
            "timeouts: {{reload: {}}}\nclusters:\n- name: test\n  upstream:\n    url: https://{APISERVER}\n    name: {APISERVER}\n    ca: {}\n    addresses: [{}]\n",
            world.reload,
            file("ca.crt"),
            addresses.join(", "),
        );
        let config = world
            .dir
            .write(&format!("proxy-{}.yaml", apiservers.len()), config);
        let (delay, tunnels) = (
            format!("{}s", DELAY.as_secs()),
            format!("{}s", DRAIN_TUNNELS.as_secs()),
        );
        let mut child = Command::new(env!("CARGO_BIN_EXE_kube-tls-proxy"))
            .args(["serve", "--listen", "127.0.0.1:0", "--workers", "2"])
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(["--cert", &file("tls.crt"), "--key", &file("tls.key")])
            .args(["--config", config.to_str().unwrap(), "--no-access-log"])
            .args(["--drain-delay", &delay, "--drain-timeout", "10s"])
            .args(["--drain-tunnels", &tunnels])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = Arc::new(watch::Sender::new(Vec::new()));
        let received = Arc::clone(&lines);
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = stderr.next_line().await {
                received.send_modify(|lines: &mut Vec<_>| lines.push((Instant::now(), line)));
            }
        });
        // Both lines end with an address; the address of the status page is a URL.
        let address_of = async |of: &str| -> SocketAddr {
            let find_address = |lines: &Vec<(Instant, String)>| {
                let line = lines.iter().find(|(_, line)| line.contains(of))?;
                let last = line.1.split_whitespace().last()?;
                last.trim_start_matches("http://")
                    .trim_end_matches('/')
                    .parse()
                    .ok()
            };
            let mut changes = lines.subscribe();
            let found = changes.wait_for(|lines| find_address(lines).is_some());
            let found = tokio::time::timeout(WAIT, found).await.unwrap();
            find_address(&found.unwrap()).unwrap()
        };
        let address = address_of("listening").await;
        let admin = address_of("http://").await;
        Self {
            child,
            address,
            admin,
            client: Client::new(address).trust(&world.public_ca).sni(HOST),
            lines,
            sigterm_at: std::cell::Cell::new(None),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate that a new client receives.
    pub(crate) async fn presents(&self) -> Vec<u8> {
        // A new client has no session to resume. A resumed session would show the certificate of its first handshake.
        let stranger = self.client.clone().alpn(&[]);
        let connection = stranger.connect().await.unwrap();
        connection.server_certificates()[0].to_vec()
    }

    /// Waits until this gauge on the admin port has this value.
    pub(crate) async fn wait_for_gauge(&self, name: &str, value: &str) {
        let wanted = format!("kube_tls_proxy_{name} {value}");
        let deadline = Instant::now() + WAIT;
        loop {
            let stream = TcpStream::connect(self.admin).await.unwrap();
            let metrics = Http1::new(stream).get("localhost", "/metrics", "").await;
            let metrics = metrics.text();
            if metrics.lines().any(|line| line == wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "no {wanted} in {metrics}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The number of log lines that contain this text.
    pub(crate) fn count(&self, part: &str) -> usize {
        let lines = self.lines.borrow();
        lines.iter().filter(|(_, line)| line.contains(part)).count()
    }

    /// Waits until `count` log lines contain this text.
    pub(crate) async fn wait_for(&self, part: &str, count: usize) {
        let mut changes = self.lines.subscribe();
        let enough = changes.wait_for(|lines| {
            lines.iter().filter(|(_, line)| line.contains(part)).count() >= count
        });
        let waited = tokio::time::timeout(WAIT, enough).await;
        if waited.is_err() {
            panic!(
                "no {count} lines with {part:?} in {:#?}",
                self.lines.borrow()
            );
        }
    }

    /// The time of the first log line after `since` that contains all these texts.
    pub(crate) fn time_of_line(&self, parts: &[&str], since: Instant) -> Option<Instant> {
        let lines = self.lines.borrow();
        let mut lines = lines.iter().filter(|(at, _)| *at >= since);
        let found = lines.find(|(_, line)| parts.iter().all(|part| line.contains(part)));
        found.map(|(at, _)| *at)
    }

    /// Sends SIGTERM.
    pub(crate) async fn terminate(&self) {
        let pid = self.child.id().unwrap().to_string();
        let kill = Command::new("kill").args(["-s", "TERM", &pid]).status();
        assert!(kill.await.unwrap().success());
        self.sigterm_at.set(Some(Instant::now()));
    }

    /// Resolves to the last line of the log. Call it before the process ends.
    pub(crate) fn stopped_line(&self) -> impl Future<Output = String> + use<> {
        let mut changes = self.lines.subscribe();
        async move {
            let find = |lines: &Vec<(Instant, String)>| {
                let line = lines.iter().find(|(_, line)| line.contains("stopped"));
                line.map(|(_, line)| line.clone())
            };
            let ended = changes.wait_for(|lines| find(lines).is_some());
            find(&tokio::time::timeout(WAIT, ended).await.unwrap().unwrap()).unwrap()
        }
    }

    /// Waits until the process ends, and returns the time since SIGTERM.
    pub(crate) async fn exit(mut self) -> Duration {
        let limit = DELAY + DRAIN_TUNNELS + WAIT;
        let ended = tokio::time::timeout(limit, self.child.wait()).await;
        let code = ended.unwrap().unwrap().code();
        assert_eq!(code, Some(0), "{:#?}", self.lines.borrow());
        self.sigterm_at.get().unwrap().elapsed()
    }
}

const WAIT: Duration = Duration::from_secs(20);
