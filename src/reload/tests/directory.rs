//! Clusters of a directory: which of them a reload adds, keeps and removes.

use super::*;

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
        assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_none());
    }

    clusters.write("c", "https://192.0.2.1:6443");
    assert!(
        reloader.reload(&source, |_| Ok(()), year(2025)).is_some(),
        "added"
    );
    assert_eq!(hosts(&reloader), ["a: a.test", "b: b.test", "c: c.test"]);
    assert_eq!(reloader.changes().clusters, ["c: new"]);
    assert!(Arc::ptr_eq(&a, &reloader.clusters()[0]), "keeps its leases");

    clusters.write("b", "https://192.0.2.9:6443");
    assert!(
        reloader.reload(&source, |_| Ok(()), year(2025)).is_some(),
        "changed"
    );
    assert_eq!(reloader.changes().clusters, ["b: settings"]);
    assert!(!Arc::ptr_eq(&b, &reloader.clusters()[1]));

    clusters.remove("c");
    assert!(
        reloader.reload(&source, |_| Ok(()), year(2025)).is_some(),
        "removed"
    );
    assert_eq!(hosts(&reloader), ["a: a.test", "b: b.test"]);
    assert!(Arc::ptr_eq(&a, &reloader.clusters()[0]));

    let loads = clusters.world.loads.load(Ordering::Relaxed);
    for _ in 0..3 {
        assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_none());
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
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_some());
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
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_some());
    assert_eq!(hosts(&reloader), ["a: a.other.test", "b: b.other.test"]);
    let rules = |at: usize| reloader.config().clusters[at].access.clone();
    assert_eq!(rules(0), rules(1));

    clusters.write("b", "https://192.0.2.7:6443");
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_some());
    assert_eq!(reloader.config().clusters[1].upstream_host, "192.0.2.7");
    assert!(reloader.material().cluster_problems.is_empty());

    clusters.world.dir.write("clusters/b.yaml", "");
    reloader.reload(&source, |_| Ok(()), year(2025));
    clusters.remove("b");
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_some());
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
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_some());
    assert_eq!(hosts(&reloader), ["a: a.test", "b: b.test"]);
    let b = Arc::clone(&reloader.clusters()[1]);
    own("no PEM again");
    reloader.reload(&source, |_| Ok(()), year(2025));
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
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_some());
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
    let snapshot = reloader.reload(&source, |_| Ok(()), year(2025)).unwrap();
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
    assert!(reloader.reload(&source, |_| Ok(()), year(2025)).is_none());
    assert_eq!(hosts(&reloader), ["a: a.test"]);
    let failure = reloader.report.failure.as_deref().unwrap();
    assert!(failure.contains("/clusters: no such file"), "{failure}");
    std::fs::rename(&away, &path).unwrap();
    reloader.reload(&source, |_| Ok(()), year(2025));
    assert_eq!(reloader.report.failure, None);
}
