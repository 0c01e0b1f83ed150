//! The cluster: builds and starts the Go fixture, and knows its addresses and paths.
//!
//! The fixture ends when its standard input ends, so it never lives longer than this process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use std::{env, fs};

use serde_json::Value;

use crate::process::{Outcome, Running, run};

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Fixture {
    program: PathBuf,
    running: Mutex<Running>,
    announcement: Value,
}

impl Fixture {
    /// Builds and starts the fixture.
    ///
    /// # Errors
    /// Names the program or network access that this machine lacks. Panics if the fixture does not compile or
    /// start, because that is a defect.
    pub(crate) fn start() -> Result<Self, String> {
        let program = build()?;
        let running = Running::start(Command::new(&program));
        let announcement = running.json(START_LIMIT);
        Ok(Self {
            program,
            running: Mutex::new(running),
            announcement,
        })
    }

    pub(crate) fn server(&self) -> &str {
        self.text("server")
    }

    /// A file with the server and the token of an administrator.
    pub(crate) fn kubeconfig(&self) -> &str {
        self.text("kubeconfig")
    }

    pub(crate) fn ca(&self) -> &str {
        self.text("ca")
    }

    pub(crate) fn token(&self) -> &str {
        self.text("token")
    }

    pub(crate) fn namespace(&self) -> &str {
        self.text("namespace")
    }

    pub(crate) fn audit(&self) -> &str {
        self.text("audit")
    }

    pub(crate) fn impersonated_user(&self) -> &str {
        self.text("impersonatedUser")
    }

    pub(crate) fn impersonated_group(&self) -> &str {
        self.text("impersonatedGroup")
    }

    /// The files of a user with a client certificate who may do everything: certificate and key.
    pub(crate) fn user_files(&self) -> [&str; 2] {
        [self.text("userCertificate"), self.text("userKey")]
    }

    /// The files of a front proxy that the apiserver believes: certificate and key.
    pub(crate) fn front_proxy_files(&self) -> [&str; 2] {
        [
            self.text("frontProxyCertificate"),
            self.text("frontProxyKey"),
        ]
    }

    /// Two identity providers that the apiserver trusts, each with a user who may view the namespace.
    pub(crate) fn issuers(&self) -> [Issuer<'_>; 2] {
        [0, 1].map(|number| {
            let issuer = &self.announcement["issuers"][number];
            let text = |key: &str| issuer[key].as_str().unwrap();
            Issuer {
                url: text("url"),
                user: text("user"),
                token: text("token"),
            }
        })
    }

    pub(crate) fn aggregated_path(&self) -> &str {
        self.text("aggregatedPath")
    }

    /// A directory that is removed with the cluster.
    pub(crate) fn scratch(&self) -> &Path {
        Path::new(self.text("logs"))
    }

    /// The working directory of the commands of `pod`.
    pub(crate) fn pod_directory(&self, pod: &str) -> PathBuf {
        Path::new(self.text("podRoot")).join(pod)
    }

    /// The TCP port that echoes.
    pub(crate) fn echo_port(&self) -> u64 {
        self.announcement["echo"].as_u64().unwrap()
    }

    /// The TCP port that sends first: [`SOURCE_BYTES`] bytes.
    pub(crate) fn source_port(&self) -> u64 {
        self.announcement["source"].as_u64().unwrap()
    }

    /// A command for one of the fixture's small clients.
    pub(crate) fn client(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name);
        command
    }

    /// Restarts the apiserver and waits until it is ready.
    #[track_caller]
    pub(crate) fn restart_apiserver(&self) {
        let output = self.command("restart");
        assert_eq!(output["restarted"], true, "{output}");
    }

    /// Starts another apiserver with the same data, and returns its address when it is ready.
    #[track_caller]
    pub(crate) fn start_another_apiserver(&self) -> String {
        let output = self.command("another");
        output["another"].as_str().unwrap().to_owned()
    }

    /// Kills the other apiserver with this address as the kernel would, without a word to its clients.
    #[track_caller]
    pub(crate) fn kill_other_apiserver(&self, address: &str) {
        let output = self.command(&format!("kill {address}"));
        assert_eq!(output["killed"], true, "{output}");
    }

    /// Kills the other apiserver with this address, starts it again there, and waits until it is ready.
    #[track_caller]
    pub(crate) fn restart_other_apiserver(&self, address: &str) {
        let output = self.command(&format!("restart {address}"));
        assert_eq!(output["restarted"], true, "{output}");
    }

    #[track_caller]
    fn command(&self, command: &str) -> Value {
        let mut running = self.running.lock().unwrap();
        running.write(&format!("{command}\n"));
        running.json(START_LIMIT)
    }

    fn text(&self, key: &str) -> &str {
        self.announcement[key].as_str().unwrap()
    }
}

/// An identity provider, a user of it and the token of that user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Issuer<'a> {
    pub(crate) url: &'a str,
    pub(crate) user: &'a str,
    pub(crate) token: &'a str,
}

fn build() -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster");
    let mut list = go(&source);
    list.args(["list", "-mod=readonly", "-deps", "."]);
    // This probe runs first, because `run` panics if a program cannot start.
    Command::new("go")
        .arg("version")
        .stdout(Stdio::null())
        .status()
        .map_err(|err| format!("go: {err}"))?;
    // Loading the packages downloads their modules, so a failure here is a failure of the network.
    let Outcome { code, stderr, .. } = run(list, Vec::new(), BUILD_LIMIT);
    if code != Some(0) {
        return Err(format!("the Go modules cannot be loaded: {stderr}"));
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cluster-fixture");
    let mut build = go(&source);
    build
        .args([
            "build",
            "-mod=readonly",
            "-buildvcs=false",
            "-p=2",
            "-ldflags",
        ])
        .arg(format!(
            "-s -w -X k8s.io/component-base/version.gitVersion={}",
            kubernetes_version(&source)
        ))
        .arg("-o")
        .arg(&program)
        .arg(".");
    run(build, Vec::new(), BUILD_LIMIT).ok();
    Ok(program)
}

fn go(source: &Path) -> Command {
    let mut command = Command::new("go");
    command
        .current_dir(source)
        // A Go workspace or flags of the developer would change the build.
        .env("GOWORK", "off")
        .env_remove("GOFLAGS");
    command
}

/// The version in `go.mod`. A build from modules does not know its version, and kubectl fails with the
/// placeholder that the apiserver would report instead.
fn kubernetes_version(source: &Path) -> String {
    let module = fs::read_to_string(source.join("go.mod")).unwrap();
    module
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .unwrap()
        .trim()
        .to_owned()
}

/// The number of bytes that the source port sends.
pub(crate) const SOURCE_BYTES: usize = 8 << 20;

/// The first build compiles all of kube-apiserver.
const BUILD_LIMIT: Duration = Duration::from_mins(40);
const START_LIMIT: Duration = Duration::from_mins(4);
