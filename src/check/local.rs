//! What can be checked without leaving this machine: certificates, the names they cover, the port.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::SystemTime,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Check, Message, Plan, Recorder, messages::not_accepted};
use crate::{
    admin::Admin,
    app::AppError,
    config::{ClusterConfig, Config, Timeouts},
    hosts::UpstreamAddr,
    listen_error::{ListenError, ListenFlag},
    listener::{self, PortSharing},
    pki::{Acceptance, Days, Identity, TrustAnchors, UtcDate, public_roots},
    upstream::{ClientTls, Offer, TcpConnected},
};

/// Checks all of it; returns the names in the certificates.
pub(super) async fn check(
    plan: &Plan,
    config: &Config,
    recorder: &mut Recorder<'_>,
) -> Vec<String> {
    let listen: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
    recorder.ok(
        Check::Configuration,
        format!(
            "{}, {}, listening on {}",
            count(config.identities.len(), "certificate"),
            count(config.clusters.len(), "cluster"),
            listen.join(", ")
        ),
    );
    let now = SystemTime::now();
    let mut identities = Vec::with_capacity(config.identities.len());
    for files in &config.identities {
        match Identity::load(files, now) {
            Ok(identity) => {
                certificate(&identity, now, recorder);
                accepted(plan, &identity, now, recorder);
                identities.push(identity);
            }
            Err(error) => {
                recorder.failed(Check::Certificate, Message::from_error(&error));
                recorder.skipped(&[Check::Trust], "the certificate is unusable");
            }
        }
    }
    if identities.len() == config.identities.len() {
        hosts(&config.clusters, &identities, recorder);
    } else {
        recorder.skipped(&[Check::Hosts], "a certificate is unusable");
    }
    for address in &config.listen {
        Box::pin(port(*address, config, &identities, recorder)).await;
    }
    if let Some(address) = config.admin {
        admin_port(address, config, recorder).await;
    }
    identities
        .iter()
        .flat_map(Identity::names)
        .cloned()
        .collect()
}

/// The CAs of a cluster, as settings for a dial; `None` once what is wrong with them is noted.
pub(super) fn trust(cluster: &ClusterConfig, recorder: &mut Recorder<'_>) -> Option<ClientTls> {
    let now = SystemTime::now();
    let anchors = match TrustAnchors::load(&cluster.trust, now) {
        Ok(anchors) => anchors,
        Err(error) => {
            recorder.failed(Check::Ca, Message::from_error(&error));
            return None;
        }
    };
    let cas: Vec<_> = anchors
        .summaries()
        .iter()
        .map(|ca| format!("{}, {} left", ca.subject, Days(ca.days_left(now))))
        .collect();
    recorder.ok(Check::Ca, format!("trusted: {}", cas.join("; ")));
    for warning in anchors.warnings() {
        recorder.warning(Check::Ca, Message::from_sentence(&warning));
    }
    match ClientTls::new(anchors.roots(), cluster.expected_name.clone()) {
        Ok(tls) => Some(tls),
        Err(error) => {
            recorder.failed(Check::Ca, Message::from_error(&error));
            None
        }
    }
}

/// What has loaded is whole: key and certificate are a pair, the chain is in order, today is within.
fn certificate(identity: &Identity, now: SystemTime, recorder: &mut Recorder<'_>) {
    let leaf = identity.summary();
    recorder.ok(
        Check::Certificate,
        format!(
            "for {}: the key belongs to it, {} in the file, {} left until {}",
            identity.names().join(", "),
            count(identity.chain_length(), "certificate"),
            Days(leaf.days_left(now)),
            UtcDate(leaf.not_after)
        ),
    );
    for warning in identity.warnings(now) {
        recorder.warning(Check::Certificate, Message::from_sentence(&warning));
    }
}

/// Whether clients accept the chain.
fn accepted(plan: &Plan, identity: &Identity, now: SystemTime, recorder: &mut Recorder<'_>) {
    let (roots, whose) = match &plan.clients_trust {
        Some((file, anchors)) => (anchors.roots(), Some(file.as_str())),
        None => (public_roots(), None),
    };
    let acceptance = identity.acceptance(roots, now);
    let words = match (&acceptance, whose) {
        (Acceptance::Accepted, Some(file)) => {
            return recorder.ok(
                Check::Trust,
                format!("clients that trust the CA in {file} accept it"),
            );
        }
        (Acceptance::Accepted, None) => {
            return recorder.ok(
                Check::Trust,
                "clients accept it as they are: the chain leads to a public CA",
            );
        }
        (_, whose) => not_accepted(&acceptance, whose),
    };
    match (&acceptance, whose) {
        // A CA of one's own is a choice; clients have to be told of it.
        (
            Acceptance::NoPath {
                is_public: false, ..
            },
            None,
        ) => recorder.warning(Check::Trust, words),
        (Acceptance::Accepted | Acceptance::NoPath { .. } | Acceptance::Refused { .. }, _) => {
            recorder.failed(Check::Trust, words);
        }
    }
}

/// Whether each name that leads to a cluster is in a certificate.
fn hosts(clusters: &[ClusterConfig], identities: &[Identity], recorder: &mut Recorder<'_>) {
    let names: Vec<_> = identities
        .iter()
        .flat_map(Identity::names)
        .map(String::as_str)
        .collect();
    let mut served: Vec<&str> = clusters
        .iter()
        .flat_map(|cluster| cluster.hosts.iter().map(String::as_str))
        .collect();
    let bare: Vec<_> = served
        .iter()
        .filter(|host| !identities.iter().any(|identity| identity.covers(host)))
        .copied()
        .collect();
    if !bare.is_empty() {
        let words = Message::new(
            format!(
                "no certificate is for {}, so that clients refuse to connect; there are certificates for {}",
                bare.join(", "),
                names.join(", ")
            ),
            "add a certificate with that name (--cert and --key), or take the name out of --host or `hosts`",
        );
        return recorder.failed(Check::Hosts, words);
    }
    // The names of the certificates lead to the only cluster there is.
    if clusters.len() == 1 {
        served.extend(names);
        served.sort_unstable();
        served.dedup();
    }
    recorder.ok(
        Check::Hosts,
        format!("clients reach it as {}", served.join(", ")),
    );
}

/// Whether the address can be listened on, or the proxy does so already.
async fn port(
    address: SocketAddr,
    config: &Config,
    identities: &[Identity],
    recorder: &mut Recorder<'_>,
) {
    let sharing = if config.reuse_port {
        PortSharing::Reuse
    } else {
        PortSharing::Exclusive
    };
    let error = match listener::claim(address, sharing) {
        Ok(_free) if address.port() == 0 => {
            return recorder.ok(Check::Listen, format!("{address}: any free port will do"));
        }
        Ok(_free) => return recorder.ok(Check::Listen, format!("{address} is free")),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::AddrInUse
        && Box::pin(presents(address, identities, &config.timeouts)).await
    {
        return recorder.ok(
            Check::Listen,
            format!(
                "{address} is taken by a server with this very certificate: the proxy runs already"
            ),
        );
    }
    if error.kind() == io::ErrorKind::AddrInUse && identities.len() < config.identities.len() {
        let why = format!(
            "{address} is in use, perhaps by the proxy itself, whose certificate would tell"
        );
        return recorder.skipped(&[Check::Listen], &why);
    }
    let source = ListenError::new(ListenFlag::Clients, error);
    recorder.failed(
        Check::Listen,
        Message::from_error(&AppError::Listen { address, source }),
    );
}

/// The same for the admin port, which no two processes share.
async fn admin_port(address: SocketAddr, config: &Config, recorder: &mut Recorder<'_>) {
    match Admin::bind(address) {
        Ok(_free) => recorder.ok(
            Check::Listen,
            format!("{address} is free for the admin port"),
        ),
        Err(_taken) if !config.reuse_port && is_admin_port(address, &config.timeouts).await => {
            recorder.ok(
                Check::Listen,
                format!("{address} is the admin port of a proxy that runs already"),
            );
        }
        Err(error) => recorder.failed(Check::Listen, Message::from_error(&error)),
    }
}

/// Whether whoever listens there has metrics as only this program has them.
async fn is_admin_port(address: SocketAddr, timeouts: &Timeouts) -> bool {
    let answer = async {
        let mut stream = TcpStream::connect(dialled(address)).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(FEW_BYTES).read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = timeout(timeouts.upstream_connect, answer).await;
    answer.is_ok_and(|answer| {
        answer
            .is_ok_and(|answer| String::from_utf8_lossy(&answer).contains("# TYPE kube_tls_proxy_"))
    })
}

/// Where to dial what listens on this address.
fn dialled(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// Whether whoever listens there presents one of our certificates.
async fn presents(address: SocketAddr, identities: &[Identity], timeouts: &Timeouts) -> bool {
    let address = UpstreamAddr(dialled(address));
    for identity in identities {
        let name = identity.example_name();
        let Some(tls) = name.and_then(|name| ClientTls::new(public_roots(), name).ok()) else {
            continue;
        };
        let Ok(reached) = TcpConnected::dial(address, timeouts).await else {
            return false;
        };
        // Mostly it is refused, for its CA is not looked for here; what was presented is known all the same.
        let presented = match Box::pin(reached.secure(&tls, Offer::Http1)).await {
            Ok(verified) => verified.certificate.map(|leaf| leaf.sha256),
            Err(error) => error
                .verify_error()
                .and_then(|failure| failure.presented())
                .map(|leaf| leaf.sha256.clone()),
        };
        if presented.is_some_and(|sha256| sha256 == identity.summary().sha256) {
            return true;
        }
    }
    false
}

fn count(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        more => format!("{more} {noun}s"),
    }
}

/// Enough of the metrics to see whose they are.
const FEW_BYTES: u64 = 4096;
