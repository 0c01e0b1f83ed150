//! A stand-in cluster, the proxy in front of it, and a kubeconfig to try it with.
//!
//! Starts a stand-in apiserver with a certificate of a random cluster CA, and the proxy with a certificate of a temporary
//! public CA. Writes a kubeconfig into the current directory, and removes it at the end. With `--check` it runs kubectl
//! itself and exits with 0 if every command ends as expected.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the demo prints to the terminal"
)]

mod check;
mod kubeconfig;

use std::{
    convert::Infallible, env, error::Error, future::pending, io, net::SocketAddr, path::Path,
    process::ExitCode, time::Duration,
};

use kube_tls_proxy::{
    app::App,
    config::{Environment, ServeArgs, load},
    telemetry,
};
use standin::{
    TempDir,
    kubernetes::{COMMANDS, Kubernetes, Pod},
    pki::Ca,
    upstream::Upstream,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

use kubeconfig::KubeconfigFile;

/// The public name. It does not have to resolve, because the kubeconfig contains the address.
const PUBLIC_NAME: &str = "kubernetes.demo.test";
/// The name in the apiserver's own certificate.
const CLUSTER_NAME: &str = "kubernetes.default.svc";
const TOKEN: &str = "demo-token";
const ANY_PORT: &str = "127.0.0.1:0";

const HELP: &str = "\
Starts a stand-in apiserver with a random CA and kube-tls-proxy in front of it, and writes a kubeconfig into the
current directory. Prints what to try. Ctrl-C or SIGTERM ends it and removes the kubeconfig.

Usage: cargo run --package demo [-- OPTION]

Options:
  --check     Run kubectl with that kubeconfig, print which commands worked, and end; for CI
  -h, --help  Print this help
";

/// The mode of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Prints the commands and waits for a signal.
    Wait,
    /// Runs the commands and reports whether they worked.
    Check,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let mode = match arguments.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..] {
        [] => Mode::Wait,
        ["--check"] => Mode::Check,
        ["-h" | "--help"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        ["--check", unknown, ..] | [unknown, ..] => {
            eprintln!("demo: unexpected argument {unknown:?}; \"--help\" lists the options");
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
    // First, so that a signal from now on removes the files below.
    let mut stop = StopSignals::new()?;
    let (cluster_ca, public_ca, dir) = (
        Ca::new("demo cluster CA"),
        Ca::new("demo public CA"),
        TempDir::new(),
    );
    let cluster = Kubernetes::new().token(TOKEN, "jane", &["developers"]);
    for name in ["web-0", "web-1"] {
        cluster.keep(Pod::running(name).label("app", "web"));
    }
    let apiserver = Upstream::builder(cluster_ca.server(&[CLUSTER_NAME]))
        .kubernetes(&cluster)
        .start()
        .await;

    let args = flags(&dir, &public_ca, &cluster_ca, apiserver.address(), mode);
    let environment = Environment::from_process();
    let app = App::bind(Box::new(move || load(&args, &environment)))?;
    let _telemetry = telemetry::start(&app.reloader().config().log)?;
    let address = *app
        .bound()
        .load()
        .first()
        .ok_or("the proxy has no address")?;
    let status_page = app.admin_address().ok_or("the proxy has no admin port")?;
    let mut file = KubeconfigFile::claim(Path::new(""))?;
    file.write(&kubeconfig::text(address, &public_ca.pem()))?;
    println!(
        "{}",
        introduction(apiserver.address(), address, status_page, &file.name())
    );

    let mut worked = true;
    let shutdown = async {
        let checked = async {
            match mode {
                Mode::Wait => pending().await,
                Mode::Check => worked = check::run(file.path()).await,
            }
        };
        tokio::select! {
            () = checked => {}
            () = stop.first() => {}
        }
    };
    tokio::select! {
        ended = app.run(shutdown) => ended?,
        never = jobs(&cluster) => match never {},
    }
    Ok(if worked {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The signals that end the demo. Without a handler they would end it before it removes its files.
#[derive(Debug)]
struct StopSignals([Signal; 3]);

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            // The terminal was closed.
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn first(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Creates, runs and deletes one job after the other, so that a watch has something to show.
async fn jobs(cluster: &Kubernetes) -> Infallible {
    let mut number = 0_u32;
    loop {
        let job = Pod::running(&format!("job-{number}")).label("app", "job");
        for phase in ["Pending", "Running", "Succeeded"] {
            cluster.apply(job.clone().phase(phase));
            sleep(Duration::from_secs(2)).await;
        }
        cluster.delete("default", &format!("job-{number}"));
        number = number.wrapping_add(1);
    }
}

/// The flags of `serve` for the proxy of the demo.
fn flags(
    dir: &TempDir,
    public_ca: &Ca,
    cluster_ca: &Ca,
    apiserver: SocketAddr,
    mode: Mode,
) -> ServeArgs {
    let (certificate, key) = public_ca.server(&[PUBLIC_NAME]).write(dir, "public");
    let text = |value: &str| Some(value.to_owned());
    let in_check = |value| text(value).filter(|_| mode == Mode::Check);
    ServeArgs {
        listen: vec![ANY_PORT.to_owned()],
        certificates: vec![certificate],
        keys: vec![key],
        upstream: Some(format!("https://{apiserver}")),
        upstream_ca: Some(dir.write("cluster-ca.crt", cluster_ca.pem())),
        upstream_name: text(CLUSTER_NAME),
        workers: text("1"),
        drain_delay: text("0s"),
        drain_timeout: text("2s"),
        drain_tunnels: text("2s"),
        admin_listen: text(ANY_PORT),
        log_level: in_check("warn"),
        no_access_log: in_check("true"),
        ..ServeArgs::default()
    }
}

fn introduction(
    apiserver: SocketAddr,
    proxy: SocketAddr,
    status_page: SocketAddr,
    kubeconfig: &str,
) -> String {
    let lines: String = [
        "get pods",
        "get pods -w",
        "logs -f web-0",
        "exec web-0 -- ls /bin",
        "exec -it web-0 -- sh",
        "label pod web-0 tier=front",
        "auth whoami",
    ]
    .iter()
    .map(|line| format!("    kubectl {line}\n"))
    .collect();
    format!(
        "\
stand-in apiserver  https://{apiserver}, with a certificate of a random cluster CA
kube-tls-proxy      https://{proxy}, with a certificate of a temporary public CA for {PUBLIC_NAME}
status page         http://{status_page}/

Try, in another terminal, in this directory:

    export KUBECONFIG=$PWD/{kubeconfig}
{lines}
kubectl can do this with the pods here: {COMMANDS}.

The proxy also forwards attach, cp and port-forward, but they need a real apiserver. exec uses WebSocket, the default of
kubectl 1.30 and newer. The proxy also forwards SPDY, but the stand-in does not support it: kubectl 1.29 needs
KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true, and older versions cannot exec here.

Ctrl-C stops everything and removes {kubeconfig}.
"
    )
}
