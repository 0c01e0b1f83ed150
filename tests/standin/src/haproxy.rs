//! Debian's `HAProxy` as a TCP load balancer in front of a proxy.
//!
//! A test that needs it skips with a line if it is not installed; with `REQUIRE_HAPROXY=1` it fails instead.

use std::{
    env,
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{Duration, sleep},
};

use crate::{TempDir, within};

/// A running `HAProxy`; drop kills it.
#[derive(Debug)]
pub struct HaProxy {
    child: Child,
    /// Where it accepts clients.
    pub address: SocketAddr,
}

impl HaProxy {
    /// Starts `HAProxy` on a free port of `listen`. It passes connections on to `server` with these options, such as
    /// `send-proxy-v2`. `None` if it is not installed.
    ///
    /// # Panics
    ///
    /// When it does not start, or is not installed although `REQUIRE_HAPROXY=1` is set.
    pub async fn start(
        dir: &TempDir,
        listen: IpAddr,
        server: SocketAddr,
        options: &str,
    ) -> Option<Self> {
        if !Path::new(HAPROXY).exists() {
            assert!(
                env::var_os("REQUIRE_HAPROXY").is_none(),
                "there is no {HAPROXY}"
            );
            eprintln!("skipped: there is no {HAPROXY}");
            return None;
        }
        let free = TcpListener::bind((listen, 0)).expect("a free port");
        let address = free.local_addr().expect("its address");
        drop(free);
        let name = format!("haproxy-{}", address.port());
        let control = dir.path().join(format!("{name}.sock"));
        let config = format!(
            "global
  stats socket {} mode 600
defaults
  mode tcp
  timeout connect 10s
  timeout client 300s
  timeout server 300s
frontend clients
  bind {address}
  default_backend proxy
backend proxy
  server proxy {server} {options}
",
            control.display()
        );
        let config = dir.write(&format!("{name}.cfg"), config);
        let child = Command::new(HAPROXY)
            .args(["-db", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .spawn()
            .expect("HAProxy starts");
        let started = Self { child, address };
        within("HAProxy", async {
            while !responds(&control).await {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        Some(started)
    }
}

/// Whether its event loop runs. Its ports are open then.
async fn responds(control: &Path) -> bool {
    let asked = async {
        let mut stream = UnixStream::connect(control).await?;
        stream.write_all(b"show version\n").await?;
        stream.read_u8().await
    };
    asked.await.is_ok()
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Debian's path.
const HAPROXY: &str = "/usr/sbin/haproxy";
