//! What went wrong on the way to a server, in words, each with its fix.

use std::{io, net::SocketAddr, time::SystemTime};

use rustls::{CertificateError, Error};

use super::{
    Message,
    dial::{CheckTarget, TargetRole},
    recorder::seconds,
};
use crate::{
    pki::{Acceptance, CertSummary, UtcDate},
    text::error_chain,
    upstream::UpstreamError,
};

/// A name without an address.
pub(super) fn dns(target: &CheckTarget, failure: &str) -> Message {
    Message::new(
        format!("{} cannot be looked up: {failure}", target.host),
        format!(
            "check the name in {}, and the DNS of this machine (/etc/resolv.conf)",
            target.url_is_in()
        ),
    )
}

/// No TCP connection.
pub(super) fn tcp(target: &CheckTarget, address: SocketAddr, error: &UpstreamError) -> Message {
    let server = target.server();
    let UpstreamError::Connect { source, .. } = error else {
        let limit = seconds(target.timeouts.upstream_connect);
        return Message::new(
            format!(
                "no answer from {address} within {limit}: the packets are dropped on the way, as a firewall does, or nobody has that address"
            ),
            format!(
                "let this machine reach TCP port {} there (firewall, security group, NetworkPolicy), or correct {}",
                address.port(),
                target.url_is_in()
            ),
        );
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "std adds kinds; an unknown one keeps its own words"
    )]
    match source.kind() {
        io::ErrorKind::ConnectionRefused => Message::new(
            format!("{address} refuses connections: nothing listens on that port"),
            format!(
                "start {server} there, or correct the port in {}",
                target.url_is_in()
            ),
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Message::new(
            format!("there is no route to {address}"),
            format!(
                "check the routes of this machine (`ip route get {}`), or correct {}",
                address.ip(),
                target.url_is_in()
            ),
        ),
        _ => Message::new(
            format!("no connection to {address}: {source}"),
            format!("check that {server} runs there and can be reached"),
        ),
    }
}

/// TCP, but no TLS.
pub(super) fn tls(target: &CheckTarget, address: SocketAddr, error: &UpstreamError) -> Message {
    let server = target.server();
    let UpstreamError::Handshake { source, .. } = error else {
        return Message::new(
            format!(
                "{address} accepts connections and then says nothing for {}",
                seconds(target.timeouts.upstream_connect)
            ),
            format!(
                "check that {server} listens there and is not overloaded, and that nothing on the way holds TLS up"
            ),
        );
    };
    let refused = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    match refused {
        Some(Error::InvalidMessage(_)) => Message::new(
            format!("{address} does not answer with TLS; it seems to speak plain HTTP"),
            format!(
                "give the HTTPS port of {server} in {} (an apiserver's is mostly 6443 or 443)",
                target.url_is_in()
            ),
        ),
        Some(error @ (Error::PeerIncompatible(_) | Error::AlertReceived(_))) => Message::new(
            format!("{address} and this program agree on no way to speak TLS: {error}"),
            format!("let {server} speak TLS 1.2 or 1.3 with a modern cipher suite"),
        ),
        Some(error) => Message::new(
            format!("the TLS handshake with {address} failed: {error}"),
            format!("check that {server} listens there"),
        ),
        None => Message::new(
            format!(
                "{address} closes the connection in the TLS handshake ({})",
                error_chain(source)
            ),
            format!(
                "check that {server} listens there and not something else, and that nothing on the way blocks TLS"
            ),
        ),
    }
}

/// TLS with somebody else than was expected.
pub(super) fn verify(target: &CheckTarget, address: SocketAddr, error: &UpstreamError) -> Message {
    let certificate = format!("the certificate of {address}");
    let Some(failure) = error.verify_error() else {
        return Message::new(
            format!("{certificate} is not proved: {}", error_chain(error)),
            format!(
                "give {} the key that its certificate was issued for",
                target.server()
            ),
        );
    };
    let presented = failure.presented();
    let (issuer, names) = presented.map_or_else(
        || ("somebody".to_owned(), String::new()),
        |leaf| (leaf.issuer.clone(), leaf.sans.join(", ")),
    );
    let now = UtcDate(SystemTime::now());
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls adds causes; an unknown one keeps its own words"
    )]
    match failure.cause() {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Message::new(
            format!(
                "{certificate} is not signed by {}: it was issued by {issuer}",
                target.trusted
            ),
            target.issuer_fix(&issuer),
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let expected = target.tls.expects();
            let what = if names.is_empty() {
                format!("{certificate} is not for {expected}: it has no name as subjectAltName")
            } else {
                format!("{certificate} is not for {expected}, it is for {names}")
            };
            Message::new(what, target.name_fix(presented))
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Message::new(
            format!(
                "{certificate} has expired{}, and the clock here says {now}",
                presented.map_or_else(String::new, |leaf| format!(
                    " on {}",
                    UtcDate(leaf.not_after)
                ))
            ),
            match target.role {
                TargetRole::Apiserver => {
                    "renew it (`kubeadm certs renew apiserver`, then restart the apiserver), unless the clock is wrong"
                }
                TargetRole::Proxy => {
                    "renew it, and let the proxy read it again, unless the clock is wrong"
                }
            },
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Message::new(
                format!(
                    "{certificate} is not valid before {}, and the clock here says {now}",
                    presented.map_or_else(
                        || "a later day".to_owned(),
                        |leaf| UtcDate(leaf.not_before).to_string()
                    )
                ),
                "set the clock of this machine (NTP), or wait until then",
            )
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            Message::new(
                format!("{certificate} is not one for TLS servers"),
                "issue it again with the extended key usage serverAuth",
            )
        }
        other => Message::new(
            format!(
                "{certificate} is refused: {}",
                Error::InvalidCertificate(other.clone())
            ),
            format!("issue the certificate of {} again", target.server()),
        ),
    }
}

/// A good certificate that will not be for long.
pub(super) fn expires_soon(target: &CheckTarget, leaf: &CertSummary) -> Message {
    Message::new(
        format!(
            "the certificate is good, and expires soon: on {}",
            UtcDate(leaf.not_after)
        ),
        match target.role {
            TargetRole::Apiserver => {
                "renew it (`kubeadm certs renew apiserver`, then restart the apiserver)"
            }
            TargetRole::Proxy => "renew it; the proxy reads it again by itself",
        },
    )
}

/// HTTP/1.1 only.
pub(super) fn no_http2(target: &CheckTarget) -> Message {
    let what = "HTTP/2 is offered and not chosen, so that all goes over HTTP/1.1: it works, and every watch takes a connection of its own";
    Message::new(
        what,
        match target.role {
            TargetRole::Apiserver => {
                "let the apiserver speak HTTP/2 (no --disable-http2-serving, no GODEBUG=http2server=0), and look for what stands before it"
            }
            TargetRole::Proxy => {
                "look for what ends TLS before the proxy: the proxy itself always speaks HTTP/2"
            }
        },
    )
}

/// A chain that clients do not accept, who trust the CA in `file` or the public ones.
pub(super) fn not_accepted(acceptance: &Acceptance, file: Option<&str>) -> Message {
    match (acceptance, file) {
        (Acceptance::NoPath { issuer, .. }, Some(file)) => Message::new(
            format!(
                "the chain does not lead to the CA in {file}: its last certificate was issued by {issuer}, which is missing"
            ),
            "append the intermediate certificates of the issuer to the certificate file, or give the right CA with --through-ca",
        ),
        (
            Acceptance::NoPath {
                issuer,
                is_public: true,
            },
            None,
        ) => Message::new(
            format!(
                "the chain is incomplete: its last certificate was issued by {issuer}, an intermediate that is missing, so that clients refuse it"
            ),
            "append the intermediate certificates of the issuer to the certificate file (many tools call the whole one `fullchain.pem`)",
        ),
        (Acceptance::NoPath { issuer, .. }, None) => Message::new(
            format!("no public CA vouches for it: the chain ends at {issuer}"),
            "if that CA is your own, hand it out as certificate-authority-data in the kubeconfigs and give it here with --through-ca; else use a public one",
        ),
        (Acceptance::Refused { reason }, _) => Message::new(
            format!("the certificate {reason}"),
            "issue it again, as clients want it",
        ),
        (Acceptance::Accepted, _) => Message {
            what: "clients accept it".to_owned(),
            fix: None,
        },
    }
}

impl CheckTarget {
    /// What stands there, or should.
    pub(super) fn server(&self) -> &'static str {
        match self.role {
            TargetRole::Apiserver => "the apiserver",
            TargetRole::Proxy => "the proxy",
        }
    }

    /// Where its host and port were said.
    fn url_is_in(&self) -> &'static str {
        match self.role {
            TargetRole::Apiserver => {
                "the URL of the apiserver (--upstream, the kubeconfig or `clusters`)"
            }
            TargetRole::Proxy => "the URL after --through",
        }
    }

    fn issuer_fix(&self, issuer: &str) -> String {
        match self.role {
            TargetRole::Apiserver => format!(
                "give the CA that issued it with --upstream-ca, in the kubeconfig or in `clusters` (kubeadm keeps it in /etc/kubernetes/pki/ca.crt); \
                 if {issuer} is an intermediate of the trusted CA, it is missing: let the apiserver send it along (append it to the file of --tls-cert-file)"
            ),
            TargetRole::Proxy => format!(
                "if {issuer} is an intermediate, it is missing: append it to the file of --cert; if it is a CA of your own, give it with --through-ca"
            ),
        }
    }

    fn name_fix(&self, presented: Option<&CertSummary>) -> String {
        match (self.role, presented.and_then(|leaf| leaf.sans.first())) {
            (TargetRole::Apiserver, Some(name)) => format!(
                "expect a name that the certificate has, such as --upstream-name {name} (tls-server-name in a kubeconfig), once you are sure that it is the right apiserver"
            ),
            (TargetRole::Apiserver | TargetRole::Proxy, None) => {
                "issue it again with its name as subjectAltName".to_owned()
            }
            (TargetRole::Proxy, Some(_)) => {
                "use a name that the certificate has, or give the proxy a certificate for this one"
                    .to_owned()
            }
        }
    }
}
