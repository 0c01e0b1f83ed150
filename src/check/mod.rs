//! Finds what does not work before users do, and says how to fix it.
//!
//! It loads, dials and verifies with the code of `serve`, so that the two cannot disagree.
//! A check that depends on a failed one is reported as skipped.

mod access;
mod acme;
mod apiserver;
mod dial;
mod discovery;
mod http;
mod local;
mod messages;
mod recorder;
mod report;
mod streams;
mod target;
mod token;
mod whoami;

use std::time::Duration;

pub use access::{AccessQuestion, AccessQuestionError};
pub use recorder::Event;
pub use report::{Check, CheckOutcome, CheckReport, Colours, Finding, Leg, Section};
pub use token::{Token, TokenError};

use crate::{
    config::{Config, ConfigError},
    pki::{ClientIdentity, TrustAnchors},
    quote,
};
use recorder::{Message, Recorder};
use target::CheckTarget;
use whoami::UserInfo;

/// What to check.
#[derive(Debug)]
pub struct Plan {
    /// The configuration that `serve` would run with; `None` checks only through the proxy.
    pub config: Option<Result<Config, ConfigError>>,
    /// The running proxy to send requests through.
    pub through: Option<Through>,
    /// The CAs that clients trust instead of the public ones, and the file they come from.
    pub client_trust: Option<(String, TrustAnchors)>,
    /// Answer only this question about access rules, without network.
    pub question: Option<AccessQuestion>,
    /// Whether to leave out everything that needs the network or a port.
    pub offline: bool,
    /// Sent with every request, if present.
    pub token: Option<Token>,
    /// The certificate of a user, for [`Check::Whoami`].
    pub client: Option<ClientIdentity>,
    /// How long a watch must stay open; `None` skips the check.
    pub watch: Option<Duration>,
    /// Time limit for the head of a response, and again for its body.
    pub response_timeout: Duration,
}

/// A running proxy as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Through {
    /// The URL as given, without trailing slashes.
    pub url: String,
    /// Its host, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Host and port to connect to in place of these two.
    pub connect_to: Option<(String, u16)>,
    /// Prepended to every path; usually empty.
    pub prefix: String,
    /// The name that the proxy's certificate must be valid for.
    pub server_name: rustls_pki_types::ServerName<'static>,
}

impl Through {
    /// Host and port to connect to, and the flag that names them, for messages.
    fn server(&self) -> (String, u16, &'static str) {
        match &self.connect_to {
            Some((host, port)) => (host.clone(), *port, "--connect-to"),
            None => (self.host.clone(), self.port, "the URL of --through"),
        }
    }
}

/// How long a watch must stay open: longer than the 15 s after which Envoy closes one by default.
pub const WATCH_DURATION: Duration = Duration::from_secs(20);
/// Time limit for one response.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs every check in `plan` and returns the report; `observer` receives each event at once.
pub async fn run(plan: &Plan, observer: &mut dyn FnMut(Event<'_>)) -> CheckReport {
    let mut recorder = Recorder::new(observer);
    if let (Some(Ok(config)), Some(question)) = (&plan.config, &plan.question) {
        access::check(question, plan.token.as_ref(), config, &mut recorder);
        return recorder.into_report();
    }
    let mut users = Vec::new();
    match &plan.config {
        None => {}
        Some(Ok(config)) => users = check_config(plan, config, &mut recorder).await,
        Some(Err(error)) => {
            recorder.begin(Section::Local, None, "Configuration");
            recorder.failed(Check::Configuration, Message::from_config_error(error));
            let rest = [Check::Certificate, Check::Listen, Check::Ca, Check::Tcp];
            recorder.skipped(&rest, "the configuration is invalid");
        }
    }
    if let Some(through) = &plan.through {
        check_through(plan, through, &users, &mut recorder).await;
    }
    recorder.into_report()
}

/// Checks what `serve` would do with `config`, up to requests to each apiserver.
/// Returns the user that each apiserver finds in the client certificate, if there is one.
async fn check_config(plan: &Plan, config: &Config, recorder: &mut Recorder<'_>) -> Vec<UserInfo> {
    recorder.begin(Section::Local, None, "Configuration");
    let names = local::check(plan, config, recorder).await;
    let mut users = Vec::new();
    for cluster in &config.clusters {
        let title = format!(
            "Apiserver of cluster {} at https://{}{}",
            cluster.name,
            cluster.authority(),
            quote::path(cluster.path_prefix.as_ref())
        );
        recorder.begin(Section::Upstream, Some(&cluster.name), &title);
        let Some((tls, outbound)) = local::trust_anchors(cluster, &config.sources, recorder) else {
            let rest = [Check::Dns, Check::Tcp, Check::Tls, Check::Verify];
            recorder.skipped(&rest, "there is no CA to verify the apiserver with");
            continue;
        };
        let clients = local::client_certificates(cluster, &config.sources, recorder);
        if plan.offline {
            continue;
        }
        let target = CheckTarget::from_cluster(cluster, (tls, outbound), &names, config);
        if !cluster.passthrough {
            let endpoint = apiserver::check(plan, &target, recorder).await;
            let Some(endpoint) = endpoint else { continue };
            if let Some(token) = &cluster.discovery {
                discovery::check(plan, &target, endpoint, token, recorder).await;
            }
            let clients = clients.as_ref();
            let token = clients.and_then(|clients| clients.naming.token());
            if let Some(user) = &plan.client {
                let found = whoami::direct(plan, &target, endpoint, user, clients, recorder);
                users.extend(found.await);
            } else if let Some(token) = token {
                whoami::invented(plan, &target, endpoint, token, recorder).await;
            }
            continue;
        }
        // No request of a client is sent, as the proxy sends none.
        let endpoint = dial::check(&target, recorder).await;
        if let (Some(token), Some(endpoint)) = (&cluster.discovery, endpoint) {
            discovery::check(plan, &target, endpoint, token, recorder).await;
        }
        let has_name = cluster.hosts.iter().any(|host| !host.starts_with('*'));
        if let Some(through) = plan.through.as_ref().filter(|_| has_name) {
            let name = target.tls.expected_name();
            let title = format!("Through {}, passed on as {name}", through.url);
            recorder.begin(Section::Through, Some(&through.url), &title);
            dial::check(&target.passed(through), recorder).await;
        }
    }
    users
}

/// Checks the running proxy as a client would use it.
async fn check_through(
    plan: &Plan,
    through: &Through,
    direct: &[UserInfo],
    recorder: &mut Recorder<'_>,
) {
    let title = format!("Through {}", through.url);
    recorder.begin(Section::Through, Some(&through.url), &title);
    match CheckTarget::from_through(through, plan.client_trust.as_ref()) {
        Ok(target) => {
            let endpoint = apiserver::check(plan, &target, recorder).await;
            if let (Some(user), Some(endpoint)) = (&plan.client, endpoint) {
                whoami::through(plan, &target, endpoint, user, direct, recorder).await;
            }
        }
        Err(error) => recorder.failed(Check::Ca, Message::from_error(&error)),
    }
}
