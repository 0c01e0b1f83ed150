//! The result of a reload for each kind of change.

mod directory;

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rustls_pki_types::ServerName;
use standin::{TempDir, pki::Ca};

use super::*;
use crate::{
    cidr::AddressList,
    config::{
        Capacity, ClientCertificatesConfig, ClusterConfig, IdentityFiles, Limits, LogConfig,
        LogFormat, LoggedUser, NamingConfig, PublishConfig, RequestHost, Timeouts, TrustSource,
    },
};

/// The files of a proxy, and a count of how often its configuration was read.
struct World {
    dir: TempDir,
    public: Ca,
    loads: Arc<AtomicUsize>,
}

const HOST: &str = "kube.test";

fn year(year: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs((year - 1970) * 31_556_952)
}

impl World {
    fn new() -> Self {
        let world = Self {
            dir: TempDir::new(),
            public: Ca::new("public"),
            loads: Arc::default(),
        };
        world.public.server(&[HOST]).write(&world.dir, "tls");
        world.dir.write("ca.crt", Ca::new("cluster").pem());
        world
    }

    fn config(&self) -> Config {
        let file = |name: &str| self.dir.path().join(name);
        Config {
            sources: Vec::new(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            trusted_proxies: AddressList::default(),
            reuse_port: false,
            warnings: Vec::new(),
            admin: None,
            hints: true,
            workers: NonZeroUsize::MIN,
            identities: vec![
                IdentityFiles {
                    certificate: file("tls.crt"),
                    key: file("tls.key"),
                }
                .into(),
            ],
            clusters: vec![ClusterConfig {
                name: "test".into(),
                hosts: Vec::new(),
                upstream_host: "192.0.2.1".into(),
                upstream_port: 6443,
                url_place: String::new(),
                addresses: Vec::new(),
                discovery: None,
                path_prefix: String::new(),
                expected_name: ServerName::try_from("kubernetes").unwrap(),
                request_host: RequestHost::Client,
                file: None,
                public_prefix: None,
                passthrough: false,
                trust: TrustSource::File(file("ca.crt")),
                client_certificates: None,
                access: Vec::new(),
                outbound: None,
                publish: None,
            }],
            directory: None,
            limits: Limits::default(),
            capacity: Capacity::default(),
            timeouts: Timeouts::default(),
            log: LogConfig {
                format: LogFormat::Text,
                filter: "info".into(),
                access: true,
                user: LoggedUser::Off,
            },
        }
    }

    fn source(&self) -> ConfigLoader {
        self.source_of(self.config())
    }

    fn source_of(&self, config: Config) -> ConfigLoader {
        let loads = Arc::clone(&self.loads);
        Box::new(move || {
            loads.fetch_add(1, Ordering::Relaxed);
            Ok(config.clone())
        })
    }

    fn start(&self, now: SystemTime) -> (Reloader, ConfigLoader) {
        self.start_with(self.source(), now)
    }

    fn start_with(&self, source: ConfigLoader, now: SystemTime) -> (Reloader, ConfigLoader) {
        let config = source().unwrap();
        let material = Material::load(&config, now).unwrap();
        (Reloader::new(config, material, now).unwrap().0, source)
    }
}

fn serial(reloader: &Reloader) -> String {
    reloader.material().identities[0].summary().sha256.clone()
}

#[test]
fn unchanged_files_are_not_parsed_again() {
    let world = World::new();
    let (mut reloader, source) = world.start(year(2025));
    for _ in 0..5 {
        assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_none());
    }
    let loads = world.loads.load(Ordering::Relaxed);
    assert_eq!(loads, 2, "at the start, and once more for the hash");
    assert_eq!(reloader.report.unchanged, 5);

    world.public.server(&[HOST]).write(&world.dir, "tls");
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_some());
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_none());
    assert_eq!(world.loads.load(Ordering::Relaxed), 3);
    assert_eq!(
        (reloader.report.reloaded, reloader.report.unchanged),
        (1, 6)
    );
}

/// The report shows a new snapshot only after that is in use.
#[test]
fn failure_is_reported_until_next_success() {
    let world = World::new();
    let (mut reloader, source) = world.start(year(2025));
    let report = reloader.report();
    world.dir.write("tls.key", "");
    for failed in 1..=3 {
        assert!(
            reloader
                .reload(&source, |_| Ok(()), year(2025 + failed))
                .is_none()
        );
        reloader.publish();
        let report = report.borrow();
        assert_eq!((report.failed, report.changed), (failed, year(2026)));
        let failure = report.failure.as_deref().unwrap();
        assert!(failure.contains("is empty"), "{failure}");
    }
    world.public.server(&[HOST]).write(&world.dir, "tls");
    let before = serial(&reloader);
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_some());
    assert!(report.borrow().failure.is_some(), "not in use yet");
    reloader.publish();
    assert_eq!(report.borrow().failure, None);
    assert_ne!(
        report.borrow().material.identities[0].summary().sha256,
        before
    );
}

/// After a bad change is undone, the files are those in use again.
#[test]
fn restoring_old_files_clears_failure() {
    let world = World::new();
    let (mut reloader, source) = world.start(year(2025));
    let key = std::fs::read(world.dir.path().join("tls.key")).unwrap();
    world.dir.write("tls.key", "");
    reloader.reload(&source, |_| Ok(()), year(2025));
    assert!(reloader.report.failure.is_some());
    world.dir.write("tls.key", key);
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_none());
    assert_eq!(reloader.report.failure, None);
}

#[test]
fn expired_certificate_replaces_only_expired_one() {
    let world = World::new();
    let expired = world.public.leaf(&[HOST]).expired().build();
    let early = world.public.leaf(&[HOST]).not_yet_valid().build();
    for (new, now, is_taken) in [
        (&expired, year(2025), false),
        (&early, year(2025), false),
        (&expired, year(2031), true),
        (&early, year(2031), true),
    ] {
        let served = world.public.leaf(&[HOST]).valid_until(year(2030));
        served.build().write(&world.dir, "tls");
        let (mut reloader, source) = world.start(year(2025));
        let before = serial(&reloader);
        new.write(&world.dir, "tls");
        let taken = reloader.reload(&source, |_| Ok(()), now).is_some();
        assert_eq!(taken, is_taken, "{:?}", reloader.report.failure);
        assert_eq!(serial(&reloader) != before, is_taken);
        assert_eq!(reloader.report.failure.is_none(), is_taken);
    }
}

/// The same bytes are no longer valid after a certificate expires.
#[test]
fn files_are_parsed_again_after_certificate_expires() {
    let world = World::new();
    let soon = world.public.leaf(&[HOST]).valid_until(year(2030)).build();
    soon.write(&world.dir, "tls");
    let (mut reloader, source) = world.start(year(2025));
    for now in [2025, 2026, 2031, 2032, 2033] {
        reloader.reload(&source, |_| Ok(()), year(now));
    }
    assert_eq!(world.loads.load(Ordering::Relaxed), 3);
    assert_eq!(reloader.report.failure, None, "it is still served");
}

/// Clusters behind one Rancher differ only in their paths. One may be unhealthy while the other is healthy.
#[test]
fn clusters_at_same_address_keep_separate_endpoints() {
    let world = World::new();
    let mut config = world.config();
    let [first] = config.clusters.as_slice() else {
        unreachable!("there is one");
    };
    let below = |path: &str| ClusterConfig {
        name: path.into(),
        hosts: vec![format!("{path}.test")],
        path_prefix: format!("/{path}"),
        ..first.clone()
    };
    config.clusters = vec![below("one"), below("two")];
    let (mut reloader, source) = world.start_with(world.source_of(config), year(2025));
    let before: Vec<_> = reloader.clusters().to_vec();
    world.dir.write("ca.crt", Ca::new("next").pem());
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_some());
    for (old, new) in before.iter().zip(reloader.clusters()) {
        assert!(!Arc::ptr_eq(old, new), "it has another CA");
        assert!(Arc::ptr_eq(old.endpoints(), new.endpoints()));
    }
}

/// `check` finds these too, but an operator who starts the proxy may not have run it.
#[test]
fn certificates_that_clients_reject_give_warnings_at_start() {
    let world = World::new();
    let mut config = world.config();
    let material = Material::load(&config, year(2025)).unwrap();
    assert_eq!(material.warnings(year(2025)), Vec::<String>::new());
    // A private CA is no fault, but users of a published kubeconfig need it.
    config.clusters[0].publish = Some(PublishConfig {
        exec: None,
        ca: None,
    });
    let material = Material::load(&config, year(2025)).unwrap();
    let warnings = material.warnings(year(2025));
    let [published] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    assert!(
        published.starts_with("publish of test: clients that use the kubeconfig reject"),
        "{published}"
    );
    config.clusters[0].publish = None;
    config.clusters[0].hosts = vec![HOST.into(), "other.test".into()];
    standin::pki::Identity::self_signed(&[HOST]).write(&world.dir, "tls");
    let material = Material::load(&config, year(2025)).unwrap();
    let warnings = material.warnings(year(2025));
    let [own, host] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    assert!(
        own.starts_with("the certificate for kube.test is self-signed"),
        "{own}"
    );
    assert!(
        host.starts_with("no certificate is valid for other.test, so clients refuse to connect"),
        "{host}"
    );
}

/// Paths in a file may be relative, and many files are named.
#[test]
fn missing_file_is_named_with_its_line_in_the_configuration() {
    let world = World::new();
    let mut config = world.config();
    let text = "certificates:\n- certificate: tls.crt\n  key: tls.key\nclusters:\n- upstream: {ca: pki/ca.crt}\n";
    config.sources = vec![world.dir.write("proxy.yaml", text)];
    let missing = world.dir.path().join("pki/ca.crt");
    config.clusters[0].trust = TrustSource::File(missing.clone());
    let error = Material::load(&config, year(2025)).unwrap_err();
    let dir = world.dir.path().display();
    assert_eq!(
        error_chain(&error).to_string(),
        format!(
            "{dir}/proxy.yaml, line 5: CA {}: no such file; check the path",
            missing.display()
        )
    );
}

#[test]
fn missing_file_is_named_with_its_line_after_old_one_expired() {
    let world = World::new();
    let served = world.public.leaf(&[HOST]).valid_until(year(2030));
    served.build().write(&world.dir, "tls");
    let mut config = world.config();
    let text = "certificates:\n- certificate: tls.crt\n  key: tls.key\n";
    config.sources = vec![world.dir.write("proxy.yaml", text)];
    let (mut reloader, source) = world.start_with(world.source_of(config), year(2025));
    std::fs::remove_file(world.dir.path().join("tls.crt")).unwrap();
    assert!(reloader.reload(&source, |_| Ok(()), year(2031)).is_none());
    let failure = reloader.report.failure.unwrap();
    assert!(
        failure.contains("/proxy.yaml, line 2: certificate "),
        "{failure}"
    );
}

/// A section whose CA and lists are in files, and whose front proxy has the certificate `a` of another CA.
fn users(world: &World, ca: String, crl: Option<String>) -> ClientCertificatesConfig {
    let proxies = Ca::new("proxies").client("proxy", &[]);
    let (certificate, key) = proxies.write(&world.dir, "a");
    ClientCertificatesConfig {
        ca: world.dir.write("users.crt", ca),
        crl: crl.map(|lists| world.dir.write("users.crl", lists)),
        naming: NamingConfig::FrontProxy(IdentityFiles { certificate, key }),
        allow_system: false,
    }
}

/// Such a CA could name any user to the apiserver.
#[test]
fn client_ca_that_issued_front_proxy_gives_a_warning() {
    let (world, ca) = (World::new(), Ca::new("users"));
    let mut config = world.config();
    config.clusters[0].client_certificates = Some(users(&world, ca.pem(), None));
    let warnings = || {
        Material::load(&config, year(2025))
            .unwrap()
            .warnings(year(2025))
    };
    assert_eq!(warnings(), Vec::<String>::new());
    ca.client("proxy", &[]).write(&world.dir, "a");
    let warnings = warnings();
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    let name = &config.clusters[0].name;
    let beginning = format!("client certificates of {name}: `ca` has also issued");
    assert!(warning.starts_with(&beginning), "{warning}");
}

/// All certificates of that CA are refused, and each of their owners sees only that his own does not work.
#[test]
fn client_ca_without_revocation_list_gives_a_warning() {
    let (world, one, other) = (World::new(), Ca::new("one"), Ca::new("other"));
    let mut config = world.config();
    let list = |ca: &Ca| ca.revocation_list(&[], year(2030));
    let all = one.pem() + &other.pem();
    for (lists, warned) in [
        (None, false),
        (Some(list(&one) + &list(&other)), false),
        (Some(list(&one)), true),
    ] {
        let section = users(&world, all.clone(), lists);
        config.clusters[0].client_certificates = Some(section);
        let material = Material::load(&config, year(2025)).unwrap();
        let sentence = "client certificates of test: `crl` has no list of the CA CN=other, so its client certificates are refused; add the current list of that CA to the file";
        let expected: &[&str] = if warned { &[sentence] } else { &[] };
        assert_eq!(material.warnings(year(2025)), expected);
    }
}
