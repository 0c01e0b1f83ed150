//! From a name to a verified connection, a line for each step.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use tokio::time::timeout;

use super::{Check, Recorder, messages, recorder::seconds};
use crate::{
    config::Timeouts,
    hosts::UpstreamAddr,
    pki::{CertSummary, Days},
    text::error_chain,
    upstream::{ClientTls, Offer, TcpConnected, UpstreamError},
};

/// Whom a part of the run speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetRole {
    /// The apiserver, as the proxy does.
    Apiserver,
    /// The proxy, as clients do.
    Proxy,
}

/// A server, how it is verified, and how its requests look.
#[derive(Debug)]
pub(super) struct CheckTarget {
    pub(super) role: TargetRole,
    pub(super) host: String,
    pub(super) port: u16,
    /// Where it is in place of what the host resolves to; mostly empty.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) tls: ClientTls,
    pub(super) prefix: String,
    /// Host of the requests.
    pub(super) authority: String,
    /// The trusted CAs, in words.
    pub(super) trusted: String,
    pub(super) timeouts: Timeouts,
}

/// What one address came to.
struct DialAttempt {
    address: SocketAddr,
    tls: Result<NegotiatedTls, DialFailure>,
}

struct NegotiatedTls {
    version: &'static str,
    is_http2: bool,
    certificate: Option<CertSummary>,
}

/// The step that failed, and why.
enum DialFailure {
    Tcp(UpstreamError),
    Tls(UpstreamError),
    Verify(UpstreamError),
}

/// An address of `target` that works; `None` once it is noted that there is none.
pub(super) async fn check(
    target: &CheckTarget,
    recorder: &mut Recorder<'_>,
) -> Option<UpstreamAddr> {
    let addresses = look_up(target, recorder).await?;
    Box::pin(check_all(target, addresses, recorder)).await
}

async fn check_all(
    target: &CheckTarget,
    addresses: Vec<SocketAddr>,
    recorder: &mut Recorder<'_>,
) -> Option<UpstreamAddr> {
    let mut all = Vec::with_capacity(addresses.len());
    for address in addresses {
        recorder.waiting(Check::Tcp, &format!("a connection to {address}"));
        let tls = Box::pin(try_one(target, address)).await;
        all.push(DialAttempt { address, tls });
    }
    let works = all.iter().find(|tried| tried.tls.is_ok());
    // Of several addresses that do not all work, the proxy passes over the bad ones.
    let passed_over = works.is_some();
    let mut bad = |check, words| match passed_over {
        true => recorder.warning(check, words),
        false => recorder.failed(check, words),
    };
    let mut reached = Vec::new();
    for DialAttempt { address, tls } in &all {
        match tls {
            Err(DialFailure::Tcp(error)) => bad(Check::Tcp, messages::tcp(target, *address, error)),
            _ => reached.push(address.to_string()),
        }
    }
    if reached.is_empty() {
        recorder.skipped(&[Check::Tls, Check::Verify, Check::Alpn], NO_TCP);
        return None;
    }
    recorder.ok(
        Check::Tcp,
        format!("{} accepts connections", reached.join(", ")),
    );
    step_tls(target, &all, passed_over, recorder);
    let (Some(DialAttempt { address, .. }), Some(agreed)) =
        (works, all.iter().find_map(|tried| tried.tls.as_ref().ok()))
    else {
        return None;
    };
    step_verified(target, agreed, recorder);
    Some(UpstreamAddr(*address))
}

async fn look_up(target: &CheckTarget, recorder: &mut Recorder<'_>) -> Option<Vec<SocketAddr>> {
    let (host, port) = (target.host.as_str(), target.port);
    if !target.addresses.is_empty() {
        let mut addresses = target.addresses.clone();
        recorder.ok(
            Check::Dns,
            format!("the addresses are configured, {host} is not looked up"),
        );
        addresses.truncate(MAX_ADDRESSES);
        return Some(addresses);
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        recorder.ok(
            Check::Dns,
            format!("{host} is an address, nothing to look up"),
        );
        return Some(vec![SocketAddr::new(ip, port)]);
    }
    let limit = target.timeouts.upstream_connect;
    recorder.waiting(Check::Dns, &format!("the addresses of {host}"));
    let failure = match timeout(limit, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let mut found: Vec<_> = found.collect();
            found.sort_unstable();
            found.dedup();
            if !found.is_empty() {
                let shown: Vec<_> = found.iter().map(|one| one.ip().to_string()).collect();
                recorder.ok(Check::Dns, format!("{host} is {}", shown.join(", ")));
                found.truncate(MAX_ADDRESSES);
                return Some(found);
            }
            "the name has no address".to_owned()
        }
        Ok(Err(error)) => error_chain(&error).to_string(),
        Err(_elapsed) => format!("no answer within {}", seconds(limit)),
    };
    recorder.failed(Check::Dns, messages::dns(target, &failure));
    let rest = [Check::Tcp, Check::Tls, Check::Verify, Check::Alpn];
    recorder.skipped(&rest, "no address is known");
    None
}

async fn try_one(target: &CheckTarget, address: SocketAddr) -> Result<NegotiatedTls, DialFailure> {
    let reached = TcpConnected::dial(UpstreamAddr(address), &target.timeouts)
        .await
        .map_err(DialFailure::Tcp)?;
    match Box::pin(reached.secure(&target.tls, Offer::Http2)).await {
        Ok(verified) => Ok(NegotiatedTls {
            version: verified.version,
            is_http2: verified.is_http2,
            certificate: verified.certificate,
        }),
        Err(error @ UpstreamError::Verify { .. }) => Err(DialFailure::Verify(error)),
        Err(error) => Err(DialFailure::Tls(error)),
    }
}

/// The lines about TLS, the certificate and, when there is none, what is skipped.
fn step_tls(
    target: &CheckTarget,
    all: &[DialAttempt],
    passed_over: bool,
    recorder: &mut Recorder<'_>,
) {
    let mut refused = Vec::new();
    let mut speaks = None;
    let mut silent = Vec::new();
    for DialAttempt { address, tls } in all {
        match tls {
            Ok(agreed) => speaks = Some(agreed.version),
            Err(DialFailure::Tls(error)) => silent.push(messages::tls(target, *address, error)),
            Err(DialFailure::Verify(error)) => {
                speaks = speaks.or(Some("TLS"));
                refused.push(messages::verify(target, *address, error));
            }
            Err(DialFailure::Tcp(_)) => {}
        }
    }
    let bad = |recorder: &mut Recorder<'_>, check, words| match passed_over {
        true => recorder.warning(check, words),
        false => recorder.failed(check, words),
    };
    for words in silent {
        bad(recorder, Check::Tls, words);
    }
    match speaks {
        Some(version) => recorder.ok(Check::Tls, format!("the server speaks {version}")),
        None => return recorder.skipped(&[Check::Verify, Check::Alpn], "there is no TLS"),
    }
    let any_refused = !refused.is_empty();
    for words in refused {
        bad(recorder, Check::Verify, words);
    }
    if any_refused && !passed_over {
        recorder.skipped(&[Check::Alpn], "the server is not the one expected");
    }
}

/// The lines about a connection that was verified.
fn step_verified(target: &CheckTarget, agreed: &NegotiatedTls, recorder: &mut Recorder<'_>) {
    let now = SystemTime::now();
    let good = format!(
        "the certificate is for {} and signed by {}",
        target.tls.expects(),
        target.trusted
    );
    match &agreed.certificate {
        Some(leaf) if expires_soon(leaf, now) => {
            recorder.warning(Check::Verify, messages::expires_soon(target, leaf));
        }
        Some(leaf) => recorder.ok(
            Check::Verify,
            format!("{good}, {} left", Days(leaf.days_left(now))),
        ),
        None => recorder.ok(Check::Verify, good),
    }
    if agreed.is_http2 {
        recorder.ok(Check::Alpn, "HTTP/2 is offered and chosen");
    } else {
        recorder.warning(Check::Alpn, messages::no_http2(target));
    }
}

/// With less than two weeks left, or a third of its life if that is less: what lives for a day is renewed
/// by a program.
fn expires_soon(leaf: &CertSummary, now: SystemTime) -> bool {
    let life = leaf.not_after.duration_since(leaf.not_before);
    let enough = life.map_or(FEW_DAYS, |life| FEW_DAYS.min(life / 3));
    leaf.not_after.duration_since(now).unwrap_or_default() < enough
}

/// More endpoints than a cluster has; each may take as long as a dial.
const MAX_ADDRESSES: usize = 8;
const FEW_DAYS: Duration = Duration::from_secs(14 * 24 * 60 * 60);
const NO_TCP: &str = "there is no connection";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use standin::{
        pki::Ca,
        tcp::{Behaviour, Peer, refused},
        upstream::Upstream,
    };

    use super::*;
    use crate::check::CheckOutcome;

    const NAME: &str = "kubernetes.default.svc";

    /// Outcomes of the steps with these addresses, and the one that is gone on with.
    async fn found(ca: &Ca, addresses: &[SocketAddr]) -> (Vec<String>, Option<SocketAddr>) {
        let target = CheckTarget {
            role: TargetRole::Apiserver,
            host: "apiserver.test".into(),
            port: 6443,
            addresses: Vec::new(),
            tls: ClientTls::new(Arc::new(ca.roots()), NAME.try_into().unwrap()).unwrap(),
            prefix: String::new(),
            authority: "kube.test".into(),
            trusted: "the CA".into(),
            timeouts: Timeouts::default(),
        };
        let mut ignore = |_: super::super::Event<'_>| {};
        let mut recorder = Recorder::new(&mut ignore);
        let chosen = check_all(&target, addresses.to_vec(), &mut recorder).await;
        let lines = recorder.into_report().findings.into_iter().map(|finding| {
            let mark = match finding.outcome {
                CheckOutcome::Ok => "ok",
                CheckOutcome::Warning => "warning",
                CheckOutcome::Failed => "failed",
                CheckOutcome::Skipped => "skipped",
            };
            format!("{} {mark}", finding.check.word())
        });
        (lines.collect(), chosen.map(|address| address.0))
    }

    #[test]
    fn what_lives_for_a_day_is_not_always_about_to_expire() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let mut leaf = CertSummary::of(&Ca::new("a").der()).unwrap();
        leaf.not_before = SystemTime::UNIX_EPOCH;
        for (life, soon) in [(DAY, DAY / 3), (90 * DAY, 14 * DAY), (3650 * DAY, 14 * DAY)] {
            leaf.not_after = leaf.not_before + life;
            let last = leaf.not_after - soon;
            assert!(!expires_soon(&leaf, last), "{life:?}");
            assert!(expires_soon(&leaf, last + DAY / 86_400), "{life:?}");
            assert!(expires_soon(&leaf, leaf.not_after + DAY), "{life:?}");
        }
    }

    /// One of several addresses being down is what the proxy is made for.
    #[tokio::test]
    async fn addresses_that_do_not_work_beside_one_that_does_are_warnings() {
        let ca = Ca::new("cluster");
        let well = Upstream::builder(ca.server(&[NAME])).start().await;
        let other = Upstream::builder(Ca::new("other").server(&[NAME]))
            .start()
            .await;
        let mute = Peer::start(Behaviour::CloseInHandshake).await;
        let down = refused().await;
        let all = [down, mute.address(), other.address(), well.address()];
        let (lines, chosen) = found(&ca, &all).await;
        assert_eq!(chosen, Some(well.address()));
        assert_eq!(
            lines,
            [
                "tcp warning",
                "tcp ok",
                "tls warning",
                "tls ok",
                "verify warning",
                "verify ok",
                "alpn ok"
            ]
        );
    }

    #[tokio::test]
    async fn addresses_of_which_none_works_are_failures() {
        let ca = Ca::new("cluster");
        let other = Upstream::builder(Ca::new("other").server(&[NAME]))
            .start()
            .await;
        let mute = Peer::start(Behaviour::CloseInHandshake).await;
        let all = [refused().await, mute.address(), other.address()];
        let (lines, chosen) = found(&ca, &all).await;
        assert_eq!(chosen, None);
        assert_eq!(
            lines,
            [
                "tcp failed",
                "tcp ok",
                "tls failed",
                "tls ok",
                "verify failed",
                "alpn skipped"
            ]
        );
    }
}
