//! Gets certificates from a CA by ACME (RFC 8555) and renews them, beside the workers.
//!
//! No request waits for anything here. A new certificate is a new file in the store, and the reload takes it as it
//! takes every other file: checked, and without a failed request. Until then, and when a renewal fails, the old one
//! stays.

mod directory;
mod http01;
mod order;
mod renewal;
mod report;
mod store;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::rand;
use instant_acme::CertificateIdentifier;
use rustls_pki_types::Der;
use tokio::{sync::Notify, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

pub(crate) use directory::check as check_directory;
pub(crate) use http01::check as check_http01;
pub use report::{AcmeReport, AcmeReports};
pub use store::StoreError;
pub(crate) use store::check as check_store;

use crate::{
    config::{AcmeConfig, CertificateSource, Config},
    drain::Drain,
    pki::{AcmeChallenges, Identity, UtcDate},
    text::{error_chain, escape},
};
use directory::RetryAfter;
use http01::Http01Answers;
use order::{OrderError, Orders};
use store::Store;

/// Keeps the certificates of all `acme` sections.
#[derive(Debug)]
pub struct AcmeUpkeep {
    challenges: Arc<AcmeChallenges>,
    http01: Arc<Http01Answers>,
    reload_now: Arc<Notify>,
    reports: Arc<AcmeReports>,
    drain: Drain,
    /// Locked at the start, for the first [`AcmeUpkeep::update`].
    opened: Vec<(AcmeConfig, Store)>,
    kept: Vec<(AcmeConfig, AbortOnDropHandle<()>)>,
}

impl AcmeUpkeep {
    /// Locks the stores of `config`. `reload_now` is notified of each new certificate.
    ///
    /// # Errors
    ///
    /// When a store cannot be used. With `reusePort`, another process may still have it: that one is about to end.
    pub fn new(
        config: &Config,
        challenges: &Arc<AcmeChallenges>,
        reload_now: &Arc<Notify>,
    ) -> Result<Self, StoreError> {
        let mut opened = Vec::new();
        for acme in sections(config) {
            match Store::open(&acme.store) {
                Ok(store) => opened.push((acme.clone(), store)),
                Err(StoreError::Locked { .. }) if config.reuse_port => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            challenges: Arc::clone(challenges),
            http01: Arc::default(),
            reload_now: Arc::clone(reload_now),
            reports: Arc::default(),
            drain: Drain::new(),
            opened,
            kept: Vec::new(),
        })
    }

    /// The report about each certificate.
    #[must_use]
    pub fn reports(&self) -> Arc<AcmeReports> {
        Arc::clone(&self.reports)
    }

    /// Keeps the certificates of this configuration, and no others. A section that has not changed is not disturbed.
    pub fn update(&mut self, config: &Config) {
        let mut left = std::mem::take(&mut self.kept);
        for acme in sections(config) {
            let at = left.iter().position(|(kept, _)| kept == acme);
            let kept = match at {
                Some(at) => left.swap_remove(at),
                None => (acme.clone(), self.keep(acme.clone())),
            };
            self.kept.push(kept);
        }
        self.reports.retain(sections(config));
        self.opened.clear();
    }

    fn keep(&mut self, config: AcmeConfig) -> AbortOnDropHandle<()> {
        let at = self.opened.iter().position(|(opened, _)| *opened == config);
        let store = at.map(|at| self.opened.swap_remove(at).1);
        let renewal = Renewal::new(
            config,
            Arc::clone(&self.challenges),
            Arc::clone(&self.http01),
            Arc::clone(&self.reload_now),
            Arc::clone(&self.reports),
        );
        AbortOnDropHandle::new(self.drain.spawn(renewal.keep(store)))
    }
}

fn sections(config: &Config) -> impl Iterator<Item = &AcmeConfig> {
    config.identities.iter().filter_map(CertificateSource::acme)
}

/// Keeps one certificate.
struct Renewal {
    config: AcmeConfig,
    challenges: Arc<AcmeChallenges>,
    http01: Arc<Http01Answers>,
    reload_now: Arc<Notify>,
    reports: Arc<AcmeReports>,
    retry_after: Arc<RetryAfter>,
    /// In a row.
    failures: u32,
    /// The certificate that the next three values are about.
    id: Option<CertificateIdentifier<'static>>,
    /// When the CA wants it to be renewed.
    window: Option<(SystemTime, SystemTime)>,
    /// When to ask the CA for the window again.
    ask_again: SystemTime,
    fraction: f64,
    /// When this process has got the certificate from the CA.
    issued: SystemTime,
}

impl Renewal {
    fn new(
        config: AcmeConfig,
        challenges: Arc<AcmeChallenges>,
        http01: Arc<Http01Answers>,
        reload_now: Arc<Notify>,
        reports: Arc<AcmeReports>,
    ) -> Self {
        Self {
            config,
            challenges,
            http01,
            reload_now,
            reports,
            retry_after: Arc::default(),
            failures: 0,
            id: None,
            window: None,
            ask_again: SystemTime::UNIX_EPOCH,
            fraction: fraction(),
            issued: SystemTime::UNIX_EPOCH,
        }
    }

    async fn keep(mut self, store: Option<Store>) {
        let store = match store {
            Some(store) => store,
            None => self.open().await,
        };
        loop {
            let wait = self.step(&store).await;
            sleep(wait).await;
        }
    }

    /// Opens the store. Another process that has it ends soon: it drains, or its configuration has just lost the
    /// section.
    async fn open(&mut self) -> Store {
        let mut last = String::new();
        loop {
            match Store::open(&self.config.store) {
                Ok(store) => return store,
                Err(error) => {
                    let error = error_chain(&error).to_string();
                    if error != last {
                        warn!(error, "cannot open the ACME store; retrying");
                        self.reports.note(&self.config, |report| {
                            report.failure = Some(error.clone());
                        });
                        last = error;
                    }
                    sleep(STORE_INTERVAL).await;
                }
            }
        }
    }

    /// Renews the certificate if it is time, and returns how long nothing needs to be done.
    async fn step(&mut self, store: &Store) -> Duration {
        let now = SystemTime::now();
        let identity = match Identity::stored(&self.config, now) {
            Ok(identity) => identity,
            Err(error) => return self.failed(error_chain(&error).to_string(), now),
        };
        let names = self.config.names.iter();
        let usable = identity.filter(|identity| names.clone().all(|name| identity.covers(name)));
        let due = match &usable {
            Some(identity) => self.due(identity, store, now).await,
            None => now,
        };
        if let Ok(wait) = due.duration_since(now)
            && !wait.is_zero()
        {
            // After failures, something else has written this certificate, or the clock was set.
            self.failures = 0;
            self.reports.note(&self.config, |report| {
                report.next = Some(due);
                report.failure = None;
            });
            let ask = self.ask_again.duration_since(now).unwrap_or_default();
            // The clock may be set, and the machine may sleep.
            return wait.min(ask).min(MAX_SLEEP);
        }
        // After a failure without it: the CA may refuse to replace this certificate twice.
        let replaces = usable.filter(|_| self.window.is_some() && self.failures == 0);
        match self.obtain(store, replaces.and_then(|old| id(&old))).await {
            Ok(()) => {
                self.renewed();
                Duration::ZERO
            }
            Err(error) => self.failed(error_chain(&error).to_string(), now),
        }
    }

    async fn obtain(
        &self,
        store: &Store,
        replaces: Option<CertificateIdentifier<'_>>,
    ) -> Result<(), OrderError> {
        self.orders(store).await?.obtain(replaces).await
    }

    async fn orders<'a>(&'a self, store: &'a Store) -> Result<Orders<'a>, OrderError> {
        let (answers, http01) = (&self.challenges, &self.http01);
        Orders::open(&self.config, store, answers, http01, &self.retry_after).await
    }

    /// When this certificate is renewed. Asks the CA for its opinion from time to time.
    async fn due(&mut self, identity: &Identity, store: &Store, now: SystemTime) -> SystemTime {
        let id = id(identity);
        if id != self.id {
            self.id.clone_from(&id);
            (self.window, self.ask_again) = (None, now);
            self.fraction = fraction();
        }
        if let Some(id) = id.filter(|_| self.ask_again <= now && self.failures == 0) {
            let asked = async {
                let orders = self.orders(store).await?;
                orders.renewal_window(&id).await
            };
            let again = match asked.await {
                Ok((start, end, again)) => {
                    self.window = Some((start, end));
                    again.clamp(MIN_ASK_INTERVAL, MAX_ASK_INTERVAL)
                }
                Err(error) => {
                    let error = log_text(&error_chain(&error).to_string());
                    debug!(error, "could not get a renewal time from the CA");
                    MAX_SLEEP
                }
            };
            self.ask_again = now + again;
        }
        renewal::due(identity.summary(), self.window, self.fraction, self.issued)
    }

    fn renewed(&mut self) {
        let now = SystemTime::now();
        (self.failures, self.issued) = (0, now);
        let end = match Identity::stored(&self.config, now) {
            Ok(Some(identity)) => Some(UtcDate(identity.not_after()).to_string()),
            Ok(None) | Err(_) => None,
        };
        info!(
            names = self.config.names.join(", "),
            not_after = end,
            "certificate issued"
        );
        self.reports.note(&self.config, |report| {
            report.renewed += 1;
            report.failure = None;
        });
        self.reload_now.notify_one();
    }

    /// Records a failure, and returns how long to wait.
    fn failed(&mut self, error: String, now: SystemTime) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let wait = renewal::back_off(self.failures, self.retry_after.take(), fraction());
        let error = log_text(&error);
        warn!(
            names = self.config.names.join(", "),
            error,
            retry_seconds = wait.as_secs(),
            "no certificate from the CA"
        );
        self.reports.note(&self.config, |report| {
            report.failed += 1;
            report.failure = Some(error);
            report.next = Some(now + wait);
        });
        wait
    }
}

/// How the CA knows this certificate. `None` if the certificate does not say which key of the CA has signed it.
fn id(identity: &Identity) -> Option<CertificateIdentifier<'static>> {
    let (issuer, serial) = identity.issuer_and_serial()?;
    let id = CertificateIdentifier::new(Der::from_slice(&issuer), Der::from_slice(&serial));
    Some(id.into_owned())
}

/// Text that holds words of the CA, for the log and the status page.
fn log_text(error: &str) -> String {
    escape(error, MAX_ERROR_CHARS).to_string()
}

/// A random number from 0 to 1.
fn fraction() -> f64 {
    let mut bytes = [0; 4];
    // It fails only without entropy, and then spreads nothing.
    rand::fill(&mut bytes).ok();
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// How often a store is tried that another process has.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the certificate in the store is looked at.
const MAX_SLEEP: Duration = Duration::from_secs(60 * 60);
/// RFC 9773 §4.3.2.
const MIN_ASK_INTERVAL: Duration = Duration::from_secs(60);
const MAX_ASK_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_ERROR_CHARS: usize = 600;

#[cfg(test)]
mod tests;
