//! Finds what does not work before a user does, and says the fix.
//!
//! Configuration, files, dial and verification are those of `serve`, so that the two cannot disagree.
//! What depends on something that failed is not tried but said to be skipped.

mod answer;

mod apiserver;
mod clock;
mod dial;
mod http;
mod local;
mod messages;
mod recorder;
mod report;
mod token;
mod upgrade;
mod watch;

use std::{sync::Arc, time::Duration};

use rustls::RootCertStore;

pub use recorder::Event;
pub use report::{Check, CheckOutcome, CheckReport, Colours, Finding, Leg, Section};
pub use token::{Token, TokenError};

use crate::{
    config::{ClusterConfig, Config, ConfigError, Timeouts},
    hosts::url_host,
    pki::{TrustAnchors, public_roots},
    quote,
    upstream::ClientTls,
};
use dial::{CheckTarget, TargetRole};
use recorder::{Message, Recorder};

/// What is to be checked.
#[derive(Debug)]
pub struct Plan {
    /// What `serve` would run with; `None` looks from outside only.
    pub config: Option<Result<Config, ConfigError>>,
    /// The running proxy to look through.
    pub through: Option<Through>,
    /// The CAs that clients trust instead of the public ones, and the file they came from.
    pub clients_trust: Option<(String, TrustAnchors)>,
    /// Sent with every request, if given.
    pub token: Option<Token>,
    /// How long a watch must stay open; `None` does not try one.
    pub watch: Option<Duration>,
    /// How long one answer is waited for.
    pub answer_within: Duration,
}

/// A running proxy as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Through {
    /// As it was typed, without a slash at its end.
    pub url: String,
    /// Its host, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Put before every path; mostly empty.
    pub prefix: String,
    /// What its certificate must be for.
    pub name: rustls_pki_types::ServerName<'static>,
}

/// How long a watch must stay open: longer than the 15 s after which Envoy cuts one by default.
pub const WATCH: Duration = Duration::from_secs(20);
/// How long one answer is waited for.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Checks everything in `plan`; `tell` hears of each finding when it is made.
pub async fn run(plan: &Plan, tell: &mut dyn FnMut(Event<'_>)) -> CheckReport {
    let mut recorder = Recorder::new(tell);
    match &plan.config {
        None => {}
        Some(Ok(config)) => Box::pin(configured(plan, config, &mut recorder)).await,
        Some(Err(error)) => {
            recorder.begin(Section::Local, "", "Configuration");
            recorder.failed(Check::Configuration, Message::from_error(error));
            let rest = [Check::Certificate, Check::Listen, Check::Ca, Check::Tcp];
            recorder.skipped(&rest, "the configuration is unusable");
        }
    }
    if let Some(through) = &plan.through {
        Box::pin(from_outside(plan, through, &mut recorder)).await;
    }
    recorder.into_report()
}

/// What `serve` would do with `config`, up to a request to each apiserver.
async fn configured(plan: &Plan, config: &Config, recorder: &mut Recorder<'_>) {
    recorder.begin(Section::Local, "", "Configuration");
    let names = Box::pin(local::check(plan, config, recorder)).await;
    for cluster in &config.clusters {
        let at = authority(&cluster.upstream_host, cluster.upstream_port);
        let title = format!(
            "Apiserver of cluster {} at https://{at}{}",
            cluster.name, cluster.path_prefix
        );
        recorder.begin(Section::Upstream, &cluster.name, &title);
        let Some(tls) = local::trust(cluster, recorder) else {
            let rest = [Check::Dns, Check::Tcp, Check::Tls, Check::Verify];
            recorder.skipped(&rest, "there is no CA to verify the apiserver by");
            continue;
        };
        let target = CheckTarget {
            role: TargetRole::Apiserver,
            host: cluster.upstream_host.clone(),
            port: cluster.upstream_port,
            addresses: cluster.addresses.clone(),
            tls,
            prefix: cluster.path_prefix.clone(),
            authority: public_name(cluster, &names).unwrap_or(at),
            trusted: origin(cluster),
            timeouts: config.timeouts.clone(),
        };
        Box::pin(apiserver::check(plan, &target, recorder)).await;
    }
}

async fn from_outside(plan: &Plan, through: &Through, recorder: &mut Recorder<'_>) {
    let title = format!("Through {}", through.url);
    recorder.begin(Section::Through, &through.url, &title);
    let (roots, trusted): (Arc<RootCertStore>, _) = match &plan.clients_trust {
        Some((file, anchors)) => (anchors.roots(), format!("the CA in {file}")),
        None => (public_roots(), "the public CAs".to_owned()),
    };
    let tls = match ClientTls::new(roots, through.name.clone()) {
        Ok(tls) => tls,
        Err(error) => return recorder.failed(Check::Ca, Message::from_error(&error)),
    };
    let target = CheckTarget {
        role: TargetRole::Proxy,
        host: through.host.clone(),
        port: through.port,
        addresses: Vec::new(),
        tls,
        prefix: through.prefix.clone(),
        authority: authority(&through.host, through.port),
        trusted,
        timeouts: Timeouts::default(),
    };
    Box::pin(apiserver::check(plan, &target, recorder)).await;
}

/// Host and port as a URL has them.
fn authority(host: &str, port: u16) -> String {
    let host = url_host(host);
    match port {
        443 => host.into_owned(),
        port => format!("{host}:{port}"),
    }
}

/// A name that clients ask for; the apiserver sees it as the host of their requests.
fn public_name(cluster: &ClusterConfig, of_certificates: &[String]) -> Option<String> {
    let names = cluster.hosts.iter().chain(of_certificates);
    names
        .into_iter()
        .find(|name| !name.contains(['*', ':']))
        .cloned()
}

/// Where the CA of a cluster stands.
fn origin(cluster: &ClusterConfig) -> String {
    use crate::config::TrustSource;
    match &cluster.trust {
        TrustSource::File(file) => format!("the CA in {}", quote::path(file)),
        TrustSource::Inline { origin, .. } => format!("the CA of {origin}"),
    }
}
