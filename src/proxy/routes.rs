//! Which cluster a host name belongs to.

use std::{net::IpAddr, sync::Arc};

use http::uri::Authority;

use crate::{
    hosts::{HostMap, HostName},
    upstream::Cluster,
};

/// The public host names and their clusters; replaced whole when the configuration changes.
#[derive(Debug, Default)]
pub struct Routes(HostMap<Arc<Cluster>>);

impl Routes {
    /// Sends `host` (the text of a host pattern) to a cluster.
    pub fn add(&mut self, host: &str, cluster: &Arc<Cluster>) {
        self.0.insert(host, Arc::clone(cluster));
    }

    /// Whether a name is served here.
    #[must_use]
    pub fn serves(&self, name: &str) -> bool {
        self.0.get(&HostName::new(name)).is_some()
    }

    /// The cluster for a request: by its host; or, when the host is a bare IP address, by the name of
    /// the TLS handshake. That is how a kubeconfig with `server: https://192.0.2.1` and
    /// `tls-server-name` arrives, and the client has then checked the name already.
    pub(super) fn find(&self, authority: &Authority, sni: Option<&str>) -> Option<&Arc<Cluster>> {
        let host = HostName::new(authority.host());
        self.0.get(&host).or_else(|| {
            host.as_str().parse::<IpAddr>().ok()?;
            self.0.get(&HostName::new(sni?))
        })
    }
}

#[cfg(test)]
mod tests {
    use standin::pki::Ca;

    use super::*;
    use crate::upstream::{ClientTls, Endpoints};

    fn cluster(name: &str) -> Arc<Cluster> {
        let server_name = "apiserver.test".try_into().unwrap();
        let tls = ClientTls::new(Arc::new(Ca::new("cluster").roots()), server_name).unwrap();
        let endpoints = Arc::new(Endpoints::new("192.0.2.1", 6443));
        Arc::new(Cluster::new(name.to_owned(), String::new(), endpoints, tls))
    }

    fn routes() -> Routes {
        let mut routes = Routes::default();
        routes.add("a.test", &cluster("a"));
        routes.add("*.b.test", &cluster("wild"));
        routes.add("x.b.test", &cluster("exact"));
        routes.add("192.0.2.7", &cluster("address"));
        routes.add("2001:db8::7", &cluster("address"));
        routes
    }

    fn found(host: &str, sni: Option<&str>) -> Option<String> {
        let routes = routes();
        let cluster = routes.find(&host.parse().unwrap(), sni)?;
        Some(cluster.name().to_owned())
    }

    #[test]
    fn finds_a_host_in_every_spelling() {
        for host in ["a.test", "A.TEST", "a.test.", "a.test:443", "A.test.:6443"] {
            assert_eq!(found(host, None).as_deref(), Some("a"), "{host}");
        }
        for host in [
            "192.0.2.7",
            "192.0.2.7:1",
            "[2001:db8::7]",
            "[2001:DB8::7]:443",
        ] {
            assert_eq!(found(host, None).as_deref(), Some("address"), "{host}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label_and_yields_to_an_exact_name() {
        for (host, expected) in [
            ("y.b.test", Some("wild")),
            ("x.b.test", Some("exact")),
            ("b.test", None),
            (".b.test", None),
            ("y.z.b.test", None),
            ("*.b.test", Some("wild")),
        ] {
            assert_eq!(found(host, None).as_deref(), expected, "{host}");
        }
    }

    #[test]
    fn only_a_bare_address_goes_by_the_handshake() {
        for (host, sni, expected) in [
            ("192.0.2.1", Some("a.test"), Some("a")),
            ("[2001:db8::1]:6443", Some("y.b.test"), Some("wild")),
            ("192.0.2.1", None, None),
            ("192.0.2.1", Some("other.test"), None),
            ("other.test", Some("a.test"), None),
            ("192.0.2.7", Some("a.test"), Some("address")),
            ("a.test..", Some("a.test"), None),
            ("192.0.2.1.nip.test", Some("a.test"), None),
        ] {
            assert_eq!(found(host, sni).as_deref(), expected, "{host} {sni:?}");
        }
    }

    #[test]
    fn says_which_names_are_served() {
        let routes = routes();
        for (name, served) in [("a.test", true), ("y.b.test", true), ("b.test", false)] {
            assert_eq!(routes.serves(name), served, "{name}");
        }
    }
}
