//! Runs kubectl on the two routes and compares the results.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{Outcome, Running, run};
use crate::suite::{Route, Server, Suite, on_both};

/// The protocol that exec, attach, cp and port-forward use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streaming {
    WebSocket,
    Spdy,
}

pub(crate) const STREAMINGS: [Streaming; 2] = [Streaming::WebSocket, Streaming::Spdy];

impl Streaming {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Spdy => "spdy",
        }
    }
}

/// The settings of a kubectl call: the route and the user.
#[derive(Debug, Clone)]
pub(crate) struct Kubectl<'a> {
    suite: &'a Suite,
    route: Route,
    server: Server,
    /// The user, as a kubeconfig has it.
    user: Value,
    streaming: Streaming,
    /// Used instead of one with the server and the user.
    kubeconfig: Option<PathBuf>,
}

impl<'a> Kubectl<'a> {
    /// The user of the suite.
    pub(crate) fn new(suite: &'a Suite, route: Route) -> Self {
        Self {
            suite,
            route,
            server: suite.server(route),
            user: suite.credential().user(),
            streaming: Streaming::WebSocket,
            kubeconfig: None,
        }
    }

    /// Connects to this server.
    pub(crate) fn with_server(mut self, server: Server) -> Self {
        self.server = server;
        self
    }

    /// Is this user, as a kubeconfig has it.
    pub(crate) fn with_user(mut self, user: Value) -> Self {
        self.user = user;
        self
    }

    /// Uses this kubeconfig.
    pub(crate) fn with_kubeconfig(mut self, file: &Path) -> Self {
        self.kubeconfig = Some(file.to_owned());
        self
    }

    pub(crate) fn streaming(mut self, streaming: Streaming) -> Self {
        self.streaming = streaming;
        self
    }

    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        self.run_with_input(args, Vec::new())
    }

    /// Runs kubectl to its end. Repeats the call if kubectl itself lost output, which happens on both routes.
    ///
    /// Before client-go 0.34, exec and attach read the WebSocket before their streams exist. They discard data
    /// for a missing stream, with this message (`readDemuxLoop` in `remotecommand` of client-go).
    #[track_caller]
    pub(crate) fn run_with_input(&self, args: &[&str], input: Vec<u8>) -> Outcome {
        let mut tries = 0;
        loop {
            let command = self.configure(Command::new("kubectl"), args);
            let outcome = run(command, input.clone(), RUN_LIMIT);
            tries += 1;
            if tries == TRIES || !outcome.stderr.contains("discarding message") {
                return outcome;
            }
        }
    }

    #[track_caller]
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        Running::start(self.configure(Command::new("kubectl"), args))
    }

    /// Starts kubectl in a terminal. `terminal` are the flags of the fixture's `pty`.
    #[track_caller]
    pub(crate) fn start_in_terminal(&self, terminal: &[&str], args: &[&str]) -> Running {
        let mut command = self.suite.fixture.client("pty");
        command.args(terminal).args(["--", "kubectl"]);
        Running::start(self.configure(command, args))
    }

    fn configure(&self, mut command: Command, args: &[&str]) -> Command {
        let home = self.suite.fixture.scratch().join(self.route.name());
        fs::create_dir_all(&home).unwrap();
        let websockets = if self.streaming == Streaming::WebSocket {
            "true"
        } else {
            "false"
        };
        command
            .args(args)
            .current_dir(&home)
            // Each route has its own home, because kubectl caches responses of the server there.
            .env("HOME", &home)
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
        for name in [
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
            "KUBECACHEDIR",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// Writes a kubeconfig and returns its path. The path depends only on the content.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        if let Some(file) = &self.kubeconfig {
            return file.clone();
        }
        let mut cluster =
            json!({"server": self.server.url, "certificate-authority": self.server.ca});
        if let Some(name) = self.server.name {
            cluster["tls-server-name"] = json!(name);
        }
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": self.user}],
            "contexts": [{"name": "it", "context": {
                "cluster": "it", "user": "it", "namespace": self.suite.fixture.namespace(),
            }}],
            "current-context": "it",
        })
        .to_string();
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        let file = format!("kubeconfig-{:x}.json", hasher.finish());
        let path = self.suite.fixture.scratch().join(file);
        // Cases write the file concurrently, and no case may read an incomplete file.
        let draft = path.with_extension(format!("{:?}", std::thread::current().id()));
        fs::write(&draft, content).unwrap();
        fs::rename(&draft, &path).unwrap();
        path
    }
}

/// Runs kubectl on both routes, asserts the same outcome, and returns it.
#[track_caller]
pub(crate) fn same_on_both(suite: &Suite, args: &[&str]) -> Outcome {
    let [direct, proxied] = on_both(|route| Kubectl::new(suite, route).run(args));
    assert_same(direct, proxied)
}

/// Asserts that two outcomes are equal, except for the parts that may differ.
#[track_caller]
pub(crate) fn assert_same(direct: Outcome, proxied: Outcome) -> Outcome {
    let (direct, proxied) = (normalize(direct), normalize(proxied));
    assert!(
        direct == proxied,
        "direct: {:?}\n{}\n{}\nproxied: {:?}\n{}\n{}",
        direct.code,
        direct.text(),
        direct.stderr,
        proxied.code,
        proxied.text(),
        proxied.stderr
    );
    direct
}

/// Replaces the time, the process id and the source position in kubectl's log lines.
fn normalize(mut outcome: Outcome) -> Outcome {
    let lines = outcome.stderr.lines().map(|line| {
        let of_log = line.starts_with(['I', 'W', 'E'])
            && line
                .as_bytes()
                .get(1..5)
                .is_some_and(|date| date.iter().all(u8::is_ascii_digit));
        match line.split_once("] ") {
            Some((_, message)) if of_log => message,
            _ => line,
        }
    });
    outcome.stderr = lines.collect::<Vec<_>>().join("\n");
    outcome
}

/// Three losses of that race in a row have another cause.
const TRIES: usize = 3;
/// Long enough for every kubectl command of the suite on a busy machine.
const RUN_LIMIT: Duration = Duration::from_mins(2);
