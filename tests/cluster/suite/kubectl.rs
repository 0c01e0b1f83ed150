//! Runs kubectl on one of the two routes, and compares the two.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::process::{Outcome, Running, run};
use crate::suite::{Route, Suite, on_both};

/// The protocol under exec, attach, cp and port-forward.
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

/// How to call kubectl: on which route, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Kubectl<'a> {
    suite: &'a Suite,
    route: Route,
    token: String,
    streaming: Streaming,
}

impl<'a> Kubectl<'a> {
    /// As the administrator.
    pub(crate) fn new(suite: &'a Suite, route: Route) -> Self {
        Self::with_token(suite, route, suite.fixture.token())
    }

    pub(crate) fn with_token(suite: &'a Suite, route: Route, token: &str) -> Self {
        Self {
            suite,
            route,
            token: token.to_owned(),
            streaming: Streaming::WebSocket,
        }
    }

    pub(crate) fn streaming(mut self, streaming: Streaming) -> Self {
        self.streaming = streaming;
        self
    }

    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        self.run_with_input(args, Vec::new())
    }

    /// Runs kubectl to its end; once more when it has lost output by itself, on whichever route.
    ///
    /// Before client-go 0.34 exec and attach read the WebSocket before the streams are there, and what comes
    /// for one that is missing is dropped with this message (`readDemuxLoop` in its `remotecommand`).
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

    /// kubectl in a terminal; `terminal` are the flags of the fixture's `pty`.
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
            // A home for each route, since kubectl caches there what a server told it.
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

    /// Writes a kubeconfig and returns its path. The same content always has the same path.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let (server, ca) = self.suite.server(self.route);
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": {"server": server, "certificate-authority": ca}}],
            "users": [{"name": "it", "user": {"token": self.token}}],
            "contexts": [{"name": "it", "context": {
                "cluster": "it", "user": "it", "namespace": self.suite.fixture.namespace(),
            }}],
            "current-context": "it",
        });
        let who = if self.token == self.suite.fixture.token() {
            "admin"
        } else {
            "other"
        };
        let file = format!("kubeconfig-{}-{who}.json", self.route.name());
        let path = self.suite.fixture.scratch().join(file);
        // Cases write it at the same time, so no case may read half of it.
        let draft = path.with_extension(format!("{:?}", std::thread::current().id()));
        fs::write(&draft, content.to_string()).unwrap();
        fs::rename(&draft, &path).unwrap();
        path
    }
}

/// Runs kubectl on both routes, asserts that nothing differs, and returns what it was.
#[track_caller]
pub(crate) fn same_on_both(suite: &Suite, args: &[&str]) -> Outcome {
    let [direct, proxied] = on_both(|route| Kubectl::new(suite, route).run(args));
    assert_same(direct, proxied)
}

/// Asserts that two outcomes are the same but for what legitimately differs.
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

/// Replaces what kubectl's log lines say of the time, the process and its own source code.
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

/// Losing that race three times in a row is something else.
const TRIES: usize = 3;
/// Enough for a kubectl on a busy machine, whatever it does here.
const RUN_LIMIT: Duration = Duration::from_mins(2);
