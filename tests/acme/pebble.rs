//! Pebble, the test CA of Let's Encrypt, on loopback, and a DNS server that leads every name to loopback.

use std::{
    env,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use kube_tls_proxy::config::AcmeConfig;
use serde_json::{Value, json};
use standin::{TempDir, client::Client, pki::Ca, within};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

/// A running Pebble; it is killed when dropped.
pub(crate) struct Pebble {
    _child: Child,
    dns: JoinHandle<()>,
    directory: SocketAddr,
    management: SocketAddr,
    /// Of its own HTTPS port.
    ca: Ca,
    pub(crate) dir: TempDir,
    log: Arc<watch::Sender<Vec<String>>>,
}

/// A port of loopback that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl Pebble {
    /// Starts Pebble, which validates names on `port`, with these settings and variables. `None` if it is not
    /// installed.
    pub(crate) async fn start(
        port: u16,
        settings: Value,
        variables: &[(&str, &str)],
    ) -> Option<Self> {
        let (ca, dir) = (Ca::new("directory"), TempDir::new());
        let (certificate, key) = ca.server(&["127.0.0.1"]).write(&dir, "directory");
        dir.write("directory-ca.crt", ca.pem());
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (directory, management) = (local(free_port()), local(free_port()));
        let mut config = json!({
            "listenAddress": directory.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": certificate,
            "privateKey": key,
            "httpPort": 1,
            "tlsPort": port,
            "keyAlgorithm": "ecdsa",
            "profiles": {"default": {"description": "", "validityPeriod": 7_776_000}},
        });
        let all = config.as_object_mut().unwrap();
        all.extend(settings.as_object().unwrap().clone());
        let config = dir.write("pebble.json", json!({"pebble": config}).to_string());
        let (resolver, dns) = dns_server().await;
        let spawned = Command::new("pebble")
            .args(["-config", config.to_str().unwrap(), "-dnsserver"])
            .arg(resolver.to_string())
            .envs(variables.iter().copied())
            // It refuses one nonce in twenty by default, which the client must survive.
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut child = match spawned {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                assert!(
                    env::var_os("REQUIRE_PEBBLE").is_none(),
                    "pebble is not installed; build it with \".ci/run\""
                );
                eprintln!("pebble: NOT RUN, it is not installed");
                return None;
            }
            spawned => spawned.unwrap(),
        };
        let log = Arc::new(watch::Sender::new(Vec::new()));
        let (mut lines, received) = (
            BufReader::new(child.stdout.take().unwrap()).lines(),
            Arc::clone(&log),
        );
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                received.send_modify(|lines: &mut Vec<String>| lines.push(line));
            }
        });
        let listens = async {
            while TcpStream::connect(directory).await.is_err()
                || TcpStream::connect(management).await.is_err()
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("pebble to listen", listens).await;
        Some(Self {
            _child: child,
            dns,
            directory,
            management,
            ca,
            dir,
            log,
        })
    }

    /// The URL of its directory.
    pub(crate) fn directory(&self) -> String {
        format!("https://{}/dir", self.directory)
    }

    /// The file with the CA of its HTTPS port.
    pub(crate) fn directory_ca(&self) -> PathBuf {
        self.dir.path().join("directory-ca.crt")
    }

    /// The settings for a certificate for these names.
    pub(crate) fn config(&self, names: &[&str], store: &Path) -> AcmeConfig {
        AcmeConfig {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            email: Some("ops@example.com".into()),
            directory: self.directory(),
            directory_ca: Some(self.directory_ca()),
            external_account: None,
            http01_listen: None,
            profile: None,
            store: store.to_owned(),
        }
    }

    /// The root that its certificates lead to, in PEM.
    pub(crate) async fn root(&self) -> String {
        let client = Client::new(self.management).trust(&self.ca);
        let mut http = client.sni("127.0.0.1").http1().await;
        http.get("127.0.0.1", "/roots/0", "").await.text()
    }

    /// How many lines of its log contain `part`.
    pub(crate) fn count(&self, part: &str) -> usize {
        let log = self.log.borrow();
        log.iter().filter(|line| line.contains(part)).count()
    }

    /// Waits until its log has `wanted` lines that contain `part`.
    pub(crate) async fn wait_for(&self, part: &str, wanted: usize) {
        let mut log = self.log.subscribe();
        let found = log.wait_for(|log: &Vec<String>| {
            log.iter().filter(|line| line.contains(part)).count() >= wanted
        });
        drop(within(part, found).await.unwrap());
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.dns.abort();
    }
}

/// Answers every query for an IPv4 address with 127.0.0.1, and every other one with nothing.
async fn dns_server() -> (SocketAddr, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; length.into()];
                    stream.read_exact(&mut query).await.unwrap();
                    let answer = dns_answer(&query);
                    stream.write_u16(answer.len() as u16).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    (address, task)
}

fn dns_answer(query: &[u8]) -> Vec<u8> {
    let mut end = 12;
    while query[end] != 0 {
        end += usize::from(query[end]) + 1;
    }
    let question = &query[12..end + 5];
    let is_ipv4 = question[question.len() - 4..question.len() - 2] == [0, 1];
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
    answer.extend(question);
    if is_ipv4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    answer
}
