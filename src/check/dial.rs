//! Dials a server step by step, from its name to a verified connection, and records each step.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    Check, CheckOutcome, Message, Recorder, messages,
    recorder::format_duration,
    target::{CheckTarget, TargetRole},
};
use crate::{
    hosts::UpstreamAddr,
    pki::CertSummary,
    text::error_chain,
    tls_error::ChainError,
    upstream::{Offer, TcpConnected, UpstreamError, VerifyError},
};

/// The result of dialling one address.
struct DialAttempt {
    address: SocketAddr,
    result: Result<NegotiatedTls, FailedStep>,
}

/// What a verified handshake agreed on.
struct NegotiatedTls {
    version: &'static str,
    is_http2: bool,
    certificate: Option<CertSummary>,
}

/// The step that failed, and how.
struct FailedStep {
    step: Check,
    /// Whether this is only a warning, because other kinds of clients accept what this check rejects.
    is_warning: bool,
    message: Message,
}

impl FailedStep {
    fn new(step: Check, message: Message) -> Self {
        let is_warning = false;
        Self {
            step,
            is_warning,
            message,
        }
    }
}

impl DialAttempt {
    fn failure(&self) -> Option<&FailedStep> {
        self.result.as_ref().err()
    }

    fn failed_step(&self) -> Option<Check> {
        self.failure().map(|failure| failure.step)
    }
}

/// Returns the first address of `target` with a verified connection.
pub(super) async fn check(
    target: &CheckTarget,
    recorder: &mut Recorder<'_>,
) -> Option<UpstreamAddr> {
    let addresses = resolve(target, recorder).await?;
    let mut attempts = Vec::new();
    for address in addresses.into_iter().take(MAX_ADDRESSES) {
        recorder.waiting(Check::Tcp, &format!("connecting to {address}"));
        let result = dial(target, address).await;
        attempts.push(DialAttempt { address, result });
    }
    let verified = attempts.iter().find_map(|attempt| {
        let negotiated = attempt.result.as_ref().ok()?;
        Some((attempt.address, negotiated))
    });
    // The proxy ejects unhealthy endpoints, so one good address is enough.
    let outcome = match verified {
        Some(_) => CheckOutcome::Warning,
        None => CheckOutcome::Failed,
    };
    let record_failures = |recorder: &mut Recorder<'_>, step| {
        for failure in attempts.iter().filter_map(DialAttempt::failure) {
            if failure.step == step {
                let outcome = match failure.is_warning {
                    true => CheckOutcome::Warning,
                    false => outcome,
                };
                recorder.record(step, outcome, failure.message.clone());
            }
        }
    };
    let reached: Vec<_> = attempts
        .iter()
        .filter(|attempt| attempt.failed_step() != Some(Check::Tcp))
        .map(|attempt| attempt.address.to_string())
        .collect();

    record_failures(recorder, Check::Tcp);
    if reached.is_empty() {
        let rest = [Check::Tls, Check::Verify, Check::Alpn];
        recorder.skipped(&rest, "there is no connection");
        return None;
    }
    let text = match &target.outbound {
        None => format!("{} accepts connections", reached.join(", ")),
        Some(route) => format!(
            "{} ({}) connects to {}",
            route.proxy(),
            reached.join(", "),
            route.apiserver()
        ),
    };
    recorder.ok(Check::Tcp, text);

    record_failures(recorder, Check::Tls);
    let mut steps = attempts.iter().map(DialAttempt::failed_step);
    if !steps.any(|step| matches!(step, None | Some(Check::Verify))) {
        let rest = [Check::Verify, Check::Alpn];
        recorder.skipped(&rest, "there is no TLS connection");
        return None;
    }
    let version = verified.map_or("TLS", |(_, negotiated)| negotiated.version);
    recorder.ok(Check::Tls, format!("the server speaks {version}"));

    if !target.tls.has_anchors() {
        let rest = [Check::Verify, Check::Alpn];
        recorder.skipped(
            &rest,
            "no CA is configured; each client verifies the apiserver",
        );
        return None;
    }
    record_failures(recorder, Check::Verify);
    let Some((address, negotiated)) = verified else {
        recorder.skipped(&[Check::Alpn], "the server is not verified");
        return None;
    };
    record_verified(target, negotiated, recorder);
    Some(UpstreamAddr(address))
}

/// Returns the addresses of `target`, sorted; there is at least one.
async fn resolve(target: &CheckTarget, recorder: &mut Recorder<'_>) -> Option<Vec<SocketAddr>> {
    let (host, port) = (target.host.as_str(), target.port);
    if !target.addresses.is_empty() {
        let text =
            format!("the configuration gives the addresses; no DNS lookup of {host} is needed");
        recorder.ok(Check::Dns, text);
        return Some(target.addresses.clone());
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        let text = format!("{host} is an IP address; DNS is not needed");
        recorder.ok(Check::Dns, text);
        return Some(vec![SocketAddr::new(ip, port)]);
    }
    let limit = target.timeouts.upstream_connect;
    recorder.waiting(Check::Dns, &format!("resolving {host}"));
    let failure = match timeout(limit, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let found: BTreeSet<_> = found.collect();
            if !found.is_empty() {
                let ips: Vec<_> = found.iter().map(|one| one.ip().to_string()).collect();
                recorder.ok(Check::Dns, format!("{host} resolves to {}", ips.join(", ")));
                return Some(found.into_iter().collect());
            }
            "the name has no address".to_owned()
        }
        Ok(Err(error)) => error_chain(&error).to_string(),
        Err(_elapsed) => format!("no response within {}", format_duration(limit)),
    };
    recorder.failed(Check::Dns, messages::dns(target, &failure));
    let rest = [Check::Tcp, Check::Tls, Check::Verify, Check::Alpn];
    recorder.skipped(&rest, "no address is known");
    None
}

async fn dial(target: &CheckTarget, address: SocketAddr) -> Result<NegotiatedTls, FailedStep> {
    let reached = TcpConnected::dial(
        target.outbound.as_ref(),
        UpstreamAddr(address),
        &target.timeouts,
    )
    .await
    .map_err(|error| FailedStep::new(Check::Tcp, messages::tcp(target, address, &error)))?;
    match reached.secure(&target.tls, Offer::Http2).await {
        Ok(verified) => Ok(NegotiatedTls {
            version: verified.version,
            is_http2: verified.is_http2,
            certificate: verified.certificate,
        }),
        Err(error) if is_trusted_ca(target, &error) => Err(FailedStep {
            step: Check::Verify,
            is_warning: true,
            message: messages::self_signed_ca(&format!(
                "the certificate of {}",
                target.place(address)
            )),
        }),
        Err(error @ UpstreamError::Verify { .. }) => Err(FailedStep::new(
            Check::Verify,
            messages::verify(target, address, &error),
        )),
        Err(error) if expects_proxy_header(target, address, &error).await => Err(FailedStep::new(
            Check::Tls,
            messages::proxy_header_is_missing(address),
        )),
        Err(error) => {
            // The port of an outbound proxy would answer for itself.
            let spoken = match messages::is_not_tls(&error) && target.outbound.is_none() {
                true => Spoken::ask(address).await,
                false => Spoken::Other,
            };
            Err(FailedStep::new(
                Check::Tls,
                messages::tls(target, address, &error, spoken),
            ))
        }
    }
}

/// Whether the certificate is itself one of those that the clients trust, and says that it is a CA. Go accepts that as
/// the certificate of a server, rustls does not.
fn is_trusted_ca(target: &CheckTarget, error: &UpstreamError) -> bool {
    let failure = error.verify_error();
    failure
        .filter(|failure| failure.refused().cause == ChainError::CaForServer)
        .and_then(VerifyError::presented)
        .is_some_and(|leaf| target.anchors.iter().any(|ca| ca.sha256 == leaf.sha256))
}

/// Whether the server closes connections that begin without a PROXY header, and serves one with it.
async fn expects_proxy_header(
    target: &CheckTarget,
    address: SocketAddr,
    error: &UpstreamError,
) -> bool {
    if target.role != TargetRole::Proxy || !messages::is_closed(error) {
        return false;
    }
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(PROXY_UNKNOWN).await?;
        // The proxy responds to plain HTTP without TLS, so that no handshake is needed to see it.
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut first = [0; 5];
        stream.read_exact(&mut first).await?;
        io::Result::Ok(first)
    };
    let first = timeout(2 * GREETING_TIMEOUT, asked).await;
    matches!(first, Ok(Ok(first)) if first == *b"HTTP/")
}

/// What a port speaks that does not speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Ssh,
    Http,
    Other,
}

impl Spoken {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ssh => "SSH",
            Self::Http => "plain HTTP",
            Self::Other => "another protocol",
        }
    }

    /// Connects to `address` once more. A server of SSH speaks first, one of HTTP only when it is asked.
    async fn ask(address: SocketAddr) -> Self {
        let asked = async {
            let mut stream = TcpStream::connect(address).await?;
            let mut first = [0; 5];
            match timeout(GREETING_TIMEOUT, stream.read_exact(&mut first)).await {
                Ok(read) => read.map(drop)?,
                Err(_silent) => {
                    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
                    stream.read_exact(&mut first).await?;
                }
            }
            io::Result::Ok(first)
        };
        match timeout(2 * GREETING_TIMEOUT, asked).await {
            Ok(Ok(first)) if first.starts_with(b"SSH-") => Self::Ssh,
            Ok(Ok(first)) if first == *b"HTTP/" => Self::Http,
            Ok(Ok(_) | Err(_)) | Err(_) => Self::Other,
        }
    }
}

/// Records the certificate and the protocol of a verified connection.
fn record_verified(target: &CheckTarget, negotiated: &NegotiatedTls, recorder: &mut Recorder<'_>) {
    let now = SystemTime::now();
    let text = format!(
        "the certificate is valid for {} and signed by {}",
        target.tls.expected_name(),
        target.trusted
    );
    match &negotiated.certificate {
        Some(leaf) if leaf.expires_soon(now) => {
            recorder.warning(Check::Verify, messages::expires_soon(target, leaf));
        }
        Some(leaf) => recorder.ok(
            Check::Verify,
            format!("{text}, expires in {}", leaf.time_left(now)),
        ),
        None => recorder.ok(Check::Verify, text),
    }
    if negotiated.is_http2 {
        recorder.ok(Check::Alpn, "the server chooses HTTP/2");
    } else {
        recorder.warning(Check::Alpn, messages::no_http2(target));
    }
}

/// The PROXY header of a balancer that names no client.
pub(super) const PROXY_UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";
/// Addresses to check. A cluster rarely has more, and each dial may take `timeouts.upstreamConnect`.
const MAX_ADDRESSES: usize = 8;
/// How long a server that speaks first may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use standin::{
        pki::Ca,
        tcp::{Behaviour, Peer, refused},
        upstream::Upstream,
    };

    use super::*;
    use crate::check::Event;
    use crate::{config::Timeouts, upstream::ClientTls};

    const NAME: &str = "kubernetes.default.svc";

    /// Returns the outcome of each check with these addresses, and the endpoint that was chosen.
    async fn outcomes(ca: &Ca, addresses: &[SocketAddr]) -> (Vec<String>, Option<SocketAddr>) {
        let target = CheckTarget {
            role: TargetRole::Apiserver,
            host: "apiserver.test".into(),
            port: 6443,
            addresses: addresses.to_vec(),
            tls: ClientTls::new(Arc::new(ca.roots()), NAME.try_into().unwrap()).unwrap(),
            prefix: String::new(),
            authority: "kube.test".into(),
            trusted: "the CA".into(),
            anchors: Vec::new(),
            outbound: None,
            url: "the URL".into(),
            timeouts: Timeouts::default(),
        };
        let mut ignore = |_: Event<'_>| {};
        let mut recorder = Recorder::new(&mut ignore);
        let chosen = check(&target, &mut recorder).await;
        let lines = recorder
            .into_report()
            .findings
            .into_iter()
            .map(|finding| format!("{} {:?}", finding.check, finding.outcome));
        (lines.collect(), chosen.map(|endpoint| endpoint.0))
    }

    #[test]
    fn one_day_certificate_warns_only_in_its_last_third() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let mut leaf = CertSummary::from_der(&Ca::new("a").server(&["a"]).chain[0]).unwrap();
        leaf.not_before = SystemTime::UNIX_EPOCH;
        for (life, soon) in [(DAY, DAY / 3), (90 * DAY, 14 * DAY), (3650 * DAY, 14 * DAY)] {
            leaf.not_after = leaf.not_before + life;
            let last = leaf.not_after - soon;
            assert!(!leaf.expires_soon(last), "{life:?}");
            assert!(leaf.expires_soon(last + DAY / 86_400), "{life:?}");
            assert!(leaf.expires_soon(leaf.not_after + DAY), "{life:?}");
        }
    }

    /// The proxy is made to work while some of its endpoints are unhealthy.
    #[tokio::test]
    async fn bad_addresses_are_warnings_when_one_address_works() {
        let ca = Ca::new("cluster");
        let healthy = Upstream::builder(ca.server(&[NAME])).start().await;
        let other = Upstream::builder(Ca::new("other").server(&[NAME]))
            .start()
            .await;
        let closing = Peer::start(Behaviour::CloseInHandshake).await;
        let down = refused().await;
        let all = [down, closing.address(), other.address(), healthy.address()];
        let (lines, chosen) = outcomes(&ca, &all).await;
        assert_eq!(chosen, Some(healthy.address()));
        assert_eq!(
            lines,
            [
                "dns Ok",
                "tcp Warning",
                "tcp Ok",
                "tls Warning",
                "tls Ok",
                "verify Warning",
                "verify Ok",
                "alpn Ok"
            ]
        );
    }

    #[tokio::test]
    async fn bad_addresses_are_failures_when_no_address_works() {
        let ca = Ca::new("cluster");
        let other = Upstream::builder(Ca::new("other").server(&[NAME]))
            .start()
            .await;
        let closing = Peer::start(Behaviour::CloseInHandshake).await;
        let all = [refused().await, closing.address(), other.address()];
        let (lines, chosen) = outcomes(&ca, &all).await;
        assert_eq!(chosen, None);
        assert_eq!(
            lines,
            [
                "dns Ok",
                "tcp Failed",
                "tcp Ok",
                "tls Failed",
                "tls Ok",
                "verify Failed",
                "alpn Skipped"
            ]
        );
    }
}
