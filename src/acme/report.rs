//! Reports about the ACME certificates, for health, metrics and the status page.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use crate::config::AcmeConfig;

/// The report about one certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcmeReport {
    /// Its names.
    pub names: Vec<String>,
    /// Certificates that the CA has issued since the start.
    pub renewed: u64,
    /// Attempts that failed since the start.
    pub failed: u64,
    /// When the next attempt begins.
    pub next: Option<SystemTime>,
    /// Why the last attempt failed; `None` if it did not.
    pub failure: Option<String>,
}

/// The reports of all certificates, by their store.
#[derive(Debug, Default)]
pub struct AcmeReports(Mutex<BTreeMap<PathBuf, AcmeReport>>);

impl AcmeReports {
    /// Each report.
    #[must_use]
    pub fn all(&self) -> Vec<AcmeReport> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.values().cloned().collect()
    }

    /// The report of the certificate with this configuration.
    #[must_use]
    pub fn of(&self, config: &AcmeConfig) -> Option<AcmeReport> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.get(&config.store).cloned()
    }

    pub(super) fn note(&self, config: &AcmeConfig, change: impl FnOnce(&mut AcmeReport)) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let report = reports.entry(config.store.clone()).or_default();
        report.names.clone_from(&config.names);
        change(report);
    }

    /// Forgets the certificates that are no longer configured, and adds those that are new.
    pub(super) fn retain<'a>(&self, configured: impl Iterator<Item = &'a AcmeConfig>) {
        let configured: Vec<_> = configured.collect();
        for config in &configured {
            self.note(config, |_| {});
        }
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.retain(|store, _| configured.iter().any(|config| config.store == *store));
    }
}
