//! Messages for failed dials: what is wrong, and how to fix it.

use std::{env, error::Error as _, io, net::SocketAddr, time::SystemTime};

use rustls::{AlertDescription, Error};
use rustls_pki_types::ServerName;

use super::{
    Message,
    dial::Spoken,
    recorder::format_duration,
    target::{CheckTarget, TargetRole},
};
use crate::{
    pki::{CertSummary, UtcDate},
    text::error_chain,
    tls_error::ChainError,
    upstream::{OutboundError, OutboundRoute, UpstreamError},
};

/// The name does not resolve.
pub(super) fn dns(target: &CheckTarget, failure: &str) -> Message {
    Message::new(
        format!(
            "cannot resolve {}: {failure}{}",
            target.host,
            proxy_hint(target)
        ),
        format!(
            "check the name in {}, and the DNS settings of this machine (/etc/resolv.conf)",
            target.url
        ),
    )
}

/// Says that kubectl would use the proxy of the environment, and the check does not.
fn proxy_hint(target: &CheckTarget) -> &'static str {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    if target.role == TargetRole::Proxy && (is_set("HTTPS_PROXY") || is_set("https_proxy")) {
        " (kubectl would connect through HTTPS_PROXY; this check connects directly)"
    } else {
        ""
    }
}

/// There is no TCP connection.
pub(super) fn tcp(target: &CheckTarget, address: SocketAddr, error: &UpstreamError) -> Message {
    let (server, url) = (target.server(), &target.url);
    if let UpstreamError::Outbound { proxy, source, .. } = error {
        return outbound(target, (address, proxy), source);
    }
    let UpstreamError::Connect { source, .. } = error else {
        let limit = format_duration(target.timeouts.upstream_connect);
        return Message::new(
            format!(
                "{address} does not respond within {limit}: a firewall drops the packets, or no machine has this address{}",
                proxy_hint(target)
            ),
            format!(
                "allow connections from this machine to TCP port {} there (firewall, security group, NetworkPolicy), or correct {url}",
                address.port()
            ),
        );
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "std adds kinds; an unknown one is printed as it is"
    )]
    match source.kind() {
        io::ErrorKind::ConnectionRefused => Message::new(
            format!("{address} refuses connections: nothing listens on this port"),
            format!("start {server} there, or correct the port in {url}"),
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Message::new(
            format!("there is no route to {address}"),
            format!(
                "check the routes of this machine (`ip route get {}`), or correct {url}",
                address.ip()
            ),
        ),
        _ => Message::new(
            format!("cannot connect to {address}: {source}"),
            format!("check that {server} runs there and is reachable"),
        ),
    }
}

/// The outbound proxy has opened no connection. The text says which of its two sides fails.
fn outbound(
    target: &CheckTarget,
    (address, proxy): (SocketAddr, &str),
    error: &OutboundError,
) -> Message {
    let apiserver = target
        .outbound
        .as_ref()
        .map_or_else(String::new, OutboundRoute::apiserver);
    let text = if error.is_beyond_proxy() {
        format!(
            "{proxy} ({address}) does not connect to {apiserver}: {}",
            error_chain(error)
        )
    } else {
        format!(
            "no connection with {proxy} ({address}): {}",
            error_chain(error)
        )
    };
    let fix = match error {
        OutboundError::Connect(_) | OutboundError::ConnectTimeout => {
            "start the outbound proxy or tunnel there, allow connections from this machine to it, or correct its URL"
        }
        OutboundError::Tls(_) => {
            "check that it speaks TLS (else write http:// in its URL), with a certificate for the host of its URL from a public CA or the CA of the cluster"
        }
        OutboundError::Timeout | OutboundError::Status { .. } | OutboundError::Socks(_) => {
            "let it connect to that address: check its rules, and whether its machine resolves the name and reaches the apiserver"
        }
        OutboundError::Credentials(_) => {
            "write a user name and a password that it accepts into its URL"
        }
        OutboundError::Broken(_)
        | OutboundError::Closed
        | OutboundError::Protocol(_)
        | OutboundError::TooLong => {
            "check the port and the scheme in its URL (http, https or socks5), and its log"
        }
    };
    Message::new(text, fix)
}

/// Whether the server does not speak TLS.
pub(super) fn is_not_tls(error: &UpstreamError) -> bool {
    let UpstreamError::Handshake { source, .. } = error else {
        return false;
    };
    matches!(rustls_error(source), Some(Error::InvalidMessage(_)))
}

/// Whether the server closes the connection within the handshake, without a word.
pub(super) fn is_closed(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::Handshake { source, .. } if rustls_error(source).is_none())
}

/// The proxy takes the connection for one of a load balancer.
pub(super) fn proxy_header_is_missing(address: SocketAddr) -> Message {
    Message::new(
        format!(
            "{address} closes the connection, because it begins without a PROXY header: proxyProtocol.from of the proxy has the address that it comes from"
        ),
        "turn the PROXY protocol on in the load balancer in front of the proxy; if there is none, take the address of this machine out of proxyProtocol.from",
    )
}

/// A certificate that signed itself and says that it is a CA, among those that clients trust.
pub(super) fn self_signed_ca(certificate: &str) -> Message {
    Message::new(
        format!(
            "{certificate} is self-signed and says that it is a CA (CA:TRUE): kubectl accepts it, clients with rustls (such as kube-rs, and this check) do not"
        ),
        "use a certificate from a CA, or issue this one again with CA:FALSE",
    )
}

fn rustls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// The TCP connection is open, but the TLS handshake fails.
pub(super) fn tls(
    target: &CheckTarget,
    address: SocketAddr,
    error: &UpstreamError,
    spoken: Spoken,
) -> Message {
    let (server, address) = (target.server(), target.place(address));
    let UpstreamError::Handshake { source, .. } = error else {
        let limit = format_duration(target.timeouts.upstream_connect);
        return Message::new(
            format!("{address} accepts connections but sends nothing for {limit}"),
            format!(
                "check that the process on this port is {server} and is not overloaded, and that no firewall or load balancer in between delays TLS"
            ),
        );
    };
    let Some(error) = rustls_error(source) else {
        return Message::new(
            format!(
                "{address} closes the connection during the TLS handshake ({})",
                error_chain(source)
            ),
            format!(
                "check that the process on this port is {server}, and that no firewall or load balancer in between blocks TLS{}",
                router_by_name(target)
            ),
        );
    };
    if let Error::InvalidMessage(_) = error {
        let usual_ports = target.by_role(" (an apiserver usually listens on 6443 or 443)", "");
        return Message::new(
            format!("{address} does not speak TLS; it speaks {}", spoken.name()),
            format!(
                "write the HTTPS port of {server} into {}{usual_ports}",
                target.url
            ),
        );
    }
    let text = format!(
        "the TLS handshake with {address} failed: {}",
        error_chain(error)
    );
    let is_alert = |alerts: &[AlertDescription]| matches!(error, Error::AlertReceived(alert) if alerts.contains(alert));
    // The proxy sends this alert for a PROXY header.
    if target.role == TargetRole::Proxy && is_alert(&[AlertDescription::UnexpectedMessage]) {
        return Message::new(
            format!(
                "{address} sees other bytes before TLS than this check sends, probably a PROXY header that it does not expect"
            ),
            "add the address of the load balancer in front of the proxy to proxyProtocol.from, or turn the PROXY protocol off in the load balancer",
        );
    }
    // Servers of TLS 1.2 have no alert of its own for a client certificate that is missing.
    let fix = if is_alert(&[
        AlertDescription::CertificateRequired,
        AlertDescription::BadCertificate,
    ]) {
        target.client_certificate_fix().to_owned()
    } else if is_alert(&[AlertDescription::UnrecognisedName]) {
        format!(
            "check the name that is sent as SNI, {}: {}",
            target.tls.expected_name(),
            target.by_role("--upstream-name changes it", "it is the host of --through")
        )
    } else if matches!(error, Error::PeerIncompatible(_) | Error::AlertReceived(_)) {
        format!("enable TLS 1.2 or 1.3 with a modern cipher suite on {server}")
    } else {
        format!("check that the process on this port is {server}")
    };
    Message::new(text, fix)
}

/// A hint about routers that read the SNI. Such a router closes connections with a name that it does not know.
fn router_by_name(target: &CheckTarget) -> String {
    match (target.role, target.tls.has_sni()) {
        (TargetRole::Apiserver, true) => format!(
            "; if a router chooses the server by name (SNI), it must know {}, or give its name with --upstream-name",
            target.tls.expected_name()
        ),
        (TargetRole::Apiserver, false) => {
            "; if a router chooses the server by name (SNI), give the name with --upstream-name"
                .to_owned()
        }
        (TargetRole::Proxy, _) => {
            "; if `listen` of the proxy has `allow` or `deny`, it must let this machine in"
                .to_owned()
        }
    }
}

/// The server's certificate is not the expected one.
pub(super) fn verify(target: &CheckTarget, address: SocketAddr, error: &UpstreamError) -> Message {
    let (server, address) = (target.server(), target.place(address));
    let certificate = format!("the certificate of {address}");
    let Some(failure) = error.verify_error() else {
        return Message::new(
            format!(
                "{address} does not prove that it has the key of its certificate ({})",
                error
                    .source()
                    .map_or_else(String::new, |source| error_chain(source).to_string())
            ),
            format!("give {server} the key that its certificate was issued for"),
        );
    };
    let presented = failure.presented();
    let refused = failure.refused();
    let now = UtcDate(SystemTime::now());
    match refused.cause {
        ChainError::Untrusted => {
            let issuer = presented.map_or("an unknown CA", |leaf| &leaf.issuer);
            let issued_by = if failure.has_namesake() {
                format!("another CA with the same name, {issuer}, issued it")
            } else {
                format!("it was issued by {issuer}")
            };
            Message::new(
                format!("{certificate} is not signed by {}: {issued_by}", target.trusted),
                match target.role {
                    TargetRole::Apiserver if failure.has_namesake() => {
                        "pass the CA of this cluster with --upstream-ca, in the kubeconfig or in `clusters` (kubeadm keeps it in /etc/kubernetes/pki/ca.crt)".to_owned()
                    }
                    TargetRole::Apiserver => format!(
                        "pass the CA that issued it with --upstream-ca, in the kubeconfig or in `clusters` (kubeadm keeps it in /etc/kubernetes/pki/ca.crt); \
                         if {issuer} is an intermediate of the trusted CA, make the apiserver send it (append it to the file of --tls-cert-file)"
                    ),
                    TargetRole::Proxy => format!(
                        "if {issuer} is an intermediate, append it to the file of --cert; if it is your own CA, pass it with --through-ca"
                    ),
                },
            )
        }
        ChainError::OtherName => other_name(target, &certificate, presented),
        ChainError::Expired => {
            let date = presented.map_or_else(String::new, |leaf| {
                format!(" on {}", UtcDate(leaf.not_after))
            });
            Message::new(
                format!("{certificate} expired{date}; the clock of this machine says {now}"),
                target.by_role(
                    "renew it (`kubeadm certs renew apiserver`, then restart the apiserver), or correct the clock",
                    "renew it and let the proxy reload it, or correct the clock",
                ),
            )
        }
        ChainError::NotYetValid => {
            let date = presented.map_or_else(
                || "a later date".to_owned(),
                |leaf| UtcDate(leaf.not_before).to_string(),
            );
            Message::new(
                format!(
                    "{certificate} is not valid before {date}; the clock of this machine says {now}"
                ),
                ChainError::NotYetValid.fix(),
            )
        }
        ChainError::IssuerExpired
        | ChainError::IssuerNotYetValid
        | ChainError::OtherPurpose
        | ChainError::Revoked
        | ChainError::UnknownStatus
        | ChainError::ListOutOfDate
        | ChainError::CaForServer
        | ChainError::IssuerIsNoCa
        | ChainError::ChainTooLong
        | ChainError::NameConstraint
        | ChainError::CriticalExtension
        | ChainError::SignatureAlgorithm
        | ChainError::Version
        | ChainError::SerialNumber
        | ChainError::Malformed
        | ChainError::TooComplex
        | ChainError::Other => {
            Message::new(format!("{certificate} {refused}"), refused.cause.fix())
        }
    }
}

/// The certificate is for other names than the expected one.
fn other_name(target: &CheckTarget, certificate: &str, presented: Option<&CertSummary>) -> Message {
    let expected = target.tls.expected_name();
    let sans = presented.map_or_else(Vec::new, |leaf| leaf.sans.clone());
    let text = format!("{certificate} is not valid for {expected}");
    if sans.contains(&format!("DNS:{expected}")) {
        return Message::new(
            format!("{text}: it has this address as a DNS name, which clients ignore"),
            "issue it again with the address as a subjectAltName of the type IP address",
        );
    }
    let text = if sans.is_empty() {
        format!("{text}: it has no subjectAltName")
    } else {
        format!("{text}: its names are {}", sans.join(", "))
    };
    let usable = sans.iter().find_map(|name| usable_name(name));
    let fix = match (target.role, usable) {
        (TargetRole::Apiserver, Some(name)) => format!(
            "if this is the right apiserver, tell the proxy to expect one of these names, for example with --upstream-name {name} (tls-server-name in a kubeconfig)"
        ),
        (TargetRole::Apiserver | TargetRole::Proxy, None) => {
            "issue it again with the name as subjectAltName".to_owned()
        }
        (TargetRole::Proxy, Some(_)) => {
            "use a name in the certificate, or give the proxy a certificate for this name"
                .to_owned()
        }
    };
    Message::new(text, fix)
}

/// A name that a client can expect of a certificate with this subjectAltName. A wildcard needs two labels after it.
fn usable_name(san: &str) -> Option<String> {
    match san.strip_prefix("*.") {
        Some(parent) if parent.contains('.') => Some(format!("kubernetes.{parent}")),
        Some(_) => None,
        None => ServerName::try_from(san.to_owned())
            .ok()
            .map(|name| name.to_str().into_owned()),
    }
}

/// The certificate is valid, but not for much longer.
pub(super) fn expires_soon(target: &CheckTarget, leaf: &CertSummary) -> Message {
    Message::new(
        format!(
            "the certificate is valid but expires soon, on {}",
            UtcDate(leaf.not_after)
        ),
        target.by_role(
            "renew it (`kubeadm certs renew apiserver`, then restart the apiserver)",
            "renew it; the proxy reloads it automatically",
        ),
    )
}

/// The server speaks HTTP/1.1 only.
pub(super) fn no_http2(target: &CheckTarget) -> Message {
    Message::new(
        "the server does not choose HTTP/2: requests work over HTTP/1.1, but every watch needs a connection of its own",
        target.by_role(
            "enable HTTP/2 on the apiserver (no --disable-http2-serving, no GODEBUG=http2server=0), and check the load balancer or firewall in front of it",
            "check the load balancer or ingress that terminates TLS in front of the proxy; the proxy itself always offers HTTP/2",
        ),
    )
}
