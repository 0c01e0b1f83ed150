//! The report of a start: addresses, certificates, apiservers and trusted CAs.

use std::{fmt, net::SocketAddr, num::NonZeroUsize, time::SystemTime};

use crate::{
    config::{ClusterConfig, ConnectionsBound},
    pki::{Identity, TrustAnchors},
    quote,
    reload::NamingMaterial,
};

/// The facts of a start. `Display` writes one fact per line; the methods return the same facts for a JSON event.
#[derive(Debug, Clone, Copy)]
pub struct StartBlock<'a> {
    /// Bound addresses, with the ports that the kernel chose.
    pub listening: &'a [SocketAddr],
    /// The address of the admin port, if there is one.
    pub admin: Option<SocketAddr>,
    /// The certificates that the proxy presents.
    pub identities: &'a [&'a Identity],
    /// Each cluster and the CAs that its apiserver is verified against.
    pub clusters: &'a [(&'a ClusterConfig, &'a TrustAnchors)],
    /// Each cluster to which the proxy names the users of client certificates, and its credential for that.
    pub namings: &'a [(&'a ClusterConfig, &'a NamingMaterial)],
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// Client connections that may be open at once.
    pub connections: usize,
    /// What decided that number.
    pub decided_by: ConnectionsBound,
    /// The time that days left are counted from.
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

    /// The limit of client connections, and what decided it.
    #[must_use]
    pub fn connections(&self) -> String {
        format!("{} at most   ({})", self.connections, self.decided_by)
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
                    leaf.time_left(self.now),
                    leaf.issuer
                )
            })
            .collect()
    }

    /// Name, URL and expected certificate name of each cluster, and its configured hosts. Clients of a passthrough
    /// cluster decide which name they expect.
    #[must_use]
    pub fn upstreams(&self) -> Vec<String> {
        self.clusters
            .iter()
            .map(|(cluster, _)| {
                let names = cluster.public_names();
                let hosts = if names.is_empty() {
                    String::new()
                } else {
                    format!(" for {}", names.join(", "))
                };
                let outbound = cluster.outbound.as_ref();
                let route = outbound.map(|proxy| format!(" through {proxy}"));
                let url = format!("{}{}", cluster.url(), route.unwrap_or_default());
                if cluster.passthrough {
                    return format!("{} → {url} passed through{hosts}", cluster.name);
                }
                let name = cluster.expected_name.to_str();
                format!("{} → {url} as {name}{hosts}", cluster.name)
            })
            .collect()
    }

    /// Each cluster to which the proxy can name any user, and the certificate with which it does.
    #[must_use]
    pub fn front_proxies(&self) -> Vec<String> {
        let each = self.namings.iter().filter_map(|(cluster, naming)| {
            let leaf = naming.front_proxy()?.summary();
            Some(format!(
                "{} as {}   ({} left; names users of client certificates to the apiserver)",
                cluster.name,
                leaf.subject,
                leaf.time_left(self.now)
            ))
        });
        each.collect()
    }

    /// Each cluster in which the proxy can impersonate users, and the file of its token.
    #[must_use]
    pub fn tokens(&self) -> Vec<String> {
        let each = self.namings.iter().filter_map(|(cluster, naming)| {
            let path = quote::path(naming.token()?.path());
            Some(format!(
                "{} with {path}   (impersonates users of client certificates)",
                cluster.name
            ))
        });
        each.collect()
    }

    /// Each cluster that the proxy asks for the addresses of its apiservers, and the file of the token for that.
    #[must_use]
    pub fn discovering(&self) -> Vec<String> {
        let each = self.clusters.iter().filter_map(|(cluster, _)| {
            let path = quote::path(cluster.discovery.as_ref()?);
            Some(format!(
                "{} with {path}   (reads the EndpointSlice default/kubernetes, and nothing else)",
                cluster.name
            ))
        });
        each.collect()
    }

    /// Subject and fingerprint of each CA, with its cluster if there are several.
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
            ("front proxy", self.front_proxies()),
            ("token", self.tokens()),
            ("discovery", self.discovering()),
            ("workers", vec![self.workers.to_string()]),
            ("connections", vec![self.connections()]),
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
