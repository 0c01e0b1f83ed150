//! The configuration that flags, file, kubeconfig and pod give. Invalid ones are in `cli::tests`.

mod access;
mod acme;
mod directory;
mod documents;
mod files;
mod kubeconfigs;
mod listen;
mod publish;
mod values;

use std::{
    env,
    error::Error,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls_pki_types::ServerName;
use serde_json::Value;

use super::{
    Capacity, ClusterConfig, Config, ConnectionsBound, Environment, IdentityFiles, Limits,
    LogConfig, LogFormat, LoggedUser, RequestHost, ServeArgs, Timeouts, TrustSource, load, schema,
    units, url::UpstreamUrl,
};
use crate::{cidr::AddressList, memory::MemoryLimit};
use standin::TempDir;

fn outside_pod() -> Environment {
    Environment {
        service_host: None,
        service_port: None,
        service_account: "/nowhere".into(),
        cpus: NonZeroUsize::new(3).unwrap(),
        open_files: 1024,
        memory: MemoryLimit {
            bytes: 1 << 30,
            cgroup: None,
            own_cgroup: None,
        },
        has_kubeconfig: false,
        state_directory: None,
        unknown_variables: Vec::new(),
    }
}

/// The flags that a start needs, with paths that need not exist.
fn enough() -> ServeArgs {
    ServeArgs {
        certificates: vec!["/tls.crt".into()],
        keys: vec!["/tls.key".into()],
        upstream: Some("https://10.0.0.1:6443".to_owned()),
        upstream_ca: Some("/ca.crt".into()),
        ..ServeArgs::default()
    }
}

fn with_config(args: ServeArgs, text: &str) -> Config {
    let scratch = TempDir::new();
    let args = ServeArgs {
        config: Some(scratch.write("proxy.yaml", text)),
        ..args
    };
    let mut config = load(&args, &outside_pod()).unwrap();
    assert_eq!(config.sources, [scratch.path().join("proxy.yaml")]);
    config.sources.clear();
    config
}

fn of_kubeconfig(scratch: &TempDir, text: &str, context: Option<&str>) -> ClusterConfig {
    let args = ServeArgs {
        upstream: None,
        upstream_ca: None,
        kubeconfig: Some(scratch.write("etc/kubeconfig", text)),
        context: context.map(ToOwned::to_owned),
        ..enough()
    };
    let mut config = load(&args, &outside_pod()).unwrap();
    assert_eq!(config.clusters.len(), 1);
    config.clusters.remove(0)
}

fn name(text: &'static str) -> ServerName<'static> {
    ServerName::try_from(text).unwrap()
}

#[test]
fn flags_alone_give_defaults() {
    let config = load(&enough(), &outside_pod()).unwrap();
    assert_eq!(
        config,
        Config {
            sources: Vec::new(),
            listen: vec!["[::]:8443".parse().unwrap()],
            trusted_proxies: AddressList::default(),
            reuse_port: false,
            workers: NonZeroUsize::new(3).unwrap(),
            identities: vec![
                IdentityFiles {
                    certificate: "/tls.crt".into(),
                    key: "/tls.key".into(),
                }
                .into()
            ],
            clusters: vec![ClusterConfig {
                name: "default".to_owned(),
                hosts: Vec::new(),
                upstream_host: "10.0.0.1".to_owned(),
                upstream_port: 6443,
                url_place: "the URL of --upstream".to_owned(),
                addresses: Vec::new(),
                discovery: None,
                path_prefix: String::new(),
                expected_name: name("10.0.0.1"),
                request_host: RequestHost::Client,
                file: None,
                public_prefix: None,
                passthrough: false,
                trust: TrustSource::File("/ca.crt".into()),
                client_certificates: None,
                access: Vec::new(),
                outbound: None,
                publish: None,
            }],
            directory: None,
            limits: Limits {
                connections: 327,
                handshakes: 3 * 2 * 64,
                ..Limits::default()
            },
            capacity: Capacity {
                decided_by: ConnectionsBound::OpenFiles(1024),
                spare_sockets: 218,
                memory: outside_pod().memory,
            },
            timeouts: Timeouts::default(),
            log: LogConfig {
                format: LogFormat::Text,
                filter: "info".to_owned(),
                access: true,
                user: LoggedUser::Off,
            },
            warnings: Vec::new(),
            admin: None,
            hints: true,
        }
    );
}

/// client-go does the same: AKS and Gardener route by this name.
#[test]
fn name_in_the_pod_is_expected_and_an_address_is_not() {
    let scratch = TempDir::new();
    scratch.write("ca.crt", "any");
    let mut args = enough();
    (args.upstream, args.upstream_ca) = (None, None);
    for (host, expected, request_host) in [
        ("10.96.0.1", "kubernetes.default.svc", RequestHost::Client),
        (
            "my-aks-1.hcp.example.io",
            "my-aks-1.hcp.example.io",
            RequestHost::Upstream,
        ),
        (
            "kubernetes.default.svc.cluster.local",
            "kubernetes.default.svc.cluster.local",
            RequestHost::Client,
        ),
    ] {
        let env = Environment {
            service_host: Some(host.to_owned()),
            service_port: Some("443".to_owned()),
            service_account: scratch.path().to_owned(),
            ..outside_pod()
        };
        let cluster = &load(&args, &env).unwrap().clusters[0];
        assert_eq!(cluster.expected_name, name(expected));
        assert_eq!(cluster.request_host, request_host, "{host}");
    }
}

#[test]
fn host_of_requests_follows_from_the_url_or_is_chosen() {
    for (url, by_default) in [
        ("https://10.0.0.1:6443", RequestHost::Client),
        ("https://[fd00::1]", RequestHost::Client),
        ("https://kubernetes", RequestHost::Client),
        ("https://kubernetes.default.svc", RequestHost::Client),
        ("https://kubernetes-api.example", RequestHost::Upstream),
        (
            "https://rancher.example/k8s/clusters/c-1",
            RequestHost::Upstream,
        ),
    ] {
        for (choice, expected) in [
            (None, by_default),
            (Some("client"), RequestHost::Client),
            (Some("upstream"), RequestHost::Upstream),
        ] {
            let args = ServeArgs {
                upstream: Some(url.to_owned()),
                upstream_host: choice.map(ToOwned::to_owned),
                ..enough()
            };
            let config = load(&args, &outside_pod()).unwrap();
            assert_eq!(config.clusters[0].request_host, expected, "{url}");
            let line = choice.map_or_else(String::new, |choice| format!(", host: {choice}"));
            let file =
                format!("clusters: [{{name: a, upstream: {{url: '{url}', ca: ca.crt{line}}}}}]");
            let args = ServeArgs {
                upstream: None,
                upstream_ca: None,
                ..enough()
            };
            let config = with_config(args, &file);
            assert_eq!(config.clusters[0].request_host, expected, "{file}");
        }
    }
}

#[test]
fn every_flag_is_applied() {
    let args = ServeArgs {
        listen: vec!["127.0.0.1:0".to_owned(), ":443".to_owned()],
        hosts: vec![
            "Kube.Example.com.".to_owned(),
            "kube.example.com".to_owned(),
        ],
        upstream: Some("https://Api.Internal/k8s/clusters/c-1/".to_owned()),
        upstream_name: Some("kubernetes.default.svc".to_owned()),
        workers: Some("7".to_owned()),
        drain_delay: Some("1s".to_owned()),
        drain_timeout: Some("0s".to_owned()),
        drain_tunnels: Some("10m".to_owned()),
        reuse_port: Some("true".to_owned()),
        log_format: Some("json".to_owned()),
        log_level: Some("warn,kube_tls_proxy=debug".to_owned()),
        no_access_log: Some("true".to_owned()),
        log_user: Some("subject".to_owned()),
        ..enough()
    };
    let config = load(&args, &outside_pod()).unwrap();
    let listen: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:0", "[::]:443"]);
    assert_eq!(config.workers.get(), 7);
    assert_eq!(config.limits.handshakes, 7 * 2 * 64);
    assert_eq!(config.timeouts.drain_delay, Duration::from_secs(1));
    assert_eq!(config.timeouts.drain, Duration::ZERO);
    assert_eq!(config.timeouts.drain_tunnels, Duration::from_secs(600));
    assert!(config.reuse_port);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.filter, "warn,kube_tls_proxy=debug");
    assert!(!config.log.access);
    assert_eq!(config.log.user, LoggedUser::Subject);
    let cluster = &config.clusters[0];
    assert_eq!(cluster.hosts, ["kube.example.com"]);
    assert_eq!(cluster.upstream_host, "api.internal");
    assert_eq!(cluster.upstream_port, 443);
    assert_eq!(cluster.path_prefix, "/k8s/clusters/c-1");
    assert_eq!(cluster.expected_name, name("kubernetes.default.svc"));
}

#[test]
fn relative_paths_of_flags_become_absolute() {
    let args = ServeArgs {
        certificates: vec!["tls.crt".into()],
        ..enough()
    };
    let config = load(&args, &outside_pod()).unwrap();
    let expected = env::current_dir().unwrap().join("tls.crt");
    assert_eq!(config.identities[0].files().unwrap().certificate, expected);
}

#[test]
fn flag_replaces_value_of_file() {
    let text = "
listen: ['[::]:1', '[::]:2']
workers: 5
certificates: [{certificate: file.crt, key: file.key}]
timeouts: {drain: 1m, handshake: 2s}
log: {format: json, filter: debug, access: true, user: hash}
";
    let plain = with_config(
        ServeArgs {
            certificates: Vec::new(),
            keys: Vec::new(),
            ..enough()
        },
        text,
    );
    assert_eq!(plain.listen.len(), 2);
    assert_eq!(plain.workers.get(), 5);
    assert!(
        plain.identities[0]
            .files()
            .unwrap()
            .key
            .ends_with("file.key")
    );
    assert_eq!(plain.timeouts.drain, Duration::from_secs(60));
    assert_eq!(plain.log.format, LogFormat::Json);
    assert_eq!(plain.log.filter, "debug");
    assert_eq!(plain.log.user, LoggedUser::Hash);

    let flagged = with_config(
        ServeArgs {
            listen: vec![":3".to_owned()],
            workers: Some("6".to_owned()),
            drain_timeout: Some("2m".to_owned()),
            log_format: Some("text".to_owned()),
            log_level: Some("warn".to_owned()),
            no_access_log: Some("true".to_owned()),
            log_user: Some("off".to_owned()),
            ..enough()
        },
        text,
    );
    assert_eq!(flagged.listen, ["[::]:3".parse().unwrap()]);
    assert_eq!(flagged.workers.get(), 6);
    assert_eq!(flagged.identities.len(), 1);
    assert_eq!(
        flagged.identities[0].files().unwrap().key,
        Path::new("/tls.key")
    );
    assert_eq!(flagged.timeouts.drain, Duration::from_secs(120));
    assert_eq!(flagged.timeouts.handshake, Duration::from_secs(2));
    assert_eq!(flagged.log.format, LogFormat::Text);
    assert_eq!(flagged.log.filter, "warn");
    assert!(!flagged.log.access);
    assert_eq!(flagged.log.user, LoggedUser::Off);
}

#[test]
fn clusters_come_from_upstream_kubeconfig_and_pod() {
    let scratch = TempDir::new();
    scratch.write("sa/ca.crt", "any");
    scratch.write(
        "sub/kubeconfig",
        "current-context: x
contexts: [{name: x, context: {cluster: x}}, {name: y, context: {cluster: y}}]
clusters:
- {name: x, cluster: {server: 'https://x', certificate-authority: x.crt}}
- {name: y, cluster: {server: 'https://y', certificate-authority: y.crt}}
",
    );
    let config = scratch.write(
        "etc/proxy.yaml",
        "
certificates: [{certificate: tls.crt, key: /abs/tls.key}]
clusters:
- name: one
  hosts: ['*.One.example', '2001:DB8::1']
  upstream: {url: 'https://[fd00::1]:6443/p', ca: ../one.crt}
- name: two
  hosts: [two.example]
  kubeconfig: ../sub/kubeconfig
  context: y
- name: three
  hosts: [three.example]
  inCluster: true
",
    );
    let args = ServeArgs {
        config: Some(config),
        ..ServeArgs::default()
    };
    let env = Environment {
        service_host: Some("fd00::2".to_owned()),
        service_port: Some("443".to_owned()),
        service_account: scratch.path().join("sa"),
        ..outside_pod()
    };
    let config = load(&args, &env).unwrap();
    let etc = scratch.path().join("etc");
    assert_eq!(
        config.identities[0].files().unwrap().certificate,
        etc.join("tls.crt")
    );
    assert_eq!(
        config.identities[0].files().unwrap().key,
        Path::new("/abs/tls.key")
    );
    let url_in = |file: &str| {
        let file = scratch.path().join(file);
        format!("the URL of the apiserver in {}", file.display())
    };
    let expected = [
        ClusterConfig {
            name: "one".to_owned(),
            hosts: vec!["*.one.example".to_owned(), "2001:db8::1".to_owned()],
            upstream_host: "fd00::1".to_owned(),
            upstream_port: 6443,
            url_place: url_in("etc/proxy.yaml"),
            addresses: Vec::new(),
            discovery: None,
            path_prefix: "/p".to_owned(),
            expected_name: name("fd00::1"),
            request_host: RequestHost::Client,
            file: None,
            public_prefix: None,
            passthrough: false,
            trust: TrustSource::File(etc.join("../one.crt")),
            client_certificates: None,
            access: Vec::new(),
            outbound: None,
            publish: None,
        },
        ClusterConfig {
            name: "two".to_owned(),
            hosts: vec!["two.example".to_owned()],
            upstream_host: "y".to_owned(),
            upstream_port: 443,
            url_place: url_in("etc/../sub/kubeconfig"),
            addresses: Vec::new(),
            discovery: None,
            path_prefix: String::new(),
            expected_name: name("y"),
            request_host: RequestHost::Upstream,
            file: None,
            public_prefix: None,
            passthrough: false,
            trust: TrustSource::File(etc.join("../sub/y.crt")),
            client_certificates: None,
            access: Vec::new(),
            outbound: None,
            publish: None,
        },
        ClusterConfig {
            name: "three".to_owned(),
            hosts: vec!["three.example".to_owned()],
            upstream_host: "fd00::2".to_owned(),
            upstream_port: 443,
            url_place: "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT of the pod".to_owned(),
            addresses: Vec::new(),
            discovery: None,
            path_prefix: String::new(),
            expected_name: name("kubernetes.default.svc"),
            request_host: RequestHost::Client,
            file: None,
            public_prefix: None,
            passthrough: false,
            trust: TrustSource::File(scratch.path().join("sa/ca.crt")),
            client_certificates: None,
            access: Vec::new(),
            outbound: None,
            publish: None,
        },
    ];
    assert_eq!(config.clusters, expected);
}

/// Clients verify the apiserver under the host that they ask for, and so do probes. Only terminated clusters need
/// hosts when there are several.
#[test]
fn passthrough_cluster_needs_no_ca_and_expects_its_host() {
    let text = "
certificates: [{certificate: tls.crt, key: tls.key}]
clusters:
- {name: prod, upstream: {url: 'https://api.example:6443', ca: ca.crt}}
- {name: one, hosts: ['*.one.example', kubernetes], passthrough: true, upstream: {url: 'https://api.example:6443'}}
- {name: two, hosts: ['*.two.example'], passthrough: true, upstream: {url: 'https://api.example', ca: ca.crt}}
";
    let args = ServeArgs {
        certificates: Vec::new(),
        keys: Vec::new(),
        upstream: None,
        upstream_ca: None,
        ..enough()
    };
    let config = with_config(args, text);
    let [prod, one, two] = config.clusters.as_slice() else {
        panic!("{:?}", config.clusters);
    };
    assert!(!prod.passthrough && one.passthrough && two.passthrough);
    assert_eq!(one.trust, TrustSource::Clients);
    assert_eq!(one.expected_name, name("kubernetes"));
    assert!(matches!(two.trust, TrustSource::File(_)));
    assert_eq!(two.expected_name, name("api.example"));
    assert_eq!(two.request_host, RequestHost::Client);
}

#[test]
fn passthrough_past_access_rules_is_a_warning() {
    let warnings = |rules: &str, direct: &str| {
        let text = format!(
            "
certificates: [{{certificate: tls.crt, key: tls.key}}]
clusters:
- {{name: prod, upstream: {{url: 'https://10.0.0.1:6443', ca: ca.crt, addresses: ['10.0.0.9:6443']}}{rules}}}
- {{name: direct, hosts: [kubernetes], passthrough: true, upstream: {{url: 'https://{direct}'}}}}
"
        );
        let args = ServeArgs {
            certificates: Vec::new(),
            keys: Vec::new(),
            upstream: None,
            upstream_ca: None,
            ..enough()
        };
        let warnings = with_config(args, &text).warnings;
        let about = |warning: &String| warning.contains("passthrough hosts of cluster `direct`");
        warnings.iter().filter(|warning| about(warning)).count()
    };
    let rules = ", access: [{allow: {from: [10.0.0.0/8]}}]";
    assert_eq!(warnings(rules, "10.0.0.1:6443"), 1);
    assert_eq!(
        warnings(rules, "a', addresses: ['10.0.0.9:6443'], ca: 'b"),
        1
    );
    assert_eq!(warnings(rules, "10.0.0.2:6443"), 0);
    assert_eq!(warnings("", "10.0.0.1:6443"), 0);
}

#[test]
fn section_without_keys_means_defaults() {
    let config = with_config(enough(), "limits:\ntimeouts:\nlog:\nlisten:\nclusters:\n");
    assert_eq!(config, load(&enough(), &outside_pod()).unwrap());
}

const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
preferences: {}
current-context: prod-admin
contexts:
- {name: prod-admin, context: {cluster: prod, user: admin, namespace: default}}
- {name: lab, context: {cluster: lab, user: admin}}
clusters:
- name: lab
  cluster:
    server: https://192.0.2.1
    certificate-authority: pki/lab.crt
    disable-compression: true
    extensions: [{name: x, extension: {any: thing}}]
- name: prod
  cluster:
    server: https://api.example:6443/k8s/clusters/c-1
    certificate-authority: ignored.crt
    certificate-authority-data: dGhlIENBCg==
    tls-server-name: kubernetes.default.svc
users:
- name: admin
  user:
    token: canary
    client-key-data: canary
    exec: {command: canary}
";

/// The error and its causes.
fn sentence(error: &dyn Error) -> String {
    let causes = error.source().map(|cause| format!(": {}", sentence(cause)));
    format!("{error}{}", causes.unwrap_or_default())
}
