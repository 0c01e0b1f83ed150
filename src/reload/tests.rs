//! The result of a reload for each kind of change.

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
                path_prefix: String::new(),
                expected_name: ServerName::try_from("kubernetes").unwrap(),
                request_host: RequestHost::Client,
                file: None,
                public_prefix: None,
                passthrough: false,
                trust: TrustSource::File(file("ca.crt")),
                client_certificates: None,
                access: Vec::new(),
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
        assert!(reloader.reload(|| Ok(source()?), year(2025)).is_none());
    }
    let loads = world.loads.load(Ordering::Relaxed);
    assert_eq!(loads, 2, "at the start, and once more for the hash");
    assert_eq!(reloader.report.unchanged, 5);

    world.public.server(&[HOST]).write(&world.dir, "tls");
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_some());
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_none());
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
                .reload(|| Ok(source()?), year(2025 + failed))
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
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_some());
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
    reloader.reload(|| Ok(source()?), year(2025));
    assert!(reloader.report.failure.is_some());
    world.dir.write("tls.key", key);
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_none());
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
        let taken = reloader.reload(|| Ok(source()?), now).is_some();
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
        reloader.reload(|| Ok(source()?), year(now));
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
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_some());
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
    assert!(reloader.reload(|| Ok(source()?), year(2031)).is_none());
    let failure = reloader.report.failure.unwrap();
    assert!(
        failure.contains("/proxy.yaml, line 2: certificate "),
        "{failure}"
    );
}

/// Such a CA could name any user to the apiserver.
#[test]
fn client_ca_that_issued_front_proxy_gives_a_warning() {
    let (world, users) = (World::new(), Ca::new("users"));
    let mut config = world.config();
    let (certificate, key) = Ca::new("proxies")
        .client("proxy", &[])
        .write(&world.dir, "a");
    config.clusters[0].client_certificates = Some(ClientCertificatesConfig {
        ca: world.dir.write("users.crt", users.pem()),
        crl: None,
        naming: NamingConfig::FrontProxy(IdentityFiles { certificate, key }),
        allow_system: false,
    });
    let warnings = || {
        Material::load(&config, year(2025))
            .unwrap()
            .warnings(year(2025))
    };
    assert_eq!(warnings(), Vec::<String>::new());
    users.client("proxy", &[]).write(&world.dir, "a");
    let warnings = warnings();
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    let name = &config.clusters[0].name;
    let beginning = format!("client certificates of {name}: `ca` has also issued");
    assert!(warning.starts_with(&beginning), "{warning}");
}

/// A proxy whose clusters come from a directory.
struct DirectoryWorld {
    world: World,
    template: &'static str,
    rules: &'static str,
}

impl DirectoryWorld {
    fn new(files: &[&str]) -> Self {
        let world = World::new();
        std::fs::create_dir(world.dir.path().join("clusters")).unwrap();
        let (template, rules) = ("{name}.test", "[{allow: {}}]");
        let this = Self {
            world,
            template,
            rules,
        };
        for file in files {
            this.write(file, "https://192.0.2.1:6443");
        }
        this
    }

    /// Writes the kubeconfig of the cluster `name`.
    fn write(&self, name: &str, server: &str) {
        let text = format!(
            "current-context: a\ncontexts: [{{name: a, context: {{cluster: c}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"{server}\", certificate-authority: ../ca.crt}}}}]\n"
        );
        self.world.dir.write(&format!("clusters/{name}.yaml"), text);
    }

    fn remove(&self, name: &str) {
        let file = format!("clusters/{name}.yaml");
        std::fs::remove_file(self.world.dir.path().join(file)).unwrap();
    }

    /// Writes the configuration file and returns its loader.
    fn source(&self, more: &str) -> ConfigLoader {
        let Self {
            world,
            template,
            rules,
        } = self;
        let text = format!(
            "certificates: [{{certificate: tls.crt, key: tls.key}}]\n\
             clustersFrom: {{directory: clusters, hostTemplate: \"{template}\", access: {rules}}}\n{more}"
        );
        let args = crate::config::ServeArgs {
            config: Some(world.dir.write("proxy.yaml", text)),
            ..Default::default()
        };
        let env = crate::config::Environment::from_process();
        let loads = Arc::clone(&world.loads);
        Box::new(move || {
            loads.fetch_add(1, Ordering::Relaxed);
            crate::config::load(&args, &env)
        })
    }

    fn start(&self) -> (Reloader, ConfigLoader) {
        self.world.start_with(self.source(""), year(2025))
    }
}

/// Name and first host of each cluster.
fn hosts(reloader: &Reloader) -> Vec<String> {
    let clusters = reloader.config().clusters.iter();
    let each = clusters.map(|cluster| format!("{}: {}", cluster.name, cluster.hosts.join(" ")));
    each.collect()
}

#[test]
fn files_of_directory_come_and_go_with_a_reload() {
    let clusters = DirectoryWorld::new(&["a", "b"]);
    let (mut reloader, source) = clusters.start();
    assert_eq!(hosts(&reloader), ["a: a.test", "b: b.test"]);
    let [a, b] = reloader.clusters() else {
        unreachable!("there are two")
    };
    let (a, b) = (Arc::clone(a), Arc::clone(b));
    // The first one after the start always reads everything.
    for _ in 0..2 {
        assert!(reloader.reload(|| Ok(source()?), year(2025)).is_none());
    }

    clusters.write("c", "https://192.0.2.1:6443");
    assert!(
        reloader.reload(|| Ok(source()?), year(2025)).is_some(),
        "added"
    );
    assert_eq!(hosts(&reloader), ["a: a.test", "b: b.test", "c: c.test"]);
    assert_eq!(reloader.changes().clusters, ["c: new"]);
    assert!(Arc::ptr_eq(&a, &reloader.clusters()[0]), "keeps its leases");

    clusters.write("b", "https://192.0.2.9:6443");
    assert!(
        reloader.reload(|| Ok(source()?), year(2025)).is_some(),
        "changed"
    );
    assert_eq!(reloader.changes().clusters, ["b: settings"]);
    assert!(!Arc::ptr_eq(&b, &reloader.clusters()[1]));

    clusters.remove("c");
    assert!(
        reloader.reload(|| Ok(source()?), year(2025)).is_some(),
        "removed"
    );
    assert_eq!(hosts(&reloader), ["a: a.test", "b: b.test"]);
    assert!(Arc::ptr_eq(&a, &reloader.clusters()[0]));

    let loads = clusters.world.loads.load(Ordering::Relaxed);
    for _ in 0..3 {
        assert!(reloader.reload(|| Ok(source()?), year(2025)).is_none());
    }
    let after = clusters.world.loads.load(Ordering::Relaxed);
    assert!(after <= loads + 1, "unchanged files are not parsed again");
}

#[test]
fn bad_cluster_file_keeps_its_last_good_state() {
    let mut clusters = DirectoryWorld::new(&["a", "b"]);
    let (mut reloader, source) = clusters.start();
    let b = Arc::clone(&reloader.clusters()[1]);
    clusters.write("a", "https://192.0.2.9:6443");
    clusters.world.dir.write("clusters/b.yaml", "");
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_some());
    assert_eq!(reloader.config().clusters[0].upstream_host, "192.0.2.9");
    assert!(Arc::ptr_eq(&b, &reloader.clusters()[1]), "with its leases");
    assert_eq!(reloader.report.failure, None);
    let problems = &reloader.material().cluster_problems;
    assert!(
        problems[0].starts_with("b: the last good state stays in use: kubeconfig ")
            && problems[0].contains("/clusters/b.yaml: the file is empty; check the path"),
        "{problems:?}"
    );

    // What the configuration file says applies to it too.
    clusters.rules = "[{deny: {}}]";
    clusters.template = "{name}.other.test";
    let source = clusters.source("");
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_some());
    assert_eq!(hosts(&reloader), ["a: a.other.test", "b: b.other.test"]);
    let rules = |at: usize| reloader.config().clusters[at].access.clone();
    assert_eq!(rules(0), rules(1));

    clusters.write("b", "https://192.0.2.7:6443");
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_some());
    assert_eq!(reloader.config().clusters[1].upstream_host, "192.0.2.7");
    assert!(reloader.material().cluster_problems.is_empty());

    clusters.world.dir.write("clusters/b.yaml", "");
    reloader.reload(|| Ok(source()?), year(2025));
    clusters.remove("b");
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_some());
    assert_eq!(hosts(&reloader), ["a: a.other.test"], "it is gone");
}

#[test]
fn bad_ca_of_cluster_file_is_a_problem_of_that_cluster() {
    let clusters = DirectoryWorld::new(&["a"]);
    let own = |ca: &str| {
        clusters.world.dir.write("own.crt", ca);
        let text = format!(
            "current-context: a\ncontexts: [{{name: a, context: {{cluster: c}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"https://192.0.2.5\", certificate-authority: {}/own.crt}}}}]\n",
            clusters.world.dir.path().display()
        );
        clusters.world.dir.write("clusters/b.yaml", text);
    };
    own("no PEM");
    let (mut reloader, source) = clusters.start();
    assert_eq!(hosts(&reloader), ["a: a.test"], "left out at the start");
    let problems = &reloader.material().cluster_problems;
    assert!(
        problems[0].starts_with("a cluster is left out: kubeconfig "),
        "{problems:?}"
    );
    assert!(
        problems[0].contains("/clusters/b.yaml: CA "),
        "{problems:?}"
    );

    own(&Ca::new("own").pem());
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_some());
    assert_eq!(hosts(&reloader), ["a: a.test", "b: b.test"]);
    let b = Arc::clone(&reloader.clusters()[1]);
    own("no PEM again");
    reloader.reload(|| Ok(source()?), year(2025));
    assert!(Arc::ptr_eq(&b, &reloader.clusters()[1]), "keeps the old CA");
    assert_eq!(reloader.material().cluster_problems.len(), 1);
}

/// Two clusters with one host: tokens could reach either.
#[test]
fn last_good_state_ends_when_another_cluster_has_its_host() {
    let clusters = DirectoryWorld::new(&["a", "b"]);
    let (mut reloader, _) = clusters.start();
    let entry = "clusters: [{name: x, hosts: [b.test], upstream: {url: \"https://192.0.2.3\", ca: ca.crt}}]\n";
    let source = clusters.source(entry);
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_some());
    assert_eq!(hosts(&reloader), ["x: b.test", "a: a.test"]);
    let problems = &reloader.material().cluster_problems;
    assert!(
        problems[0].starts_with("a cluster is left out: "),
        "{problems:?}"
    );
}

/// The certificate of the proxy may have a wildcard for all clusters.
#[test]
fn host_of_removed_file_leads_to_no_other_cluster() {
    let clusters = DirectoryWorld::new(&["a", "b"]);
    clusters
        .world
        .public
        .server(&["*.test"])
        .write(&clusters.world.dir, "tls");
    let (mut reloader, source) = clusters.start();
    clusters.remove("b");
    let snapshot = reloader.reload(|| Ok(source()?), year(2025)).unwrap();
    assert!(snapshot.routes.serves("a.test"));
    assert!(!snapshot.routes.serves("b.test"));
}

/// A directory that is gone is not an empty one.
#[test]
fn unreadable_directory_keeps_all_clusters() {
    let clusters = DirectoryWorld::new(&["a"]);
    let (mut reloader, source) = clusters.start();
    let (path, away) = (
        clusters.world.dir.path().join("clusters"),
        clusters.world.dir.path().join("away"),
    );
    std::fs::rename(&path, &away).unwrap();
    assert!(reloader.reload(|| Ok(source()?), year(2025)).is_none());
    assert_eq!(hosts(&reloader), ["a: a.test"]);
    let failure = reloader.report.failure.as_deref().unwrap();
    assert!(failure.contains("/clusters: no such file"), "{failure}");
    std::fs::rename(&away, &path).unwrap();
    reloader.reload(|| Ok(source()?), year(2025));
    assert_eq!(reloader.report.failure, None);
}
