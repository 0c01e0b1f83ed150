//! Endpoints that the cluster itself names: which ones it has named last, and why it names none now.
//!
//! Until the cluster has named some, the host leads to the apiservers: the address of the Service `kubernetes`. After
//! that the last ones stay until it names others.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{AddressSource, Endpoint, Endpoints};
use crate::{hosts::UpstreamAddr, upstream::lock};

/// What is known about endpoints that the cluster names.
#[derive(Debug)]
pub(super) struct Discovery {
    /// The file of the token with which the cluster is asked.
    token: PathBuf,
    report: Mutex<DiscoveryReport>,
}

/// What the cluster has said about its apiservers, for metrics and the status page.
#[derive(Debug, Clone, Default)]
pub struct DiscoveryReport {
    /// The apiservers that the cluster has named last; 0 before it has named any.
    pub found: usize,
    /// When their addresses last changed.
    pub changed: Option<Instant>,
    /// Attempts that failed.
    pub failures: u64,
    /// Why the last attempt failed, as a fragment for people; `None` if it succeeded.
    pub failure: Option<String>,
}

impl Endpoints {
    /// Endpoints that the cluster names when it is asked with the token in this file. Until then, those of `host`.
    #[must_use]
    pub fn discovered(host: &str, port: u16, token: &Path) -> Self {
        let source = AddressSource::Cluster(Discovery {
            token: token.to_owned(),
            report: Mutex::default(),
        });
        let literal = host.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
        let addresses: Vec<_> = literal.into_iter().collect();
        Self::with(host, port, source, &addresses)
    }

    /// What the cluster has said about its apiservers; `None` if it is not asked.
    #[must_use]
    pub fn discovery(&self) -> Option<DiscoveryReport> {
        let discovery = self.source.discovery()?;
        Some(lock(&discovery.report).clone())
    }

    /// The file of the token with which the cluster is asked; `None` if it is not asked.
    pub(in crate::upstream) fn discovery_token(&self) -> Option<&Path> {
        let discovery = self.source.discovery()?;
        Some(&discovery.token)
    }

    /// The addresses of the host, which do not depend on what the cluster has named. A connection uses them while no
    /// other address is known.
    ///
    /// # Errors
    ///
    /// When the lookup fails or finds no address.
    pub(in crate::upstream) async fn of_host(&self) -> io::Result<Vec<Arc<Endpoint>>> {
        let found = self.look_up().await?;
        if self.list.load().is_empty() {
            self.publish(&found);
        }
        let endpoints = found.into_iter().map(|one| Arc::new(Endpoint::new(one)));
        Ok(endpoints.collect())
    }

    /// Uses these addresses and no others, at least one. Streams to a removed endpoint finish, and no new request goes
    /// to it.
    pub(in crate::upstream) fn named_by_cluster(&self, found: &[UpstreamAddr]) {
        let before = self.all();
        let has_changed = self.publish(found);
        let removed = before.iter().filter(|old| !found.contains(&old.address()));
        for endpoint in removed {
            endpoint.set_ejected(true);
        }
        if let Some(discovery) = self.source.discovery() {
            let mut report = lock(&discovery.report);
            report.found = found.len();
            if has_changed || report.changed.is_none() {
                report.changed = Some(Instant::now());
            }
        }
    }

    /// Records that the cluster can be asked.
    pub(in crate::upstream) fn discovery_works(&self) {
        let Some(discovery) = self.source.discovery() else {
            return;
        };
        if lock(&discovery.report).failure.take().is_some() {
            info!(cluster = self.cluster, "endpoint discovery works again");
        }
    }

    /// Records that the cluster named no apiserver. The log says so once, until it works again.
    pub(in crate::upstream) fn discovery_failed(&self, why: String) {
        let Some(discovery) = self.source.discovery() else {
            return;
        };
        let mut report = lock(&discovery.report);
        report.failures += 1;
        if report.failure.replace(why.clone()).is_none() {
            let known: Vec<_> = self.all().iter().map(|one| one.address()).collect();
            let known: Vec<_> = known.iter().map(ToString::to_string).collect();
            warn!(
                cluster = self.cluster,
                addresses = known.join(", "),
                error = why,
                "endpoint discovery failed, keeping the known addresses"
            );
        }
    }
}

impl AddressSource {
    fn discovery(&self) -> Option<&Discovery> {
        match self {
            Self::Cluster(discovery) => Some(discovery),
            Self::Fixed | Self::Name => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use tracing::subscriber::with_default;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn address(host: u8) -> UpstreamAddr {
        UpstreamAddr(SocketAddr::from(([127, 0, 0, host], 6443)))
    }

    #[tokio::test]
    async fn long_failure_is_logged_when_it_begins_and_ends() {
        let endpoints = Endpoints::discovered("127.0.0.1", 443, Path::new("/token"));
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
        with_default(subscriber.finish(), || {
            for _ in 0..3 {
                endpoints.discovery_failed("the reason".into());
                endpoints.named_by_cluster(&[address(1)]);
            }
            endpoints.discovery_works();
            endpoints.discovery_works();
        });
        let text = String::from_utf8(lock(&log.0).clone()).unwrap();
        let count = |part| text.matches(part).count();
        assert_eq!(count("endpoint discovery failed"), 1, "{text}");
        assert_eq!(count("endpoint discovery works again"), 1, "{text}");
        assert!(
            text.contains("127.0.0.1:443") && text.contains("the reason"),
            "{text}"
        );
        assert_eq!(endpoints.discovery().unwrap().failures, 3);
    }

    #[tokio::test]
    async fn removed_endpoint_gets_no_new_request() {
        let endpoints = Endpoints::discovered("127.0.0.1", 443, Path::new("/token"));
        endpoints.named_by_cluster(&[address(1), address(2)]);
        let all = endpoints.all();
        endpoints.named_by_cluster(&[address(2)]);
        let retired: Vec<_> = all.iter().map(|one| one.is_ejected()).collect();
        assert_eq!(retired, [true, false]);
        assert!(
            Arc::ptr_eq(&all[1], &endpoints.all()[0]),
            "it keeps its health"
        );
    }

    #[tokio::test]
    async fn same_addresses_are_no_change() {
        let endpoints = Endpoints::discovered("127.0.0.1", 443, Path::new("/token"));
        assert_eq!(endpoints.discovery().unwrap().changed, None);
        endpoints.named_by_cluster(&[address(1)]);
        let changed = endpoints.discovery().unwrap().changed;
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_secs(5)).await;
        endpoints.named_by_cluster(&[address(1)]);
        assert_eq!(endpoints.discovery().unwrap().changed, changed);
    }
}
