//! The shared state of all cases: one cluster and one proxy. The first case starts them.

use std::io::{self, Write};
use std::ops::Deref;
use std::process::{Command, Stdio};
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::{env, thread};

use crate::fixture::Fixture;
use crate::proxy::Proxy;

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

/// The cluster and the proxy.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) fixture: Fixture,
    pub(crate) proxy: Proxy,
}

impl Suite {
    /// The base URL of the server on this route, and the file with its CA.
    pub(crate) fn server(&self, route: Route) -> (&str, String) {
        match route {
            Route::Direct => (self.fixture.server(), self.fixture.ca().to_owned()),
            Route::Proxied => (&self.proxy.server, self.proxy.ca.display().to_string()),
        }
    }

    /// A command for one of the fixture's raw clients, on this route and with `token`.
    pub(crate) fn raw_client(&self, name: &str, route: Route, token: &str) -> Command {
        let (server, ca) = self.server(route);
        let mut command = self.fixture.client(name);
        command.args(["-server", server, "-ca", &ca, "-token", token]);
        command
    }
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

/// A turn concurrent with other cases. `None` if the suite cannot run on this machine.
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
    probe_kubectl()?;
    let fixture = Fixture::start()?;
    let proxy = Proxy::start(&fixture);
    Ok(Suite { fixture, proxy })
});

fn suite() -> Option<&'static Suite> {
    match &*SUITE {
        Ok(suite) => Some(suite),
        Err(reason) => {
            let required = env::var_os("REQUIRE_CLUSTER").is_some_and(|v| v == "1");
            assert!(!required, "the cluster suite cannot run: {reason}");
            // Not with a macro: the test harness hides the output of the macros when a test passes.
            let _ = writeln!(io::stderr(), "skipped: {reason}");
            None
        }
    }
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
