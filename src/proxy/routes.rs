//! Which cluster a host name belongs to.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use http::uri::Authority;

use crate::upstream::Cluster;

/// The public host names and their clusters; replaced whole when the configuration changes.
#[derive(Debug, Default)]
pub struct Routes {
    exact: HashMap<String, Arc<Cluster>>,
    /// By the part behind `*.`.
    wildcard: HashMap<String, Arc<Cluster>>,
}

impl Routes {
    /// Sends `host` (lower case, perhaps beginning with `*.`) to a cluster.
    pub fn add(&mut self, host: &str, cluster: &Arc<Cluster>) {
        let (map, key) = match host.strip_prefix("*.") {
            Some(parent) => (&mut self.wildcard, parent),
            None => (&mut self.exact, host),
        };
        map.insert(key.to_owned(), Arc::clone(cluster));
    }

    /// Whether a name is served here.
    #[must_use]
    pub fn serves(&self, name: &str) -> bool {
        self.by_name(name).is_some()
    }

    /// The cluster for a request: by its host; or, when the host is a bare IP address, by the name of
    /// the TLS handshake. That is how a kubeconfig with `server: https://192.0.2.1` and
    /// `tls-server-name` arrives, and the client has then checked the name already.
    pub(super) fn find(&self, authority: &Authority, sni: Option<&str>) -> Option<&Arc<Cluster>> {
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .trim_end_matches('.')
            .to_ascii_lowercase();
        self.by_name(&host).or_else(|| {
            host.parse::<IpAddr>().ok()?;
            self.by_name(sni?)
        })
    }

    fn by_name(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.exact.get(name).or_else(|| {
            let (label, parent) = name.split_once('.')?;
            if label.is_empty() {
                None
            } else {
                self.wildcard.get(parent)
            }
        })
    }
}
