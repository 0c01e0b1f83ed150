//! One process of the proxy in front of one apiserver, and what the kernel and the admin port say about the process.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use standin::{TempDir, client::Client, haproxy::HaProxy, pki::Ca, upstream::Upstream};
use tokio::runtime::{Builder, Runtime};

use crate::apiserver::{self, Clock, Counts};

/// The public name in the proxy's certificate.
pub(crate) const HOST: &str = "kube.test";
const APISERVER: &str = "kubernetes.default.svc";

/// Each has an address, as two machines would.
pub(crate) const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
pub(crate) const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

/// The binary to attack instead of the one that cargo built: the path of an older one, for instance.
const BINARY: &str = "ATTACKS_BINARY";

/// How a run differs from an ordinary one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    is_full: bool,
}

impl Size {
    pub(crate) fn from_environment() -> Self {
        Self {
            is_full: env::var_os("ATTACKS").is_some_and(|size| size == "full"),
        }
    }

    pub(crate) fn is_full(self) -> bool {
        self.is_full
    }

    pub(crate) fn pick<T>(self, quick: T, full: T) -> T {
        if self.is_full { full } else { quick }
    }
}

/// The conditions of the process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Conditions {
    /// Lines of the configuration file. If it has `clusters`, `UPSTREAM` stands for the address of the apiserver.
    pub(crate) config: &'static str,
    /// The limit of open files.
    pub(crate) open_files: Option<u32>,
    /// MiB of its memory cgroup.
    pub(crate) memory: Option<u32>,
    /// How many `HAProxy` processes are in front, which name the clients in PROXY headers.
    pub(crate) balancers: usize,
}

/// A runtime with one thread of this name. Victim, attacker and apiserver each have one, so that none of them waits for
/// another.
pub(crate) fn runtime(name: &str) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).thread_name(name).enable_all();
    builder.build().unwrap()
}

/// A running proxy and its apiserver. Dropping it ends both.
pub(crate) struct Stage {
    process: Process,
    cgroup: Option<PathBuf>,
    admin: SocketAddr,
    /// One for each balancer, or one for the proxy itself.
    clients: Vec<Client>,
    lines: Arc<AtomicUsize>,
    counts: Arc<Counts>,
    clock: Clock,
    upstream: Arc<Upstream>,
    _balancers: Vec<HaProxy>,
    _apiserver: Runtime,
    _dir: TempDir,
}

impl Stage {
    /// `None` if a program that it needs is not installed.
    pub(crate) fn start(conditions: Conditions, size: Size) -> Option<Self> {
        let (public_ca, cluster_ca, dir) = (Ca::new("public"), Ca::new("cluster"), TempDir::new());
        let counts = Arc::new(Counts::default());
        let clock = Clock::default();
        let apiserver = runtime("apiserver");
        let identity = cluster_ca.server(&[APISERVER, "127.0.0.1"]);
        let upstream = apiserver.block_on(apiserver::builder(identity, &counts, &clock).start());
        apiserver.spawn(apiserver::tick(Arc::clone(&clock)));

        let (certificate, key) = public_ca.server(&[HOST, "127.0.0.1"]).write(&dir, "public");
        let ca = dir.write("ca.crt", cluster_ca.pem());
        let config = dir.write(
            "config.yaml",
            format!("log: {{access: false}}\n{}", conditions.config)
                .replace("UPSTREAM", &upstream.address().to_string()),
        );
        let binary = env::var_os(BINARY).map_or_else(
            || env!("CARGO_BIN_EXE_kube-tls-proxy").into(),
            PathBuf::from,
        );
        let cgroup = conditions.memory.and_then(new_cgroup);
        let mut script = String::new();
        if let Some(limit) = conditions.open_files {
            script += &format!("ulimit -n {limit}; ");
        }
        if let Some(cgroup) = &cgroup {
            script += &format!("echo $$ > {}/cgroup.procs; ", cgroup.display());
        }
        // One CPU for the proxy, and the other one for the rest: the referee's arrangement.
        script += size.pick("exec \"$@\"", "exec taskset -c 0 \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(binary);
        command
            .args(["serve", "--workers", "1"])
            .args(["--admin-listen", "127.0.0.1:0"]);
        for (flag, path) in [
            ("--cert", certificate),
            ("--key", key),
            ("--config", config),
        ] {
            command.arg(flag).arg(path);
        }
        if !conditions.config.contains("listen:") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        if conditions.balancers > 0 {
            command.args(["--proxy-protocol-from", "127.0.0.1"]);
        }
        if !conditions.config.contains("clusters:") {
            command
                .args(["--upstream", &format!("https://{}", upstream.address())])
                .args(["--upstream-name", APISERVER])
                .arg("--upstream-ca")
                .arg(ca);
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let child = command
            .env_clear()
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Process(child);
        let lines = Arc::new(AtomicUsize::new(0));
        let (address, admin) = read_log(process.0.stderr.take().unwrap(), Arc::clone(&lines));
        let mut balancers = Vec::new();
        for _ in 0..conditions.balancers {
            let listen = Ipv4Addr::LOCALHOST.into();
            let started = HaProxy::start(&dir, listen, address, "send-proxy-v2");
            balancers.push(apiserver.block_on(started)?);
        }
        let doors = balancers.iter().map(|balancer| balancer.address);
        let direct = (conditions.balancers == 0).then_some(address);
        let client = |door| Client::new(door).trust(&public_ca).sni(HOST);
        Some(Self {
            process,
            cgroup,
            admin,
            clients: doors.chain(direct).map(client).collect(),
            lines,
            counts,
            clock,
            upstream: Arc::new(upstream),
            _balancers: balancers,
            _apiserver: apiserver,
            _dir: dir,
        })
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A client with this address.
    pub(crate) fn client(&self, source: IpAddr) -> Client {
        self.clients[0].clone().from(source)
    }

    /// The same client, once for each balancer.
    pub(crate) fn clients(&self, source: IpAddr) -> Vec<Client> {
        let clients = self.clients.iter().cloned();
        clients.map(|client| client.from(source)).collect()
    }

    pub(crate) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// The number of the last event.
    pub(crate) fn last_event(&self) -> u64 {
        *self.clock.borrow()
    }

    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// The number of log lines so far.
    pub(crate) fn log_lines(&self) -> usize {
        self.lines.load(Ordering::Relaxed)
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.process.0.try_wait().unwrap().is_none()
    }

    /// The resources of the process now; all zero if it has ended.
    pub(crate) fn meter(&self) -> Meter {
        let status = self.proc("status");
        let kib = |key: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let stat = self.proc("stat");
        // The name of the process, in parentheses, may have blanks.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks =
            |at: usize| -> u64 { fields.get(at).and_then(|it| it.parse().ok()).unwrap_or(0) };
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.process.0.id()));
        Meter {
            rss_kib: kib("VmRSS:"),
            // The proxy hides them from others of its user, root excepted.
            descriptors: descriptors.map_or_else(|_| self.open_fds(), Iterator::count),
            upstream: self.upstream.open_connections(),
            cpu: Duration::from_millis((ticks(11) + ticks(12)) * 10),
        }
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.process.0.id());
        fs::read_to_string(path).unwrap_or_default()
    }

    /// The open files by the proxy's own count; 0 if it does not answer.
    fn open_fds(&self) -> usize {
        let metrics = self.admin_get("/metrics").unwrap_or_default();
        let mut lines = metrics.lines();
        let count = lines.find_map(|line| line.strip_prefix("process_open_fds "));
        let count = count.and_then(|count| count.parse::<f64>().ok());
        count.map_or(0, |count| count as usize)
    }

    /// The counters of `limits_hit_total` that are not zero.
    pub(crate) fn limits_hit(&self) -> BTreeMap<String, u64> {
        let metrics = self.admin_get("/metrics").unwrap_or_default();
        let mut hit = BTreeMap::new();
        for line in metrics.lines() {
            let Some((name, value)) = line
                .strip_prefix("kube_tls_proxy_limits_hit_total{limit=\"")
                .and_then(|rest| rest.split_once("\"} "))
            else {
                continue;
            };
            let count = value.parse::<f64>().unwrap_or(0.0);
            if count > 0.0 {
                hit.insert(name.to_owned(), count as u64);
            }
        }
        hit
    }

    /// The response of the admin port, head and body, if it comes within a second.
    pub(crate) fn admin_get(&self, path: &str) -> Option<String> {
        let limit = Duration::from_secs(1);
        let mut tcp = TcpStream::connect_timeout(&self.admin, limit).ok()?;
        tcp.set_read_timeout(Some(limit)).ok()?;
        write!(
            tcp,
            "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut text = String::new();
        tcp.read_to_string(&mut text).ok()?;
        Some(text)
    }
}

/// A process that ends with the value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.process.0.kill().ok();
        self.process.0.wait().ok();
        if let Some(cgroup) = &self.cgroup {
            fs::remove_dir(cgroup).ok();
        }
    }
}

/// What a process holds, and the CPU time that it has used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Meter {
    pub(crate) rss_kib: usize,
    pub(crate) descriptors: usize,
    /// Its connections at the apiserver.
    pub(crate) upstream: usize,
    pub(crate) cpu: Duration,
}

impl Meter {
    pub(crate) fn rss_mib(self) -> usize {
        self.rss_kib / 1024
    }

    /// The share of a CPU that was used since `before`, which was this long ago.
    pub(crate) fn share_since(self, before: Self, elapsed: Duration) -> f64 {
        self.cpu.saturating_sub(before.cpu).as_secs_f64() / elapsed.as_secs_f64()
    }
}

/// A memory cgroup with this limit in MiB, of either version; `None` where this user may not make one.
fn new_cgroup(mib: u32) -> Option<PathBuf> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("attacks-{}-{number}", std::process::id());
    let limit = (u64::from(mib) << 20).to_string();
    for (parent, file) in [
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ] {
        let folder = PathBuf::from(parent).join(&name);
        if fs::create_dir(&folder).is_err() {
            continue;
        }
        if fs::write(folder.join(file), &limit).is_ok() {
            return Some(folder);
        }
        fs::remove_dir(&folder).ok();
    }
    None
}

/// Reads the log to its end, in a thread. Returns the addresses that the proxy prints when it starts.
fn read_log(stderr: ChildStderr, count: Arc<AtomicUsize>) -> (SocketAddr, SocketAddr) {
    // The first lines, and whether the log has ended.
    let found = Arc::new((Mutex::new((Vec::new(), false)), Condvar::new()));
    let told = Arc::clone(&found);
    thread::spawn(move || {
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Some(Ok(line)) = lines.next() {
            count.fetch_add(1, Ordering::Relaxed);
            let line = String::from_utf8_lossy(&line).into_owned();
            let (first_lines, changed) = &*told;
            let mut first_lines = first_lines.lock().unwrap();
            if first_lines.0.len() < 100 {
                first_lines.0.push(line);
                changed.notify_all();
            }
        }
        told.0.lock().unwrap().1 = true;
        told.1.notify_all();
    });
    let address = |lines: &[String], of: &str| -> Option<SocketAddr> {
        let line = lines.iter().find(|line| line.contains(of))?;
        let last = line.split_whitespace().last()?;
        last.trim_start_matches("http://")
            .trim_end_matches('/')
            .parse()
            .ok()
    };
    let (lines, changed) = &*found;
    let both = |lines: &[String]| Some((address(lines, "listening")?, address(lines, "http://")?));
    let guard = lines.lock().unwrap();
    let is_waiting = |(lines, is_over): &mut (Vec<_>, bool)| both(lines).is_none() && !*is_over;
    let waited = changed.wait_timeout_while(guard, standin::WAIT, is_waiting);
    let lines = &waited.unwrap().0.0;
    both(lines).unwrap_or_else(|| panic!("the proxy does not listen: {lines:#?}"))
}
