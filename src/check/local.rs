//! Checks that need no other machine: certificates, the names they cover, CAs and ports.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::SystemTime,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Check, Message, Plan, Recorder, acme, dial::PROXY_UNKNOWN, messages};
use crate::{
    admin::Admin,
    app::AppError,
    config::{Admission, ClusterConfig, Config, ListenConfig, Timeouts, TrustSource},
    hosts::UpstreamAddr,
    listen_error::{ListenError, ListenFlag},
    listener::{self, PortSharing},
    pki::{Acceptance, Identity, TrustAnchors, UtcDate, public_roots, uncovered_hosts},
    quote,
    reload::{ClientMaterial, NamingMaterial, Publication},
    upstream::{ClientTls, Offer, OutboundRoute, TcpConnected},
};

/// Runs the checks and returns the names in the certificates.
pub(super) async fn check(
    plan: &Plan,
    config: &Config,
    recorder: &mut Recorder<'_>,
) -> Vec<String> {
    let listen: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
    recorder.ok(
        Check::Configuration,
        format!(
            "{}, {}, {}: {}",
            count(config.identities.len(), "certificate"),
            count(config.clusters.len(), "cluster"),
            count(listen.len(), "listener"),
            listen.join(", ")
        ),
    );
    check_directory(config, recorder);
    check_capacity(config, recorder);
    for warning in &config.warnings {
        recorder.warning(Check::Configuration, Message::from_sentence(warning));
    }
    let now = SystemTime::now();
    let mut identities = Vec::with_capacity(config.identities.len());
    let mut is_invalid = false;
    let mut pending = Vec::new();
    for source in &config.identities {
        let loaded = Identity::from_source(source, now);
        match loaded.map_err(|error| error.naming_place(&config.sources)) {
            Ok(None) => {
                if let Some(acme) = source.acme() {
                    acme::pending(acme, recorder);
                    pending.extend(acme.names.iter().cloned());
                }
            }
            Ok(Some(identity)) => {
                check_certificate(&identity, now, recorder);
                check_acceptance(plan, &identity, now, recorder);
                identities.push(identity);
            }
            Err(error) => {
                recorder.failed(Check::Certificate, Message::from_error(&error));
                recorder.skipped(&[Check::Trust], "the certificate is invalid");
                is_invalid = true;
            }
        }
        if let Some(acme) = source.acme() {
            acme::check(plan, acme, config, recorder).await;
        }
    }
    if is_invalid {
        recorder.skipped(&[Check::Hosts], "a certificate is invalid");
    } else {
        check_hosts(config, &identities, &pending, recorder);
        check_published(config, &identities, now, recorder);
    }
    if !plan.offline {
        for entry in &config.listen {
            check_port(entry, config, &identities, recorder).await;
        }
        if let Some(address) = config.admin {
            check_admin_port(address, config, recorder).await;
        }
    }
    let names = identities.iter().flat_map(Identity::names);
    names.chain(&pending).cloned().collect()
}

/// Says which files of the directory of clusters are read, and what is wrong with them. A wrong file is no invalid
/// configuration: `serve` starts, and leaves out the cluster of that file alone.
fn check_directory(config: &Config, recorder: &mut Recorder<'_>) {
    let Some(directory) = &config.directory else {
        return;
    };
    let path = quote::path(&directory.path);
    let mut text = format!("{} in {path}", count(directory.files.len(), "kubeconfig"));
    if !directory.skipped.is_empty() {
        text = format!("{text}; not read: {}", directory.skipped.join(", "));
    }
    recorder.ok(Check::Configuration, text);
    for unusable in &directory.unusable {
        let message = Message::from_sentence(&unusable.problem);
        recorder.failed(Check::Cluster, message);
    }
}

/// Says which clusters publish a kubeconfig, and whether clients can use it.
fn check_published(
    config: &Config,
    identities: &[Identity],
    now: SystemTime,
    recorder: &mut Recorder<'_>,
) {
    for cluster in &config.clusters {
        let loaded = Publication::load(cluster, identities, now);
        match loaded.map_err(|error| error.naming_place(&config.sources)) {
            Ok(None) => {}
            Ok(Some(Publication {
                warning: Some(warning),
                ..
            })) => recorder.warning(Check::Configuration, Message::from_sentence(&warning)),
            Ok(Some(_)) => {
                let name = &cluster.name;
                let text = format!("the hosts of {name} serve /.well-known/kubeconfig to everyone");
                recorder.ok(Check::Configuration, text);
            }
            Err(error) => recorder.failed(Check::Configuration, Message::from_error(&error)),
        }
    }
}

/// Says how many client connections there may be, and why. Warns of more than the memory is enough for.
fn check_capacity(config: &Config, recorder: &mut Recorder<'_>) {
    let (connections, capacity) = (config.limits.connections, &config.capacity);
    let enough_for = capacity.connections_by_memory();
    if connections > enough_for {
        let mib = capacity.memory.bytes >> 20;
        recorder.warning(
            Check::Configuration,
            Message::new(
                format!(
                    "limits.connections is {connections}, but {mib} MiB of memory are enough for {enough_for}"
                ),
                "lower limits.connections, or give the process more memory (docs/performance.md has the formula)",
            ),
        );
    } else {
        let decided_by = capacity.decided_by;
        let text = format!("at most {connections} client connections ({decided_by})");
        recorder.ok(Check::Configuration, text);
    }
}

/// Returns TLS settings that trust the CAs of `cluster`, or records why there are none.
pub(super) fn trust_anchors(
    cluster: &ClusterConfig,
    sources: &[PathBuf],
    recorder: &mut Recorder<'_>,
) -> Option<(ClientTls, Option<OutboundRoute>)> {
    let now = SystemTime::now();
    let anchors = TrustAnchors::load(&cluster.trust, now)
        .map_err(|error| error.naming_place(sources))
        .map_err(|error| recorder.failed(Check::Ca, Message::from_error(&error)))
        .ok()?;
    let outbound = OutboundRoute::from_config(cluster, &anchors.roots());
    if cluster.trust == TrustSource::Clients {
        let text = "no CA is configured: each client verifies the apiserver itself";
        recorder.ok(Check::Ca, text);
        return Some((
            ClientTls::without_anchors(cluster.expected_name.clone()),
            outbound,
        ));
    }
    let cas: Vec<_> = anchors
        .summaries()
        .iter()
        .map(|ca| format!("{} (expires in {})", ca.subject, ca.time_left(now)))
        .collect();
    let text = format!("trust anchors: {}", cas.join("; "));
    recorder.ok(Check::Ca, text);
    for warning in anchors.warnings() {
        recorder.warning(Check::Ca, Message::from_sentence(warning));
    }
    let tls = ClientTls::new(anchors.roots(), cluster.expected_name.clone())
        .map_err(|error| recorder.failed(Check::Ca, Message::from_error(&error)))
        .ok()?;
    Some((tls, outbound))
}

/// Records the files with which the users of client certificates are verified and named. `None` if the cluster has no
/// such section, or one that cannot work.
pub(super) fn client_certificates(
    cluster: &ClusterConfig,
    sources: &[PathBuf],
    recorder: &mut Recorder<'_>,
) -> Option<ClientMaterial> {
    let section = cluster.client_certificates.as_ref()?;
    let now = SystemTime::now();
    let loaded = ClientMaterial::load(section, now).map_err(|error| error.naming_place(sources));
    let clients = loaded
        .map_err(|error| recorder.failed(Check::Clients, Message::from_error(&error)))
        .ok()?;
    let cas = clients.ca.anchors().summaries().iter();
    let cas: Vec<_> = cas.map(|ca| ca.subject.clone()).collect();
    let revoked = match clients.ca.revoked() {
        Some(lists) => format!(
            "{}, listed until {}",
            count(lists.revoked(), "revoked certificate"),
            UtcDate(lists.valid_until())
        ),
        None => "revocation is not checked".to_owned(),
    };
    let naming = match &clients.naming {
        NamingMaterial::FrontProxy(identity) => {
            let leaf = identity.summary();
            let left = leaf.time_left(now);
            format!(
                "named to the apiserver as {} (expires in {left})",
                leaf.subject
            )
        }
        NamingMaterial::Token(token) => match token.problem() {
            Some(problem) => {
                recorder.failed(Check::Clients, Message::from_sentence(&problem));
                return None;
            }
            None => format!(
                "impersonated with the token in {}",
                quote::path(token.path())
            ),
        },
    };
    let text = format!(
        "users with certificates of {} are {naming}; {revoked}",
        cas.join("; ")
    );
    recorder.ok(Check::Clients, text);
    for warning in clients.warnings(now) {
        recorder.warning(Check::Clients, Message::from_sentence(&warning));
    }
    Some(clients)
}

/// Records a loaded certificate: loading has checked its key, the order of its chain and its dates.
fn check_certificate(identity: &Identity, now: SystemTime, recorder: &mut Recorder<'_>) {
    let leaf = identity.summary();
    recorder.ok(
        Check::Certificate,
        format!(
            "{}: the key matches, {} in the file, expires in {} on {}",
            identity.names().join(", "),
            count(identity.chain_length(), "certificate"),
            leaf.time_left(now),
            UtcDate(leaf.not_after)
        ),
    );
    for warning in identity.warnings(now) {
        recorder.warning(Check::Certificate, Message::from_sentence(&warning));
    }
}

/// Checks that clients accept the certificate chain.
fn check_acceptance(
    plan: &Plan,
    identity: &Identity,
    now: SystemTime,
    recorder: &mut Recorder<'_>,
) {
    let (roots, file) = match &plan.client_trust {
        Some((file, anchors)) => (anchors.roots(), Some(file)),
        None => (public_roots(), None),
    };
    let (text, fix) = match (identity.acceptance(roots, now), file) {
        (Acceptance::Accepted, Some(file)) => {
            let text = format!("clients that trust the CA in {file} accept the certificate");
            return recorder.ok(Check::Trust, text);
        }
        (Acceptance::Accepted, None) => {
            let text = "clients accept the certificate: its chain leads to a public CA";
            return recorder.ok(Check::Trust, text);
        }
        (
            Acceptance::NoPath {
                is_self_signed: true,
                ..
            },
            file,
        ) => {
            let anchors = plan.client_trust.as_ref().map(|(_, anchors)| anchors);
            let own = &identity.summary().sha256;
            if anchors.is_some_and(|anchors| anchors.summaries().iter().any(|ca| ca.sha256 == *own))
            {
                return recorder.warning(Check::Trust, messages::self_signed_ca("the certificate"));
            }
            let message = Message::new(
                match file {
                    Some(file) => format!("the certificate is self-signed and not in {file}"),
                    None => {
                        "the certificate is self-signed, so only clients that trust it itself accept it"
                            .to_owned()
                    }
                },
                "use a certificate from a CA: from a public one, or from your own, whose certificate clients get as certificate-authority-data",
            );
            // Some clients, such as those in Go, accept it if they trust it itself.
            return recorder.warning(Check::Trust, message);
        }
        (Acceptance::NoPath { issuer, .. }, Some(file)) => (
            format!(
                "the chain does not lead to the CA in {file}: {issuer} issued the last certificate of the chain, and the certificate of {issuer} is neither in the chain nor in {file}"
            ),
            "append the intermediate certificates of the issuer to the certificate file, or pass the right CA with --through-ca",
        ),
        (
            Acceptance::NoPath {
                issuer, is_public, ..
            },
            None,
        ) if is_public => (
            format!(
                "the chain is incomplete, so clients reject it: {issuer} issued its last certificate, and this intermediate is missing from the file"
            ),
            "append the intermediate certificates of the issuer to the certificate file (many tools write the complete chain to `fullchain.pem`)",
        ),
        (Acceptance::NoPath { issuer, .. }, None) => {
            let message = Message::new(
                format!("the certificate is not from a public CA: its chain ends at {issuer}"),
                "if this CA is your own, put it into the kubeconfigs as certificate-authority-data and pass it here with --through-ca; otherwise use a certificate from a public CA",
            );
            // A private CA is a valid choice, but clients need to know it.
            return recorder.warning(Check::Trust, message);
        }
        (Acceptance::Refused(refused), _) => {
            (format!("the certificate {refused}"), refused.cause.fix())
        }
    };
    recorder.failed(Check::Trust, Message::new(text, fix));
}

/// Checks that every name that leads to a cluster is in a certificate.
fn check_hosts(
    config: &Config,
    identities: &[Identity],
    pending: &[String],
    recorder: &mut Recorder<'_>,
) {
    let names = identities
        .iter()
        .flat_map(Identity::names)
        .chain(pending)
        .map(String::as_str);
    let clusters = config.clusters.iter();
    let (passed, clusters): (Vec<_>, Vec<_>) = clusters.partition(|cluster| cluster.passthrough);
    if !passed.is_empty() {
        let hosts = passed.iter().flat_map(|cluster| &cluster.hosts);
        let hosts: Vec<_> = hosts.map(String::as_str).collect();
        let text = format!(
            "clients reach the apiserver itself under {}",
            hosts.join(", ")
        );
        recorder.ok(Check::Hosts, text);
    }
    let mut served: Vec<_> = clusters
        .iter()
        .flat_map(|cluster| cluster.public_names())
        .collect();
    let hosts = clusters.iter().flat_map(|cluster| &cluster.hosts);
    if let Some(uncovered) = uncovered_hosts(hosts, identities, pending) {
        return recorder.failed(Check::Hosts, Message::from_sentence(&uncovered));
    }
    // With one cluster, the names in the certificates lead to it too.
    if config.sole_cluster().is_some() {
        let is_passed = |name: &&str| {
            let mut hosts = passed.iter().flat_map(|cluster| &cluster.hosts);
            hosts.any(|host| host == name)
        };
        served.extend(names.filter(|name| !is_passed(name)).map(str::to_owned));
        served.sort_unstable();
        served.dedup();
    }
    if clusters.is_empty() {
        return;
    }
    let text = format!("clients can use {}", served.join(", "));
    recorder.ok(Check::Hosts, text);
}

/// Checks that the port is free, or that the running proxy has it.
async fn check_port(
    entry: &ListenConfig,
    config: &Config,
    identities: &[Identity],
    recorder: &mut Recorder<'_>,
) {
    let address = entry.address;
    let sharing = PortSharing::new(config.reuse_port);
    let error = match listener::claim(address, sharing) {
        Ok(_free) if address.port() == 0 => {
            let text = format!("{address}: the system chooses a free port");
            return recorder.ok(Check::Listen, text);
        }
        Ok(_free) => return recorder.ok(Check::Listen, format!("{address} is free")),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::AddrInUse {
        if !entry.peers.serves(dial_address(address).ip()) {
            let reason = format!(
                "{address} is in use, perhaps by the proxy itself; `allow` and `deny` of this address keep this machine out, so check cannot ask it"
            );
            return recorder.skipped(&[Check::Listen], &reason);
        }
        if presents(entry, identities, &config.timeouts).await {
            let text = format!(
                "{address} is in use by the running proxy: the certificate that it presents is one of this configuration"
            );
            return recorder.ok(Check::Listen, text);
        }
        if identities.len() < config.identities.len() {
            let reason = format!(
                "{address} is in use, perhaps by the proxy itself; check recognizes the running proxy only by a valid certificate"
            );
            return recorder.skipped(&[Check::Listen], &reason);
        }
    }
    let source = ListenError::new(ListenFlag::Clients, error);
    let error = AppError::Listen { address, source };
    recorder.failed(Check::Listen, Message::from_error(&error));
}

/// Checks the same for the admin port, which two processes cannot share.
async fn check_admin_port(address: SocketAddr, config: &Config, recorder: &mut Recorder<'_>) {
    match Admin::bind(address) {
        Ok(_free) => {
            let text = format!("{address} is free for the admin port");
            recorder.ok(Check::Listen, text);
        }
        Err(_taken) if !config.reuse_port && is_admin_port(address, &config.timeouts).await => {
            let text = format!("{address} is the admin port of the running proxy");
            recorder.ok(Check::Listen, text);
        }
        Err(error) => recorder.failed(Check::Listen, Message::from_error(&error)),
    }
}

/// Whether the server at `address` has the metrics that only this program has.
async fn is_admin_port(address: SocketAddr, timeouts: &Timeouts) -> bool {
    let response = async {
        let mut stream = TcpStream::connect(dial_address(address)).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut response = Vec::new();
        stream
            .take(MAX_METRICS_BYTES)
            .read_to_end(&mut response)
            .await?;
        io::Result::Ok(response)
    };
    match timeout(timeouts.upstream_connect, response).await {
        Ok(Ok(response)) => String::from_utf8_lossy(&response).contains("# TYPE kube_tls_proxy_"),
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Returns the address to dial for a listener on `address`.
fn dial_address(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// Whether the server at this address presents one of these certificates.
async fn presents(entry: &ListenConfig, identities: &[Identity], timeouts: &Timeouts) -> bool {
    let address = UpstreamAddr(dial_address(entry.address));
    // A connection to an address of this machine comes from the same address.
    let is_balancer = entry.peers.judge(address.0.ip()) == Admission::Balancer;
    for identity in identities {
        let name = identity.example_name();
        let Some(tls) = name.and_then(|name| ClientTls::new(public_roots(), name).ok()) else {
            continue;
        };
        let Ok(mut reached) = TcpConnected::dial(None, address, timeouts).await else {
            return false;
        };
        if is_balancer {
            reached.send_first(PROXY_UNKNOWN).await;
        }
        // Verification fails for a private CA, but the error holds the certificate that was presented.
        let presented = match reached.secure(&tls, Offer::Http1).await {
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

/// Enough of the metrics to recognise them.
const MAX_METRICS_BYTES: u64 = 4096;
