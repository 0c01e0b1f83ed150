//! A stand-in cluster, the proxy in front of it, and a kubeconfig to try it with.
//!
//! Starts a stand-in apiserver with a certificate of a random cluster CA, and the proxy with a certificate
//! of a temporary public CA. Writes `demo.kubeconfig` into the current directory. With `--check` it runs
//! the printed kubectl commands itself and exits with 0 if all of them work.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the demo prints to the terminal"
)]

mod check;

use std::{
    convert::Infallible, error::Error, fs, future::pending, net::SocketAddr, num::NonZeroUsize,
    path::Path, process::ExitCode, time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube_tls_proxy::{
    app::App,
    config::{
        Capacity, ClusterConfig, ClusterOrigin, Config, IdentityFiles, Limits, LogConfig,
        LogFormat, Timeouts, TrustSource,
    },
    telemetry,
};
use rustls_pki_types::ServerName;
use standin::{
    TempDir,
    kubernetes::{Kubernetes, Pod},
    pki::Ca,
    upstream::Upstream,
};
use tokio::time::sleep;

/// The public name. It does not have to resolve, because the kubeconfig contains the address.
const PUBLIC_NAME: &str = "kubernetes.demo.test";
/// The name in the apiserver's own certificate.
const CLUSTER_NAME: &str = "kubernetes.default.svc";
const TOKEN: &str = "demo-token";
const KUBECONFIG: &str = "demo.kubeconfig";

/// The mode of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Prints the commands and waits for Ctrl-C.
    Wait,
    /// Runs the commands and reports whether they worked.
    Check,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mode = match std::env::args().nth(1).as_deref() {
        None => Mode::Wait,
        Some("--check") => Mode::Check,
        Some(other) => {
            eprintln!("demo: unknown argument {other}; the only argument is --check");
            return ExitCode::from(2);
        }
    };
    match demo(mode).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(mode: Mode) -> Result<ExitCode, Box<dyn Error>> {
    let (cluster_ca, public_ca, dir) = (
        Ca::new("demo cluster CA"),
        Ca::new("demo public CA"),
        TempDir::new(),
    );
    let cluster = Kubernetes::new().token(TOKEN, "jane", &["developers"]);
    cluster.apply(Pod::running("web-0"));
    cluster.apply(Pod::running("web-1"));
    let apiserver = Upstream::builder(cluster_ca.server(&[CLUSTER_NAME]))
        .kubernetes(&cluster)
        .start()
        .await;

    let config = proxy_config(&dir, &public_ca, &cluster_ca, apiserver.address(), mode);
    let app = App::bind(Box::new(move || Ok(config.clone())))?;
    let _telemetry = telemetry::start(&app.reloader().config().log)?;
    let address = *app.addresses().first().ok_or("the proxy has no address")?;
    fs::write(KUBECONFIG, kubeconfig(address, &public_ca))?;
    println!("{}", introduction(apiserver.address(), address));

    let mut worked = true;
    let shutdown = async {
        let checked = async {
            match mode {
                Mode::Wait => pending().await,
                Mode::Check => worked = check::run(Path::new(KUBECONFIG)).await,
            }
        };
        tokio::select! {
            () = checked => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    tokio::select! {
        ended = app.run(shutdown) => ended?,
        never = jobs(&cluster) => match never {},
    }
    fs::remove_file(KUBECONFIG)?;
    Ok(if worked {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Creates, runs and deletes one job after the other, so that a watch has something to show.
async fn jobs(cluster: &Kubernetes) -> Infallible {
    let mut number = 0_u32;
    loop {
        let job = Pod::running(&format!("job-{number}"));
        for phase in ["Pending", "Running", "Succeeded"] {
            cluster.apply(job.clone().phase(phase));
            sleep(Duration::from_secs(2)).await;
        }
        cluster.delete("default", &format!("job-{number}"));
        number = number.wrapping_add(1);
    }
}

fn proxy_config(
    dir: &TempDir,
    public_ca: &Ca,
    cluster_ca: &Ca,
    apiserver: SocketAddr,
    mode: Mode,
) -> Config {
    let (certificate, key) = public_ca.server(&[PUBLIC_NAME]).write(dir, "public");
    Config {
        sources: Vec::new(),
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        reuse_port: false,
        workers: NonZeroUsize::MIN,
        identities: vec![IdentityFiles { certificate, key }],
        clusters: vec![ClusterConfig {
            name: "demo".into(),
            hosts: Vec::new(),
            origin: ClusterOrigin::Flag,
            upstream_host: apiserver.ip().to_string(),
            upstream_port: apiserver.port(),
            addresses: Vec::new(),
            path_prefix: String::new(),
            expected_name: ServerName::try_from(CLUSTER_NAME).expect("the name is a DNS name"),
            trust: TrustSource::File(dir.write("cluster-ca.crt", cluster_ca.pem())),
        }],
        limits: Limits::default(),
        capacity: Capacity::default(),
        timeouts: Timeouts {
            drain: Duration::from_secs(2),
            drain_tunnels: Duration::from_secs(2),
            drain_delay: Duration::ZERO,
            ..Timeouts::default()
        },
        log: LogConfig {
            format: LogFormat::Text,
            filter: if mode == Mode::Check { "warn" } else { "info" }.into(),
            access: mode == Mode::Wait,
        },
        warnings: Vec::new(),
        hints: true,
        admin: None,
    }
}

/// The kubeconfig of a user. It contains the CA only because no machine trusts the demo's public CA.
fn kubeconfig(address: SocketAddr, public_ca: &Ca) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: demo
  cluster:
    server: https://{address}
    tls-server-name: {PUBLIC_NAME}
    certificate-authority-data: {ca}
users:
- name: jane
  user:
    token: {TOKEN}
contexts:
- name: demo
  context: {{cluster: demo, user: jane}}
current-context: demo
",
        ca = STANDARD.encode(public_ca.pem()),
    )
}

fn introduction(apiserver: SocketAddr, proxy: SocketAddr) -> String {
    let lines: String = [
        "get pods",
        "get pods -w",
        "logs -f web-0",
        "exec web-0 -- echo hello",
        "exec -it web-0 -- sh",
        "auth whoami",
    ]
    .iter()
    .map(|line| format!("    kubectl --kubeconfig {KUBECONFIG} {line}\n"))
    .collect();
    format!(
        "\
stand-in apiserver  https://{apiserver}, with a certificate of a random cluster CA
kube-tls-proxy      https://{proxy}, with a certificate of a temporary public CA for {PUBLIC_NAME}

Try, in another terminal, in this directory:

{lines}
The stand-in supports little more than pods, logs and exec. The proxy also forwards attach, cp and
port-forward, but they need a real apiserver. exec uses WebSocket, the default of kubectl 1.30 and newer.
The proxy also forwards SPDY, but the stand-in does not support it: kubectl 1.29 needs
KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true, and older versions cannot exec here.

Ctrl-C stops everything and removes {KUBECONFIG}.
"
    )
}
