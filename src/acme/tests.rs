//! The renewal without a CA: every attempt fails, as when the directory is down.

use std::{fs, net::TcpListener, path::PathBuf};

use standin::{
    TempDir,
    pki::{Ca, Identity},
};
use tokio::time::{Instant, advance};

use super::*;

/// A directory at which nothing listens.
fn config(store: PathBuf) -> AcmeConfig {
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = format!("https://{}/dir", port.local_addr().unwrap());
    AcmeConfig {
        names: vec!["kube.test".into()],
        email: None,
        directory,
        directory_ca: None,
        external_account: None,
        http01_listen: None,
        profile: None,
        store,
    }
}

fn renewal(config: &AcmeConfig) -> Renewal {
    let config = config.clone();
    let reports = Arc::default();
    Renewal::new(
        config,
        Arc::default(),
        Arc::default(),
        Arc::default(),
        reports,
    )
}

fn store(config: &AcmeConfig, identity: &Identity) -> Vec<u8> {
    let text = format!("{}{}", identity.key_pem(), identity.chain_pem());
    fs::create_dir_all(&config.store).unwrap();
    fs::write(config.certificate_file(), &text).unwrap();
    text.into_bytes()
}

/// Stores a certificate that ends in ten minutes, and began years ago.
fn store_old(config: &AcmeConfig) -> Vec<u8> {
    let soon = SystemTime::now() + Duration::from_secs(600);
    store(
        config,
        &Ca::new("CA").leaf(&["kube.test"]).valid_until(soon).build(),
    )
}

#[tokio::test(start_paused = true)]
async fn directory_that_is_down_leaves_the_certificate_in_use() {
    let dir = TempDir::new();
    let config = config(dir.path().join("store"));
    let text = store_old(&config);
    let opened = Store::open(&config.store).unwrap();
    let mut renewal = renewal(&config);
    let began = Instant::now();
    let mut waits = Vec::new();
    for _ in 0..14 {
        let wait = renewal.step(&opened).await;
        waits.push(wait.as_secs());
        advance(wait).await;
    }
    // The whole window of a certificate that lives for six days.
    assert!(began.elapsed() > Duration::from_secs(2 * 24 * 60 * 60));
    assert_eq!(waits[0], 60);
    assert!((90..=120).contains(&waits[1]), "{waits:?}");
    let grows = |pair: &[u64]| pair[0] <= pair[1];
    assert!(waits[..10].windows(2).all(grows), "{waits:?}");
    let last = 9 * 60 * 60..=12 * 60 * 60;
    assert!(waits[11..].iter().all(|wait| last.contains(wait)));
    assert_eq!(fs::read(config.certificate_file()).unwrap(), text);
    let report = renewal.reports.of(&config).unwrap();
    assert_eq!((report.renewed, report.failed), (0, 14));
    let failure = report.failure.unwrap();
    assert!(
        failure.starts_with("cannot connect to 127.0.0.1:"),
        "{failure}"
    );
    assert!(report.next.unwrap() > SystemTime::now());
}

#[tokio::test(start_paused = true)]
async fn certificate_for_other_names_is_ordered_again_at_once() {
    let dir = TempDir::new();
    let config = config(dir.path().join("store"));
    // It is fresh, so only its name is a reason to renew it.
    store(&config, &Ca::new("CA").server(&["old.test"]));
    let opened = Store::open(&config.store).unwrap();
    let mut renewal = renewal(&config);
    assert_eq!(renewal.step(&opened).await, Duration::from_secs(60));
    assert_eq!(renewal.failures, 1);
    // The operator restores the certificate from a backup. The CA is asked for a window again, at once.
    store(&config, &Ca::new("CA").server(&["kube.test"]));
    assert_eq!(renewal.step(&opened).await, Duration::ZERO);
    assert_eq!(renewal.step(&opened).await, MAX_SLEEP);
    assert_eq!(renewal.failures, 0);
    assert_eq!(renewal.reports.of(&config).unwrap().failure, None);
}

/// The clock of the machine is wrong, or that of the CA.
#[tokio::test]
async fn new_certificate_that_is_old_is_not_ordered_again_at_once() {
    let dir = TempDir::new();
    let config = config(dir.path().join("store"));
    store_old(&config);
    let opened = Store::open(&config.store).unwrap();
    let mut renewal = renewal(&config);
    renewal.renewed();
    assert_eq!(renewal.step(&opened).await, MAX_SLEEP);
    assert_eq!(renewal.failures, 0);
}

#[tokio::test]
async fn fresh_certificate_is_left_alone() {
    let dir = TempDir::new();
    let config = config(dir.path().join("store"));
    store(&config, &Ca::new("CA").server(&["kube.test"]));
    let opened = Store::open(&config.store).unwrap();
    let mut renewal = renewal(&config);
    assert_eq!(renewal.step(&opened).await, MAX_SLEEP);
    assert_eq!(renewal.failures, 0);
}

#[test]
fn words_of_the_ca_are_bounded_and_escaped() {
    let text = log_text(&format!("no\u{1b}[2J\n{}", "x".repeat(10_000)));
    assert!(text.starts_with("no\\u{1b}[2J\\n"), "{text}");
    assert!(text.chars().count() <= MAX_ERROR_CHARS + 1);
}
