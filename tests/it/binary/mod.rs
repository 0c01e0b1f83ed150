//! The binary: its command line, output, signals and exit codes.

mod refusals;
mod secrets;
mod signals;

use std::{net::SocketAddr, path::Path, process::Stdio, sync::Arc};

use standin::{client::Client, within};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::watch,
};

use crate::proxy::{APISERVER, HOST, World};

/// A running `kube-tls-proxy serve`; it is killed when dropped.
pub(crate) struct Binary {
    child: Child,
    address: SocketAddr,
    lines: Arc<watch::Sender<Vec<String>>>,
}

/// The exit code and the output of a finished run.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A command that runs the binary with an empty environment.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-tls-proxy"));
    command.args(args);
    quiet(command)
}

/// The same command with an empty environment, and with its output in pipes.
fn quiet(mut command: Command) -> Command {
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs the binary until it exits.
pub(crate) async fn run(args: &[&str]) -> Ended {
    let output = within("the process to exit", command(args).output())
        .await
        .unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Flags for a proxy in front of `upstream`, with valid files.
pub(crate) fn good_flags(world: &World, upstream: SocketAddr) -> Vec<String> {
    let (certificate, key) = world
        .public_ca
        .server(&[HOST, "127.0.0.1"])
        .write(&world.dir, "public");
    let ca = world.dir.write("cluster-ca.crt", world.cluster_ca.pem());
    let path = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    [
        ("--listen", "127.0.0.1:0".to_owned()),
        ("--workers", "2".to_owned()),
        ("--cert", path(certificate)),
        ("--key", path(key)),
        ("--upstream", format!("https://{upstream}")),
        ("--upstream-ca", path(ca)),
        ("--upstream-name", APISERVER.to_owned()),
        ("--drain-delay", "0s".to_owned()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

impl Binary {
    /// Starts the binary with the good flags and then `more`, and waits until it prints its address.
    pub(crate) async fn start(world: &World, upstream: SocketAddr, more: &[&str]) -> Self {
        Self::start_with(world, upstream, more, &[]).await
    }

    /// Like [`Binary::start`], with these environment variables.
    pub(crate) async fn start_with(
        world: &World,
        upstream: SocketAddr,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut flags = good_flags(world, upstream);
        let mut more = more.iter();
        while let Some(flag) = more.next() {
            let is_known = flag.starts_with("--") && flags.iter().any(|known| known == flag);
            if !is_known {
                flags.push((*flag).to_owned());
                continue;
            }
            // A flag that is already among the good ones replaces that one: some flags are accepted once.
            let at = flags.iter().position(|known| known == flag).unwrap();
            flags[at + 1] = (*more.next().unwrap()).to_owned();
        }
        let args: Vec<&str> = ["serve"]
            .into_iter()
            .chain(flags.iter().map(String::as_str))
            .collect();
        let mut command = command(&args);
        command.envs(environment.iter().copied());
        Self::spawn(command, upstream).await
    }

    /// Starts the binary with this configuration file alone.
    pub(crate) async fn start_from_file(config: &Path) -> Self {
        let args = ["serve", "--config", config.to_str().unwrap()];
        Self::spawn(command(&args), SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts the binary in a shell after this command, such as `ulimit`, with an admin port and one worker.
    pub(crate) async fn start_limited(world: &World, upstream: SocketAddr, limit: &str) -> Self {
        let more = ["--admin-listen=127.0.0.1:0", "--workers=1"].map(str::to_owned);
        let mut flags = good_flags(world, upstream);
        let workers = flags.iter().position(|flag| flag == "--workers").unwrap();
        flags.drain(workers..workers + 2);
        let script = format!("{limit} && exec \"$0\" serve \"$@\"");
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &script, env!("CARGO_BIN_EXE_kube-tls-proxy")])
            .args(flags.into_iter().chain(more));
        Self::spawn(quiet(shell), upstream).await
    }

    /// Runs a command, and waits until it prints its address.
    async fn spawn(mut command: Command, upstream: SocketAddr) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = Arc::new(watch::Sender::new(Vec::new()));
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let received = Arc::clone(&lines);
        tokio::spawn(async move {
            let mut line = Vec::new();
            while stderr.read_until(b'\n', &mut line).await.unwrap() > 0 {
                let text = String::from_utf8_lossy(&line)
                    .trim_end_matches('\n')
                    .to_owned();
                received.send_modify(|lines: &mut Vec<String>| lines.push(text));
                line.clear();
            }
        });
        let mut binary = Self {
            child,
            address: upstream,
            lines,
        };
        let address = binary.wait_for("the address", |line| {
            let at = line
                .contains("listening")
                .then(|| line.find("127.0.0.1:"))??;
            let text: String = line[at..]
                .chars()
                .take_while(|char| !"\"\\ ".contains(*char))
                .collect();
            text.parse().ok()
        });
        binary.address = address.await;
        binary
    }

    pub(crate) fn client(&self, world: &World) -> Client {
        Client::new(self.address).trust(&world.public_ca).sni(HOST)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The admin port, which must be open.
    pub(crate) async fn admin(&self) -> SocketAddr {
        self.wait_for("the status page", |line| {
            let (_, url) = line.split_once("http://")?;
            url.split('/').next()?.parse().ok()
        })
        .await
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Waits for a line on stderr for which `find` returns a value, and returns that value.
    pub(crate) async fn wait_for<T>(&self, event: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let mut changes = self.lines.subscribe();
        let mut found = None;
        let done = changes.wait_for(|lines| {
            found = lines.iter().find_map(|line| find(line));
            found.is_some()
        });
        drop(within(event, done).await.unwrap());
        found.unwrap()
    }

    /// Waits for a line on stderr that contains `part`, and returns the line.
    pub(crate) async fn wait_for_line(&self, part: &str) -> String {
        self.wait_for(part, |line| line.contains(part).then(|| line.to_owned()))
            .await
    }

    /// Everything on stderr so far.
    pub(crate) fn stderr(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }

    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let status = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .await
            .unwrap();
        assert!(status.success());
    }

    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        within("the process to exit", self.child.wait())
            .await
            .unwrap()
            .code()
    }
}

/// The start message has one fact per line.
#[tokio::test]
async fn start_message_names_addresses_and_certificates() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    binary.wait_for_line("  workers").await;
    let lines = binary.stderr();
    assert_eq!(
        lines[0],
        format!("kube-tls-proxy {}", env!("CARGO_PKG_VERSION"))
    );
    for (line, word) in
        lines[1..]
            .iter()
            .zip(["listening", "serving", "upstream", "trusting", "workers"])
    {
        assert!(line.starts_with(&format!("  {word:<11} ")), "{line:?}");
    }
    assert_eq!(lines[1], format!("  listening   {}", binary.address));
    assert!(
        lines[2].contains("kube.test, 127.0.0.1   ("),
        "{}",
        lines[2]
    );
    assert!(lines[2].contains(" days left, issued by "), "{}", lines[2]);
    assert!(
        lines[3].ends_with(&format!("→ https://{} as {APISERVER}", upstream.address())),
        "{}",
        lines[3]
    );
    assert!(lines[4].contains("cluster, SHA-256 "), "{}", lines[4]);
    // The block has no time.
    let started = binary.wait_for_line(" msg=\"started\" ").await;
    assert!(started.starts_with("time="), "{started}");
    for fact in [
        format!(" version={} process.pid=", env!("CARGO_PKG_VERSION")),
        format!(" listening={} ", binary.address),
    ] {
        assert!(started.contains(&fact), "{started}");
    }
}

/// Case 56. SIGTERM and SIGINT shut the proxy down cleanly.
#[tokio::test]
async fn sigterm_and_sigint_exit_with_0() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    for signal in ["TERM", "INT"] {
        let mut binary = Binary::start(&world, upstream.address(), &[]).await;
        let mut client = binary.client(&world).http1().await;
        assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");
        binary.signal(signal).await;
        assert_eq!(binary.exit_code().await, Some(0), "{:?}", binary.stderr());
        assert_eq!(
            client.end().await.unwrap(),
            "",
            "an idle client gets a clean close"
        );
        binary.wait_for_line("stopped").await;
    }
}

/// Case 56. The proxy finishes a request that is running when SIGTERM arrives. A watch delays the exit by
/// `--drain-timeout` at most.
#[tokio::test]
async fn sigterm_waits_for_requests_until_the_drain_timeout() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(crate::drain::slow_or_endless)
        .start()
        .await;
    let flags = ["--drain-timeout", "1s"];
    let mut binary = Binary::start(&world, upstream.address(), &flags).await;
    let mut watch = binary.client(&world).http1().await;
    watch
        .send(format!("GET /endless HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    assert_eq!(watch.head().await.unwrap().status, 200);
    let mut slow = binary.client(&world).http1().await;
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    upstream.wait_for_open_responses(2).await;
    binary.signal("TERM").await;
    assert_eq!(slow.response().await.text(), "late");
    // Told to close, the client does. Otherwise the proxy reads on for a second.
    drop(slow);
    assert_eq!(binary.exit_code().await, Some(0));
    assert_eq!(watch.chunk().await.unwrap(), "event\n");
    watch.chunk().await.unwrap_err();
    let line = binary.wait_for_line("stopped").await;
    for count in [
        "connections_closed=1",
        "tunnels_closed=0",
        "duration_seconds=1.",
    ] {
        assert!(line.contains(count), "{count}: {line}");
    }
}

/// Case 55. SIGHUP makes the proxy read its files again immediately.
#[tokio::test]
async fn sighup_reloads_the_certificate() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    let new = world.public_ca.server(&[HOST, "127.0.0.1"]);
    new.write(&world.dir, "public");
    binary.signal("HUP").await;
    binary
        .wait_for_line("configuration and certificates reloaded")
        .await;
    let tls = binary.client(&world).connect().await.unwrap();
    assert!(tls.server_certificates() == new.chain);
}

#[tokio::test]
async fn help_and_version_are_printed_on_stdout() {
    let ended = run(&["--help"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert!(ended.stdout.contains("serve"), "{}", ended.stdout);
    let ended = run(&["serve", "--help"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    for word in [
        "--cert",
        "--upstream-ca",
        "--kubeconfig",
        "KUBE_TLS_PROXY_",
        "Examples:",
    ] {
        assert!(ended.stdout.contains(word), "{word}");
    }
    let ended = run(&["--version"]).await;
    let version = format!("kube-tls-proxy {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((ended.code, ended.stdout), (Some(0), version));
}
