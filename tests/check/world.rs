//! The test setup: two CAs, the files of a proxy, and runs of the binary.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use standin::{
    TempDir,
    kubernetes::Kubernetes,
    pki::{Ca, Identity},
    upstream::{Builder, Upstream},
    within,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

/// The public name in the proxy's certificate.
pub(crate) const HOST: &str = "kube.test";
/// The name in the apiserver's certificate.
pub(crate) const APISERVER: &str = "kubernetes.default.svc";

pub(crate) struct World {
    pub(crate) public_ca: Ca,
    pub(crate) cluster_ca: Ca,
    pub(crate) dir: TempDir,
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct RunResult {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// One printed finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrintedFinding {
    pub(crate) mark: char,
    pub(crate) check: String,
    pub(crate) message: String,
    pub(crate) fix: Option<String>,
}

/// A running `kube-tls-proxy serve`; drop kills it.
pub(crate) struct Serving {
    _child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            public_ca: Ca::new("public"),
            cluster_ca: Ca::new("cluster"),
            dir: TempDir::new(),
        }
    }

    /// A small apiserver with a valid certificate.
    pub(crate) fn apiserver(&self) -> Builder {
        self.apiserver_as(self.cluster_ca.server(&[APISERVER]))
    }

    /// A small apiserver with this certificate.
    pub(crate) fn apiserver_as(&self, identity: Identity) -> Builder {
        Upstream::builder(identity).kubernetes(&Kubernetes::new())
    }

    /// A valid certificate for the proxy.
    pub(crate) fn identity(&self) -> Identity {
        self.public_ca.server(&[HOST, "localhost"])
    }

    /// Valid flags of `serve` in front of `upstream`.
    pub(crate) fn flags(&self, upstream: SocketAddr) -> Vec<String> {
        self.flags_as(&format!("https://{upstream}"), &self.identity())
    }

    /// Flags of `serve` with this upstream URL and certificate.
    pub(crate) fn flags_as(&self, upstream: &str, identity: &Identity) -> Vec<String> {
        let (certificate, key) = identity.write(&self.dir, "public");
        let ca = self.dir.write("cluster-ca.crt", self.cluster_ca.pem());
        flags(&[
            ("--listen", "127.0.0.1:0"),
            ("--cert", path(&certificate)),
            ("--key", path(&key)),
            ("--upstream", upstream),
            ("--upstream-ca", path(&ca)),
            ("--upstream-name", APISERVER),
        ])
    }

    /// Flags of `serve` with the clusters `a.test` and `b.test`, both at `upstream`.
    pub(crate) fn flags_of_two_clusters(&self, upstream: SocketAddr) -> Vec<String> {
        // Writes the files that the configuration names.
        self.flags(upstream);
        let at = format!(
            "upstream: {{ url: \"https://{upstream}\", ca: cluster-ca.crt, name: {APISERVER} }}"
        );
        let config = format!(
            "listen: [\"127.0.0.1:0\"]
certificates: [{{ certificate: public.crt, key: public.key }}]
clusters:
- {{ name: a, hosts: [a.test], {at} }}
- {{ name: b, hosts: [b.test], {at} }}
"
        );
        let file = self.dir.write("config.yaml", config);
        flags(&[("--config", path(&file))])
    }

    /// `--through-ca` with the CA that the clients trust.
    pub(crate) fn clients_trust(&self) -> Vec<String> {
        flags(&[("--through-ca", path(&self.public_ca_file()))])
    }

    pub(crate) fn public_ca_file(&self) -> PathBuf {
        self.dir.write("public-ca.crt", self.public_ca.pem())
    }

    /// Checks a proxy with valid files in front of `upstream`.
    pub(crate) async fn check(&self, upstream: SocketAddr, more: &[&str]) -> RunResult {
        let flags = [self.flags(upstream), self.clients_trust()].concat();
        check(&flags, more).await
    }

    /// Starts `serve` with these flags.
    pub(crate) async fn serve(&self, flags: &[String]) -> Serving {
        let mut child = command("serve").args(flags).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let has_admin = flags.iter().any(|flag| flag == "--admin-listen");
        let (mut listening, mut admin) = (None, None);
        while listening.is_none() || has_admin && admin.is_none() {
            let line = within("the address of the proxy", lines.next_line()).await;
            let line = line.unwrap().expect("serve starts");
            if let Some(address) = line.strip_prefix("  listening   ") {
                listening = Some(address.parse().unwrap());
            } else if let Some(url) = line.strip_prefix("  admin       http://") {
                admin = Some(url.trim_end_matches('/').parse().unwrap());
            }
        }
        // Keep reading, so that the process never blocks on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Serving {
            _child: child,
            address: listening.unwrap(),
            admin,
        }
    }
}

impl RunResult {
    /// Every printed finding, in order.
    pub(crate) fn lines(&self) -> Vec<PrintedFinding> {
        let mut found: Vec<PrintedFinding> = Vec::new();
        for line in self.stdout.lines() {
            if let Some(fix) = line.trim_start().strip_prefix("→ ") {
                found.last_mut().unwrap().fix = Some(fix.to_owned());
            } else if line.starts_with("     ") {
                // A line of the configuration file, or the mark below it.
            } else if let Some(rest) = line.strip_prefix("  ") {
                let mut chars = rest.chars();
                let mark = chars.next().unwrap();
                let (check, message) = chars.as_str().trim_start().split_once(' ').unwrap();
                found.push(PrintedFinding {
                    mark,
                    check: check.to_owned(),
                    message: message.trim_start().to_owned(),
                    fix: None,
                });
            }
        }
        found
    }

    /// The findings of one check.
    #[track_caller]
    pub(crate) fn of(&self, check: &str) -> Vec<PrintedFinding> {
        let mut lines = self.lines();
        lines.retain(|line| line.check == check);
        assert!(!lines.is_empty(), "no line about {check} in {self:#?}");
        lines
    }

    /// Asserts the exit code, and a finding with this check and mark whose message and fix contain these texts.
    #[track_caller]
    pub(crate) fn assert_finding(
        &self,
        code: i32,
        mark: char,
        check: &str,
        message: &str,
        fix: &str,
    ) {
        let lines = self.of(check);
        let found = lines.iter().any(|line| {
            line.mark == mark
                && line.message.contains(message)
                && line.fix.as_ref().is_some_and(|found| found.contains(fix))
        });
        assert!(
            found,
            "no {mark} {check} with {message:?} and {fix:?} in\n{}{}",
            self.stdout, self.stderr
        );
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
    }

    /// The checks with this mark, in order.
    pub(crate) fn marked(&self, mark: char) -> Vec<String> {
        let lines = self.lines().into_iter();
        lines
            .filter(|line| line.mark == mark)
            .map(|line| line.check)
            .collect()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:#?}"))
    }
}

/// The binary with this subcommand and an empty environment.
pub(crate) fn command(subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-tls-proxy"));
    command
        .arg(subcommand)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs `check` with these flags.
pub(crate) async fn check(flags: &[String], more: &[&str]) -> RunResult {
    run(command("check").args(flags).args(more)).await
}

/// Runs the command until it exits.
pub(crate) async fn run(command: &mut Command) -> RunResult {
    let output = within("the end of the process", command.output())
        .await
        .unwrap();
    RunResult {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs
        .iter()
        .flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()])
        .collect()
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
