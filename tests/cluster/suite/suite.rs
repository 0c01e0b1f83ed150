//! The shared state of all cases: one cluster, one proxy and one user. The first case starts them.

use std::io::{self, Write};
use std::ops::Deref;
use std::process::{Command, Stdio};
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use std::{env, thread};

use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::process::run;
use crate::proxy::Proxy;
use crate::way::{self, PASSED_HOST, Way};

/// The route from a client to the apiserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Direct,
    Proxied,
}

impl Route {
    /// A suffix for names of objects and files that must differ between the routes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Proxied => "proxied",
        }
    }
}

/// The server that a client connects to.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// The base URL.
    pub(crate) url: String,
    /// The file with its CA.
    pub(crate) ca: String,
    /// The name in its certificate, if that is not the host of the URL.
    pub(crate) name: Option<&'static str>,
}

/// How a client proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// With a token, or with nothing if the token is empty.
    Token(String),
    /// With these files.
    Certificate { certificate: String, key: String },
}

impl Credential {
    pub(crate) fn token(token: &str) -> Self {
        Self::Token(token.to_owned())
    }

    /// The user of a kubeconfig.
    pub(crate) fn user(&self) -> Value {
        match self {
            Self::Token(token) => json!({ "token": token }),
            Self::Certificate { certificate, key } => {
                json!({ "client-certificate": certificate, "client-key": key })
            }
        }
    }
}

/// The cluster, the proxy, and the way in which its user comes in.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) way: Way,
    pub(crate) fixture: Fixture,
    pub(crate) proxy: Proxy,
}

impl Suite {
    pub(crate) fn server(&self, route: Route) -> Server {
        match route {
            Route::Direct => Server {
                url: self.fixture.server().to_owned(),
                ca: self.fixture.ca().to_owned(),
                name: None,
            },
            Route::Proxied => self.server_of(&self.proxy),
        }
    }

    /// The server that the user of the suite reaches through this proxy.
    pub(crate) fn server_of(&self, proxy: &Proxy) -> Server {
        let terminated = proxy.server();
        match self.way {
            Way::Passthrough => Server {
                ca: self.fixture.ca().to_owned(),
                name: Some(PASSED_HOST),
                ..terminated
            },
            Way::Token
            | Way::Rules
            | Way::FrontProxy
            | Way::Impersonation
            | Way::HttpProxy
            | Way::Ingress
            | Way::HttpRoute => terminated,
        }
    }

    /// The credential of the user of the suite, who may do everything.
    pub(crate) fn credential(&self) -> Credential {
        self.way.credential(&self.fixture)
    }

    /// The address and the CA of the apiserver, as a configuration has them.
    pub(crate) fn upstream(&self) -> Value {
        upstream(&self.fixture)
    }

    /// One more proxy in front of `upstream`, for the way of the suite.
    #[track_caller]
    pub(crate) fn another_proxy(&self, upstream: &Value, flags: &[&str]) -> Proxy {
        let config = self.way.config(&self.fixture, upstream);
        self.proxy.another(&self.fixture, &config, flags)
    }

    /// A command for one of the fixture's raw clients, on this route.
    pub(crate) fn raw_client(&self, name: &str, route: Route, credential: &Credential) -> Command {
        self.raw_client_of(name, &self.server(route), credential)
    }

    /// A command for one of the fixture's raw clients.
    pub(crate) fn raw_client_of(
        &self,
        name: &str,
        server: &Server,
        credential: &Credential,
    ) -> Command {
        let mut command = self.fixture.client(name);
        command.args(["-server", &server.url, "-ca", &server.ca]);
        if let Some(name) = server.name {
            command.args(["-server-name", name]);
        }
        match credential {
            Credential::Token(token) => command.args(["-token", token]),
            Credential::Certificate { certificate, key } => {
                command.args(["-cert", certificate, "-key", key])
            }
        };
        command
    }

    /// Sends a GET on a new connection and returns the response, as the raw client `fetch` prints it.
    #[track_caller]
    pub(crate) fn fetch(
        &self,
        server: &Server,
        credential: &Credential,
        path: &str,
        flags: &[&str],
    ) -> Value {
        let mut fetch = self.raw_client_of("fetch", server, credential);
        fetch.args(["-path", path]).args(flags);
        let output = run(fetch, Vec::new(), Duration::from_mins(1)).ok();
        serde_json::from_str(&output).unwrap()
    }
}

fn upstream(fixture: &Fixture) -> Value {
    json!({ "url": fixture.server(), "ca": fixture.ca() })
}

/// The right of a case to use the suite, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    suite: &'static Suite,
    _guard: Guard,
}

#[derive(Debug)]
#[expect(dead_code, reason = "a guard is held and never read")]
enum Guard {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Deref for Turn {
    type Target = Suite;

    fn deref(&self) -> &Suite {
        self.suite
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.suite.proxy.end_of_log();
            eprintln!("--- end of the proxy's log:\n{log}");
        }
    }
}

/// A turn concurrent with other cases. `None` if the case makes no sense in the way of the suite, or if the suite
/// cannot run on this machine.
pub(crate) fn shared() -> Option<Turn> {
    let suite = suite()?;
    // The lock protects no data, so a poisoned lock is harmless.
    let guard = Guard::Shared(TURNS.read().unwrap_or_else(PoisonError::into_inner));
    Some(Turn {
        suite,
        _guard: guard,
    })
}

/// An exclusive turn, for a case that measures time or disturbs others.
pub(crate) fn alone() -> Option<Turn> {
    let suite = suite()?;
    let guard = Guard::Alone(TURNS.write().unwrap_or_else(PoisonError::into_inner));
    Some(Turn {
        suite,
        _guard: guard,
    })
}

/// Runs `work` on both routes concurrently.
pub(crate) fn on_both<T: Send>(work: impl Fn(Route) -> T + Sync) -> [T; 2] {
    thread::scope(|scope| {
        let direct = scope.spawn(|| work(Route::Direct));
        let proxied = scope.spawn(|| work(Route::Proxied));
        [direct, proxied].map(|route| match route.join() {
            Ok(result) => result,
            // Resumes the panic with the same payload, because its message is already printed.
            Err(payload) => std::panic::resume_unwind(payload),
        })
    })
}

static TURNS: RwLock<()> = RwLock::new(());

static SUITE: LazyLock<Result<Suite, String>> = LazyLock::new(|| {
    let way = Way::from_environment();
    probe_kubectl()?;
    let fixture = Fixture::start()?;
    let config = way.config(&fixture, &upstream(&fixture));
    let proxy = Proxy::start(&fixture, &config);
    Ok(Suite {
        way,
        fixture,
        proxy,
    })
});

fn suite() -> Option<&'static Suite> {
    let way = Way::from_environment();
    if let Some(reason) = way::exception(way) {
        skip(&reason);
        return None;
    }
    match &*SUITE {
        Ok(suite) => Some(suite),
        Err(reason) => {
            let required = env::var_os("REQUIRE_CLUSTER").is_some_and(|v| v == "1");
            assert!(!required, "the cluster suite cannot run: {reason}");
            skip(reason);
            None
        }
    }
}

/// Says why a case, or all of them, cannot run on this machine.
pub(crate) fn skip(reason: &str) {
    // Not with a macro: the test harness hides the output of the macros when a test passes.
    let _ = writeln!(io::stderr(), "SKIPPED: {reason}");
}

fn probe_kubectl() -> Result<(), String> {
    let status = Command::new("kubectl")
        .args(["version", "--client"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|err| format!("kubectl: {err}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("kubectl version --client: {status}"))
    }
}
