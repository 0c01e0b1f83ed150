//! Finds what does not work before a user does, and says the mend.
//!
//! Configuration, files, dial and verification are those of `serve`, so that the two cannot disagree.
//! What depends on something that failed is not tried but said to be skipped.

mod answer;
mod ask;
mod asks;
mod clock;
mod dial;
mod here;
mod notes;
mod report;
mod token;
mod upgrade;
mod watch;
mod words;

use std::{sync::Arc, time::Duration};

use rustls::RootCertStore;

pub use notes::Event;
pub use report::{Check, Colours, Finding, Leg, Outcome, Report, Section};
pub use token::{Token, TokenFault};

use crate::{
    config::{ClusterConfig, Config, ConfigError, Timeouts},
    hosts::url_host,
    pki::{TrustAnchors, public_roots},
    upstream::ClientTls,
};
use dial::{Side, Target};
use notes::{Notes, Words};

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
pub async fn run(plan: &Plan, tell: &mut dyn FnMut(Event<'_>)) -> Report {
    let mut notes = Notes::new(tell);
    match &plan.config {
        None => {}
        Some(Ok(config)) => Box::pin(configured(plan, config, &mut notes)).await,
        Some(Err(error)) => {
            notes.begin(Section::Here, "", "Configuration");
            notes.failed(Check::Configuration, Words::of_error(error));
            let rest = [Check::Certificate, Check::Listen, Check::Ca, Check::Tcp];
            notes.skipped(&rest, "the configuration is unusable");
        }
    }
    if let Some(through) = &plan.through {
        Box::pin(from_outside(plan, through, &mut notes)).await;
    }
    notes.into_report()
}

/// What `serve` would do with `config`, up to a request to each apiserver.
async fn configured(plan: &Plan, config: &Config, notes: &mut Notes<'_>) {
    notes.begin(Section::Here, "", "Configuration");
    let names = Box::pin(here::check(plan, config, notes)).await;
    for cluster in &config.clusters {
        let at = authority(&cluster.upstream_host, cluster.upstream_port);
        let title = format!(
            "Apiserver of cluster {} at https://{at}{}",
            cluster.name, cluster.path_prefix
        );
        notes.begin(Section::Upstream, &cluster.name, &title);
        let Some(tls) = here::trust(cluster, notes) else {
            let rest = [Check::Dns, Check::Tcp, Check::Tls, Check::Verify];
            notes.skipped(&rest, "there is no CA to verify the apiserver by");
            continue;
        };
        let target = Target {
            side: Side::Apiserver,
            host: cluster.upstream_host.clone(),
            port: cluster.upstream_port,
            addresses: cluster.addresses.clone(),
            tls,
            prefix: cluster.path_prefix.clone(),
            authority: public_name(cluster, &names).unwrap_or(at),
            trusted: origin(cluster),
            timeouts: config.timeouts.clone(),
        };
        Box::pin(asks::all(plan, &target, notes)).await;
    }
}

async fn from_outside(plan: &Plan, through: &Through, notes: &mut Notes<'_>) {
    let title = format!("Through {}", through.url);
    notes.begin(Section::Through, &through.url, &title);
    let (roots, trusted): (Arc<RootCertStore>, _) = match &plan.clients_trust {
        Some((file, anchors)) => (anchors.roots(), format!("the CA in {file}")),
        None => (public_roots(), "the public CAs".to_owned()),
    };
    let tls = match ClientTls::new(roots, through.name.clone()) {
        Ok(tls) => tls,
        Err(error) => return notes.failed(Check::Ca, Words::of_error(&error)),
    };
    let target = Target {
        side: Side::Proxy,
        host: through.host.clone(),
        port: through.port,
        addresses: Vec::new(),
        tls,
        prefix: through.prefix.clone(),
        authority: authority(&through.host, through.port),
        trusted,
        timeouts: Timeouts::default(),
    };
    Box::pin(asks::all(plan, &target, notes)).await;
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
        TrustSource::File(file) => format!("the CA in {}", file.display()),
        TrustSource::Inline { origin, .. } => format!("the CA of {origin}"),
    }
}
