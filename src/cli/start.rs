//! What the proxy says once it listens: where, for whom, to which apiserver, trusting which CA.

use std::{fmt, net::SocketAddr, num::NonZeroUsize, time::SystemTime};

use rustls_pki_types::ServerName;

use crate::{
    config::ClusterConfig,
    pki::{Days, Identity, TrustAnchors},
};

/// The facts of a start. `Display` writes them as one block, a fact to a line; the methods give the
/// same facts for a JSON event.
#[derive(Debug, Clone, Copy)]
pub struct StartBlock<'a> {
    /// Bound addresses, with the ports that the kernel chose.
    pub listening: &'a [SocketAddr],
    /// Where the status page is, if anywhere.
    pub admin: Option<SocketAddr>,
    /// Certificates that are presented.
    pub identities: &'a [&'a Identity],
    /// Clusters and what each is verified against.
    pub clusters: &'a [(&'a ClusterConfig, &'a TrustAnchors)],
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// The moment that days are counted from.
    pub now: SystemTime,
}

impl StartBlock<'_> {
    /// Each bound address.
    #[must_use]
    pub fn listening(&self) -> Vec<String> {
        self.listening.iter().map(ToString::to_string).collect()
    }

    /// The URL of the status page.
    #[must_use]
    pub fn admin(&self) -> Option<String> {
        self.admin.map(|address| format!("http://{address}/"))
    }

    /// Names, days left and issuer of each certificate.
    #[must_use]
    pub fn serving(&self) -> Vec<String> {
        self.identities
            .iter()
            .map(|identity| {
                let leaf = identity.summary();
                format!(
                    "{}   ({} left, issued by {})",
                    identity.names().join(", "),
                    Days(leaf.days_left(self.now)),
                    leaf.issuer
                )
            })
            .collect()
    }

    /// Name, URL and expected certificate name of each cluster, and the extra hosts that lead to it.
    #[must_use]
    pub fn upstreams(&self) -> Vec<String> {
        self.clusters
            .iter()
            .map(|(cluster, _)| {
                let hosts = if cluster.hosts.is_empty() {
                    String::new()
                } else {
                    format!(" for {}", cluster.hosts.join(", "))
                };
                format!(
                    "{} → {} as {}{hosts}",
                    cluster.name,
                    cluster.url(),
                    name(&cluster.expected_name)
                )
            })
            .collect()
    }

    /// Subject and fingerprint of each CA; of which cluster, when there are several.
    #[must_use]
    pub fn trusting(&self) -> Vec<String> {
        let several = self.clusters.len() > 1;
        self.clusters
            .iter()
            .flat_map(|(cluster, trust)| trust.summaries().iter().map(move |ca| (cluster, ca)))
            .map(|(cluster, ca)| {
                let of = if several {
                    format!(" ({})", cluster.name)
                } else {
                    String::new()
                };
                format!("{}, SHA-256 {}{of}", ca.subject, ca.fingerprint())
            })
            .collect()
    }
}

impl fmt::Display for StartBlock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kube-tls-proxy {}", env!("CARGO_PKG_VERSION"))?;
        let facts = [
            ("listening", self.listening()),
            ("serving", self.serving()),
            ("upstream", self.upstreams()),
            ("trusting", self.trusting()),
            ("workers", vec![self.workers.to_string()]),
            ("admin", self.admin().into_iter().collect()),
        ];
        for (word, facts) in facts {
            for fact in facts {
                writeln!(f, "  {word:<11} {fact}")?;
            }
        }
        Ok(())
    }
}

fn name(name: &ServerName<'_>) -> String {
    match name {
        ServerName::DnsName(name) => name.as_ref().to_owned(),
        ServerName::IpAddress(address) => std::net::IpAddr::from(*address).to_string(),
        // `ServerName` may grow kinds; its own text is the best there is.
        other => other.to_str().into_owned(),
    }
}
