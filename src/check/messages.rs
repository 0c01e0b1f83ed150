//! Messages for failed dials: what is wrong, and how to fix it.

use std::{io, net::SocketAddr, time::SystemTime};

use rustls::{CertificateError, Error};

use super::{
    Message,
    recorder::format_duration,
    target::{CheckTarget, TargetRole},
};
use crate::{
    pki::{CertSummary, UtcDate},
    text::error_chain,
    upstream::UpstreamError,
};

/// The name does not resolve.
pub(super) fn dns(target: &CheckTarget, failure: &str) -> Message {
    let proxy = http_proxy(target);
    Message::new(
        format!("cannot resolve {}: {failure}{proxy}", target.host),
        format!(
            "check the name in {}, and the DNS settings of this machine (/etc/resolv.conf)",
            target.written_in
        ),
    )
}

/// Says that kubectl would use an HTTP proxy, if that is so: `check` connects directly, as the proxy does.
fn http_proxy(target: &CheckTarget) -> &'static str {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if target.role == TargetRole::Proxy && ["HTTPS_PROXY", "https_proxy"].into_iter().any(is_set) {
        " (HTTPS_PROXY is set: kubectl would go through that proxy, and this check connects directly)"
    } else {
        ""
    }
}

/// There is no TCP connection.
pub(super) fn tcp(target: &CheckTarget, address: SocketAddr, error: &UpstreamError) -> Message {
    let (server, url) = (target.server(), target.written_in);
    let UpstreamError::Connect { source, .. } = error else {
        let limit = format_duration(target.timeouts.upstream_connect);
        return Message::new(
            format!(
                "{address} does not respond within {limit}: a firewall drops the packets, or no machine has this address{}",
                http_proxy(target)
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

/// The TCP connection is open, but the TLS handshake fails.
pub(super) fn tls(target: &CheckTarget, address: SocketAddr, error: &UpstreamError) -> Message {
    let server = target.server();
    let UpstreamError::Handshake { source, .. } = error else {
        let limit = format_duration(target.timeouts.upstream_connect);
        return Message::new(
            format!("{address} accepts connections but sends nothing for {limit}"),
            format!(
                "check that the process on this port is {server} and is not overloaded, and that no firewall or load balancer in between delays TLS"
            ),
        );
    };
    let tls_error = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    let Some(error) = tls_error else {
        return Message::new(
            format!(
                "{address} closes the connection during the TLS handshake ({})",
                error_chain(source)
            ),
            format!(
                "check that the process on this port is {server}, and that no firewall or load balancer in between blocks TLS"
            ),
        );
    };
    if let Error::InvalidMessage(_) = error {
        let usual_ports = target.by_role(" (an apiserver usually listens on 6443 or 443)", "");
        return Message::new(
            format!("{address} does not speak TLS; it seems to speak plain HTTP"),
            format!(
                "write the HTTPS port of {server} into {}{usual_ports}",
                target.written_in
            ),
        );
    }
    Message::new(
        format!("the TLS handshake with {address} failed: {error}"),
        if matches!(error, Error::PeerIncompatible(_) | Error::AlertReceived(_)) {
            format!("enable TLS 1.2 or 1.3 with a modern cipher suite on {server}")
        } else {
            format!("check that the process on this port is {server}")
        },
    )
}

/// The server's certificate is not the expected one.
pub(super) fn verify(target: &CheckTarget, address: SocketAddr, error: &UpstreamError) -> Message {
    let certificate = format!("the certificate of {address}");
    let server = target.server();
    let Some(failure) = error.verify_error() else {
        return Message::new(
            format!(
                "{address} does not prove that it has the key of its certificate: {}",
                error_chain(error)
            ),
            format!("give {server} the key that its certificate was issued for"),
        );
    };
    let presented = failure.presented();
    let now = UtcDate(SystemTime::now());
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls adds causes; an unknown one is printed as it is"
    )]
    match failure.cause() {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            let issuer = presented.map_or("an unknown CA", |leaf| &leaf.issuer);
            Message::new(
                format!(
                    "{certificate} is not signed by {}: it was issued by {issuer}",
                    target.trusted
                ),
                match target.role {
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
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let expected = target.tls.expected_name();
            let sans = presented.map_or_else(String::new, |leaf| leaf.sans.join(", "));
            let names = if sans.is_empty() {
                "it has no subjectAltName".to_owned()
            } else {
                format!("its names are {sans}")
            };
            Message::new(
                format!("{certificate} is not valid for {expected}: {names}"),
                name_fix(target, presented),
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
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
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            let date = presented.map_or_else(
                || "a later date".to_owned(),
                |leaf| UtcDate(leaf.not_before).to_string(),
            );
            Message::new(
                format!(
                    "{certificate} is not valid before {date}; the clock of this machine says {now}"
                ),
                "correct the clock of this machine (NTP), or wait until then",
            )
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            Message::new(
                format!("{certificate} is not a certificate for TLS servers"),
                "issue it again with the extended key usage serverAuth",
            )
        }
        other => Message::new(
            format!(
                "{certificate} is rejected: {}",
                Error::InvalidCertificate(other.clone())
            ),
            format!("issue the certificate of {server} again"),
        ),
    }
}

fn name_fix(target: &CheckTarget, presented: Option<&CertSummary>) -> String {
    match (target.role, presented.and_then(|leaf| leaf.sans.first())) {
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
