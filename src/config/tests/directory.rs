//! Clusters from a directory: which files are read, and what an error in one of them stops.

use super::*;
use crate::config::ClusterDirectory;

/// A directory of clusters beside a configuration file.
struct Directory(TempDir);

impl Directory {
    /// With these files in it.
    fn new(files: &[(&str, &str)]) -> Self {
        let scratch = TempDir::new();
        fs::create_dir(scratch.path().join("clusters.d")).unwrap();
        for (name, text) in files {
            scratch.write(&format!("clusters.d/{name}"), text);
        }
        Self(scratch)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("clusters.d")
    }

    /// What this configuration file gives, or its error with all causes.
    fn load(&self, text: &str) -> Result<Config, String> {
        let args = ServeArgs {
            config: Some(self.0.write("proxy.yaml", text)),
            upstream: None,
            upstream_ca: None,
            ..enough()
        };
        let dir = self.0.path().display().to_string();
        let loaded = load(&args, &outside_pod());
        loaded.map_err(|error| {
            crate::text::error_chain(&error)
                .to_string()
                .replace(&dir, "DIR")
        })
    }

    /// The directory as [`FROM`] gives it.
    fn from(&self) -> (Vec<ClusterConfig>, ClusterDirectory) {
        let config = self.load(FROM).unwrap();
        (config.clusters, config.directory.unwrap())
    }

    /// The problems of its files.
    fn problems(&self, text: &str) -> Vec<String> {
        let dir = self.0.path().display().to_string();
        let unusable = self.load(text).unwrap().directory.unwrap().unusable;
        let problems = unusable.into_iter().map(|unusable| unusable.problem);
        problems.map(|text| text.replace(&dir, "DIR")).collect()
    }
}

const FROM: &str = "clustersFrom: {directory: clusters.d, hostTemplate: \"{name}.kube.example\"}\n";

/// A kubeconfig whose current context has this cluster and a user with a token.
fn kubeconfig(cluster: &str) -> String {
    format!(
        "current-context: a\ncontexts: [{{name: a, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{token: {TOKEN}}}}}]\n"
    )
}

const TOKEN: &str = "never-printed-secret";
const GOOD: &str = "server: \"https://api.example:6443\", certificate-authority: pki/ca.crt, tls-server-name: kubernetes";

#[test]
fn kubeconfig_in_directory_is_a_cluster_with_its_host() {
    let directory = Directory::new(&[("Prod-1.yaml", &kubeconfig(GOOD))]);
    let (clusters, listed) = directory.from();
    let [cluster] = clusters.as_slice() else {
        panic!("{clusters:?}");
    };
    let file = directory.path().join("Prod-1.yaml");
    assert_eq!(cluster.name, "Prod-1");
    assert_eq!(cluster.hosts, ["prod-1.kube.example"]);
    assert_eq!(cluster.upstream_host, "api.example");
    assert_eq!(cluster.expected_name, name("kubernetes"));
    assert_eq!(
        cluster.trust,
        TrustSource::File(directory.path().join("pki/ca.crt"))
    );
    assert_eq!(cluster.file.as_ref(), Some(&file));
    assert_eq!(listed.unusable, []);
}

#[test]
fn only_kubeconfigs_of_the_directory_are_read() {
    let read = [
        "a",
        "b.yaml",
        "c.yml",
        "d.json",
        "e.conf",
        "f.config",
        "g.kubeconfig",
    ];
    let skipped = [
        "#h#",
        "h.bak",
        "h.swp",
        "h.yaml.orig",
        "h.yaml~",
        "h~",
        "README.md",
        "ca.crt",
        "tls.key",
    ];
    let hidden = [".a.yaml.swp", "..2026_11_30", ".hidden.yaml"];
    let good = kubeconfig(GOOD);
    let all: Vec<_> = [&read[..], &skipped, &hidden].concat();
    let files: Vec<_> = all.into_iter().map(|name| (name, &*good)).collect();
    let directory = Directory::new(&files);
    fs::create_dir(directory.path().join("folder.yaml")).unwrap();
    let (clusters, listed) = directory.from();
    let names: Vec<_> = clusters.iter().map(|cluster| &*cluster.name).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g"]);
    let mut expected = [&skipped[..], &["folder.yaml"]].concat();
    expected.sort_unstable();
    assert_eq!(listed.skipped, expected);
}

/// A mounted Secret has links through `..data`, whose target is replaced as a whole.
#[test]
fn links_of_a_mounted_secret_are_read_once() {
    let directory = Directory::new(&[]);
    let data = directory.path().join("..2026");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("prod.yaml"), kubeconfig(GOOD)).unwrap();
    std::os::unix::fs::symlink("..2026", directory.path().join("..data")).unwrap();
    let link = directory.path().join("prod.yaml");
    std::os::unix::fs::symlink("..data/prod.yaml", &link).unwrap();
    let (clusters, listed) = directory.from();
    let files: Vec<_> = clusters
        .iter()
        .map(|cluster| cluster.file.clone())
        .collect();
    assert_eq!(files, [Some(link)]);
    assert_eq!((listed.skipped, listed.unusable), (vec![], vec![]));
}

/// A reload has to see a change of each, and of the directory.
#[test]
fn directory_and_its_files_are_sources() {
    let directory = Directory::new(&[("a.yaml", &kubeconfig(GOOD)), ("b.yaml", "")]);
    let config = directory.load(FROM).unwrap();
    let file = |name: &str| directory.path().join(name);
    let proxy = directory.0.path().join("proxy.yaml");
    let expected = [proxy, directory.path(), file("a.yaml"), file("b.yaml")];
    assert_eq!(config.sources, expected);
}

#[test]
fn bad_file_stops_its_own_cluster_only() {
    let good = kubeconfig(GOOD);
    let files = [
        ("empty.yaml", String::new()),
        ("good.yaml", good.clone()),
        (
            "insecure.yaml",
            kubeconfig("server: \"https://a:1\", insecure-skip-tls-verify: true"),
        ),
        (
            "plain.yaml",
            kubeconfig("server: \"http://a:1\", certificate-authority: ca.crt"),
        ),
        (
            "secret.yaml",
            format!("users: [{{name: u, user: {{token: [{TOKEN}}}}}]"),
        ),
        ("two words.yaml", good.clone()),
        ("ünix.yaml", good.clone()),
        ("-dash.yaml", good),
    ];
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, &**text)).collect();
    let directory = Directory::new(&files);
    std::os::unix::fs::symlink("nothing", directory.path().join("dangling.yaml")).unwrap();
    let (clusters, listed) = directory.from();
    let names: Vec<_> = clusters.iter().map(|cluster| &*cluster.name).collect();
    assert_eq!(names, ["good"]);
    let kept: Vec<_> = listed
        .unusable
        .iter()
        .map(|unusable| unusable.public.is_some())
        .collect();
    assert_eq!(kept, [false, true, true, true, true, true, false, false]);
    let problems = directory.problems(FROM);
    let name = "the file name is not a valid cluster name";
    for (problem, (file, words)) in problems.iter().zip([
        ("-dash", name),
        ("dangling", "no such file"),
        ("empty", "the file is empty"),
        ("insecure", "sets insecure-skip-tls-verify: true"),
        ("plain", "`http://a:1` is not an https URL"),
        ("secret", "fix the YAML there"),
        ("two words", name),
        ("ünix", name),
    ]) {
        assert!(
            problem.starts_with(&format!("kubeconfig DIR/clusters.d/{file}.yaml")),
            "{problem}"
        );
        assert!(problem.contains(words), "{problem}");
        assert!(!problem.contains(TOKEN), "{problem}");
    }
}

/// A choice between two files could send tokens to the wrong apiserver.
#[test]
fn two_files_with_one_name_give_no_cluster() {
    let good = kubeconfig(GOOD);
    for (one, other) in [("a.yaml", "a.conf"), ("a.yaml", "A.yaml")] {
        let directory = Directory::new(&[(one, &good), (other, &good), ("b", &good)]);
        let (clusters, listed) = directory.from();
        let names: Vec<_> = clusters.iter().map(|cluster| &*cluster.name).collect();
        assert_eq!(names, ["b"]);
        assert_eq!(listed.unusable.len(), 2);
        let problem = &directory.problems(FROM)[0];
        assert!(problem.contains("has several files"), "{problem}");
    }
}

#[test]
fn cluster_of_the_file_wins_and_both_places_are_named() {
    let directory = Directory::new(&[("prod.yaml", &kubeconfig(GOOD))]);
    for (entry, words) in [
        (
            "name: prod, hosts: [x.example]",
            "there is already a cluster `prod` (config file DIR/proxy.yaml, line 2, column 12)",
        ),
        (
            "name: x, hosts: [Prod.kube.example]",
            "host `prod.kube.example` of this file belongs to cluster `x`, which has `prod.kube.example` (config file DIR/proxy.yaml, line 2, column 30)",
        ),
        (
            "name: x, hosts: [\"*.kube.example\"]",
            "host `prod.kube.example` of this file belongs to cluster `x`, which has `*.kube.example` (config file DIR/proxy.yaml, line 2, column 30)",
        ),
    ] {
        let upstream = "upstream: {url: \"https://10.0.0.1\", ca: ca.crt}";
        let text = format!("{FROM}clusters: [{{{entry}, {upstream}}}]\n");
        let config = directory.load(&text).unwrap();
        assert_eq!(config.clusters.len(), 1, "only that of the file");
        assert_eq!(config.clusters[0].file, None);
        let unusable = &config.directory.unwrap().unusable;
        assert_eq!(unusable[0].public, None, "its last good state ends");
        let problem = &directory.problems(&text)[0];
        let expected = format!("kubeconfig DIR/clusters.d/prod.yaml: {words}");
        assert!(problem.starts_with(&expected), "{problem}");
    }
}

#[test]
fn access_of_directory_applies_to_each_cluster() {
    let good = kubeconfig(GOOD);
    let directory = Directory::new(&[("a", &good), ("b", &good)]);
    let text = FROM.replace("}\n", ", access: [{deny: {verbs: [delete]}}]}\n");
    let config = directory.load(&text).unwrap();
    assert!(
        config
            .clusters
            .iter()
            .all(|cluster| cluster.access.len() == 1)
    );
    let about: Vec<_> = config
        .warnings
        .iter()
        .filter(|text| text.contains("clustersFrom"))
        .collect();
    assert_eq!(about.len(), 1, "once, and not for each cluster: {about:?}");
}

/// Requests for a cluster whose file is gone would go to the one that is left.
#[test]
fn no_cluster_is_the_sole_one_beside_a_directory() {
    let directory = Directory::new(&[("a", &kubeconfig(GOOD))]);
    let config = directory.load(FROM).unwrap();
    assert_eq!(config.clusters.len(), 1);
    assert_eq!(config.sole_cluster(), None);
    let upstream = "upstream: {url: \"https://10.0.0.1\", ca: ca.crt}";
    let error = directory.load(&format!("{FROM}clusters: [{{name: x, {upstream}}}]\n"));
    assert!(error.unwrap_err().contains("cluster `x` has no `hosts`"));
}

#[test]
fn empty_directory_is_valid_and_gives_a_warning() {
    let config = Directory::new(&[]).load(FROM).unwrap();
    assert_eq!(config.clusters, []);
    assert!(
        config.warnings[0].contains("/clusters.d has no kubeconfig"),
        "{:?}",
        config.warnings
    );
}

/// Up to 999 clusters have metrics of their own.
#[test]
fn directory_of_1000_files_is_refused() {
    let directory = Directory::new(&[]);
    for number in 0..1000 {
        let name = format!("clusters.d/c{number}");
        directory.0.write(&name, "");
    }
    let error = directory.load(FROM).unwrap_err();
    assert!(error.contains("has more than 999 kubeconfigs"), "{error}");
    fs::remove_file(directory.path().join("c0")).unwrap();
    assert_eq!(directory.problems(FROM).len(), 999);
}

#[test]
fn bad_directory_section_is_refused_with_its_place() {
    let directory = Directory::new(&[]);
    directory.0.write("file", "");
    let section = |text: &str| format!("clustersFrom: {{{text}}}\n");
    let host = "hostTemplate: \"{name}.kube.example\"";
    for (section, words) in [
        (section(host), "line 1, column 16: `directory` is missing"),
        (
            section("directory: clusters.d"),
            "line 1, column 27: `hostTemplate` is missing",
        ),
        (
            section(&format!("directory: none, {host}")),
            "directory DIR/none: no such file; check the path",
        ),
        (
            section(&format!("directory: file, {host}")),
            "DIR/file is not a directory; give the directory",
        ),
        (
            section("directory: clusters.d, hostTemplate: kube.example"),
            "`kube.example` has no `{name}`",
        ),
        (
            section("directory: clusters.d, hostTemplate: \"{name}.kube example\""),
            "`{name}.kube example` does not become a host name",
        ),
        (
            section("directory: clusters.d, hostTemplate: \"*.{name}.example\""),
            "does not become a host name",
        ),
        (
            section("directory: clusters.d, hostTemplate: \"{name}\""),
            "does not become a host name",
        ),
        (
            section(&format!("directory: clusters.d, {host}, access: [{{}}]")),
            "line 1, column",
        ),
        (
            section(&format!("directory: clusters.d, {host}, context: a")),
            "unknown key `context`",
        ),
    ] {
        let error = directory.load(&section).unwrap_err();
        assert!(
            error.starts_with("config file DIR/proxy.yaml, line 1"),
            "{error}"
        );
        assert!(error.contains(words), "{error}\n{words}");
    }
}

#[test]
fn flag_for_the_apiserver_beside_a_directory_is_refused() {
    let directory = Directory::new(&[]);
    let args = ServeArgs {
        config: Some(directory.0.write("proxy.yaml", FROM)),
        ..enough()
    };
    let error = load(&args, &outside_pod()).unwrap_err().to_string();
    assert!(
        error.starts_with("--upstream and `clustersFrom` in "),
        "{error}"
    );
}

#[test]
fn path_template_gives_each_cluster_a_prefix() {
    let good = kubeconfig(GOOD);
    let directory = Directory::new(&[("A", &good), ("b.yaml", &good)]);
    let both = "hostTemplate: kube.example, pathPrefix: \"/clusters/{name}\"";
    for (templates, hosts) in [
        ("pathPrefix: \"/clusters/{name}\"", &[][..]),
        (both, &["kube.example"]),
    ] {
        let text = format!("clustersFrom: {{directory: clusters.d, {templates}}}\n");
        let clusters = directory.load(&text).unwrap().clusters;
        let prefixes = clusters
            .iter()
            .map(|cluster| cluster.public_prefix.as_deref());
        let prefixes: Vec<_> = prefixes.collect();
        assert_eq!(prefixes, [Some("/clusters/A"), Some("/clusters/b")]);
        assert!(
            clusters.iter().all(|cluster| cluster.hosts == hosts),
            "{clusters:?}"
        );
    }
    for (templates, words) in [
        ("pathPrefix: /clusters", "`/clusters` has no `{name}`"),
        (
            "pathPrefix: \"{name}\"",
            "`{name}` does not become a path prefix",
        ),
        (
            "pathPrefix: \"/a/../{name}\"",
            "does not become a path prefix",
        ),
        (
            "pathPrefix: \"/{name}\", hostTemplate: \"a b\"",
            "`a b` does not become a host name",
        ),
    ] {
        let text = format!("clustersFrom: {{directory: clusters.d, {templates}}}\n");
        let error = directory.load(&text).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    let upstream = "upstream: {url: \"https://10.0.0.1\", ca: ca.crt}";
    let from = format!("clustersFrom: {{directory: clusters.d, {both}}}\n");
    for (entry, words) in [
        ("hosts: [kube.example], pathPrefix: /other", None),
        (
            "pathPrefix: /clusters/b/c",
            Some(
                "path prefix `/clusters/b` overlaps with `/clusters/b/c` of cluster `x` (config file DIR/proxy.yaml, line 2",
            ),
        ),
        (
            "hosts: [kube.example]",
            Some("host `kube.example` of this file belongs to cluster `x`"),
        ),
    ] {
        let text = format!("{from}clusters: [{{name: x, {entry}, {upstream}}}]\n");
        let problems = directory.problems(&text);
        match words {
            None => assert!(problems.is_empty(), "{problems:?}"),
            Some(words) => assert!(
                problems.iter().any(|text| text.contains(words)),
                "{problems:?}"
            ),
        }
    }
}
