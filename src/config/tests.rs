//! What configuration comes out of flags, file, kubeconfig and pod; refusals are in `cli::tests`.

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
    ClusterConfig, Config, Environment, HostPattern, IdentityFiles, Limits, LogConfig, LogFormat,
    ServeArgs, Timeouts, TrustSource, load, schema, units, url::UpstreamUrl,
};
use crate::scratch::Scratch;

fn outside_of_a_pod() -> Environment {
    Environment {
        service_host: None,
        service_port: None,
        service_account: "/nowhere".into(),
        cpus: NonZeroUsize::new(3).unwrap(),
        open_files: 1024,
    }
}

/// Flags that suffice to start, with paths that need not exist.
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
    let scratch = Scratch::new();
    let args = ServeArgs {
        config: Some(scratch.file("proxy.yaml", text)),
        ..args
    };
    load(&args, &outside_of_a_pod()).unwrap()
}

fn of_kubeconfig(scratch: &Scratch, text: &str, context: Option<&str>) -> ClusterConfig {
    let args = ServeArgs {
        upstream: None,
        upstream_ca: None,
        kubeconfig: Some(scratch.file("etc/kubeconfig", text)),
        context: context.map(ToOwned::to_owned),
        ..enough()
    };
    let mut config = load(&args, &outside_of_a_pod()).unwrap();
    assert_eq!(config.clusters.len(), 1);
    config.clusters.remove(0)
}

fn name(text: &'static str) -> ServerName<'static> {
    ServerName::try_from(text).unwrap()
}

#[test]
fn flags_alone_give_the_defaults() {
    let config = load(&enough(), &outside_of_a_pod()).unwrap();
    assert_eq!(
        config,
        Config {
            listen: vec!["[::]:8443".parse().unwrap()],
            workers: NonZeroUsize::new(3).unwrap(),
            identities: vec![IdentityFiles {
                certificate: "/tls.crt".into(),
                key: "/tls.key".into(),
            }],
            clusters: vec![ClusterConfig {
                name: "default".to_owned(),
                hosts: Vec::new(),
                upstream_host: "10.0.0.1".to_owned(),
                upstream_port: 6443,
                path_prefix: String::new(),
                expected_name: name("10.0.0.1"),
                trust: TrustSource::File("/ca.crt".into()),
            }],
            limits: Limits {
                connections: 384,
                handshakes: 3 * 2 * 64,
                ..Limits::default()
            },
            timeouts: Timeouts::default(),
            log: LogConfig {
                format: LogFormat::Text,
                filter: "info".to_owned(),
                access: true,
            },
        }
    );
}

#[test]
fn every_flag_arrives() {
    let args = ServeArgs {
        listen: vec!["127.0.0.1:0".to_owned(), ":443".to_owned()],
        hosts: vec![
            "Kube.Example.com.".to_owned(),
            "kube.example.com".to_owned(),
        ],
        upstream: Some("https://Api.Internal/k8s/clusters/c-1/".to_owned()),
        upstream_name: Some("kubernetes.default.svc".to_owned()),
        workers: Some("7".to_owned()),
        drain_timeout: Some("0s".to_owned()),
        log_format: Some("json".to_owned()),
        log_level: Some("warn,kube_tls_proxy=debug".to_owned()),
        no_access_log: true,
        ..enough()
    };
    let config = load(&args, &outside_of_a_pod()).unwrap();
    let listen: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:0", "[::]:443"]);
    assert_eq!(config.workers.get(), 7);
    assert_eq!(config.limits.handshakes, 7 * 2 * 64);
    assert_eq!(config.timeouts.drain, Duration::ZERO);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.filter, "warn,kube_tls_proxy=debug");
    assert!(!config.log.access);
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
    let config = load(&args, &outside_of_a_pod()).unwrap();
    let expected = env::current_dir().unwrap().join("tls.crt");
    assert_eq!(config.identities[0].certificate, expected);
}

#[test]
fn a_flag_replaces_what_the_file_says() {
    let text = "
listen: ['[::]:1', '[::]:2']
workers: 5
certificates: [{certificate: file.crt, key: file.key}]
timeouts: {drain: 1m, handshake: 2s}
log: {format: json, filter: debug, access: true}
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
    assert!(plain.identities[0].key.ends_with("file.key"));
    assert_eq!(plain.timeouts.drain, Duration::from_secs(60));
    assert_eq!(plain.log.format, LogFormat::Json);
    assert_eq!(plain.log.filter, "debug");

    let flagged = with_config(
        ServeArgs {
            listen: vec![":3".to_owned()],
            workers: Some("6".to_owned()),
            drain_timeout: Some("2m".to_owned()),
            log_format: Some("text".to_owned()),
            log_level: Some("warn".to_owned()),
            no_access_log: true,
            ..enough()
        },
        text,
    );
    assert_eq!(flagged.listen, ["[::]:3".parse().unwrap()]);
    assert_eq!(flagged.workers.get(), 6);
    assert_eq!(flagged.identities.len(), 1);
    assert_eq!(flagged.identities[0].key, Path::new("/tls.key"));
    assert_eq!(flagged.timeouts.drain, Duration::from_secs(120));
    assert_eq!(flagged.timeouts.handshake, Duration::from_secs(2));
    assert_eq!(flagged.log.format, LogFormat::Text);
    assert_eq!(flagged.log.filter, "warn");
    assert!(!flagged.log.access);
}

#[test]
fn several_clusters_each_in_its_own_way() {
    let scratch = Scratch::new();
    scratch.file("sa/ca.crt", "any");
    scratch.file(
        "sub/kubeconfig",
        "current-context: x
contexts: [{name: x, context: {cluster: x}}, {name: y, context: {cluster: y}}]
clusters:
- {name: x, cluster: {server: 'https://x', certificate-authority: x.crt}}
- {name: y, cluster: {server: 'https://y', certificate-authority: y.crt}}
",
    );
    let config = scratch.file(
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
        ..outside_of_a_pod()
    };
    let config = load(&args, &env).unwrap();
    let etc = scratch.path().join("etc");
    assert_eq!(config.identities[0].certificate, etc.join("tls.crt"));
    assert_eq!(config.identities[0].key, Path::new("/abs/tls.key"));
    let expected = [
        ClusterConfig {
            name: "one".to_owned(),
            hosts: vec!["*.one.example".to_owned(), "2001:db8::1".to_owned()],
            upstream_host: "fd00::1".to_owned(),
            upstream_port: 6443,
            path_prefix: "/p".to_owned(),
            expected_name: name("fd00::1"),
            trust: TrustSource::File(etc.join("../one.crt")),
        },
        ClusterConfig {
            name: "two".to_owned(),
            hosts: vec!["two.example".to_owned()],
            upstream_host: "y".to_owned(),
            upstream_port: 443,
            path_prefix: String::new(),
            expected_name: name("y"),
            trust: TrustSource::File(etc.join("../sub/y.crt")),
        },
        ClusterConfig {
            name: "three".to_owned(),
            hosts: vec!["three.example".to_owned()],
            upstream_host: "fd00::2".to_owned(),
            upstream_port: 443,
            path_prefix: String::new(),
            expected_name: name("kubernetes.default.svc"),
            trust: TrustSource::File(scratch.path().join("sa/ca.crt")),
        },
    ];
    assert_eq!(config.clusters, expected);
}

#[test]
fn flags_win_over_kubeconfig_over_pod() {
    let scratch = Scratch::new();
    scratch.file("ca.crt", "any");
    let env = Environment {
        service_host: Some("10.96.0.1".to_owned()),
        service_port: Some("443".to_owned()),
        service_account: scratch.path().to_owned(),
        ..outside_of_a_pod()
    };
    let host = |args: &ServeArgs| load(args, &env).unwrap().clusters[0].upstream_host.clone();
    let mut args = enough();
    assert_eq!(host(&args), "10.0.0.1");
    args.upstream = None;
    args.upstream_ca = None;
    assert_eq!(host(&args), "10.96.0.1");
    args.kubeconfig = Some(scratch.file("kubeconfig", KUBECONFIG));
    assert_eq!(host(&args), "api.example");
}

#[test]
fn a_kubeconfig_gives_url_ca_and_name() {
    let scratch = Scratch::new();
    let cluster = of_kubeconfig(&scratch, KUBECONFIG, None);
    assert_eq!(cluster.name, "prod");
    assert_eq!(cluster.upstream_host, "api.example");
    assert_eq!(cluster.upstream_port, 6443);
    assert_eq!(cluster.path_prefix, "/k8s/clusters/c-1");
    assert_eq!(cluster.expected_name, name("kubernetes.default.svc"));
    let TrustSource::Inline { pem, origin } = cluster.trust else {
        panic!("data wins over a file");
    };
    assert_eq!(pem, b"the CA\n");
    let file = scratch.path().join("etc/kubeconfig");
    assert_eq!(
        origin,
        format!("cluster `prod` in kubeconfig {}", file.display())
    );

    let other = of_kubeconfig(&scratch, KUBECONFIG, Some("lab"));
    assert_eq!(other.name, "lab");
    assert_eq!(other.expected_name, name("192.0.2.1"));
    let beside = scratch.path().join("etc/pki/lab.crt");
    assert_eq!(other.trust, TrustSource::File(beside));
}

#[test]
fn a_kubeconfig_may_be_json_and_its_base64_folded() {
    let scratch = Scratch::new();
    let long = "x".repeat(90);
    let encoded = BASE64_STANDARD.encode(&long);
    let (first, second) = encoded.split_at(64);
    let yaml = format!(
        "current-context: a
contexts: [{{name: a, context: {{cluster: a}}}}]
clusters:
- name: a
  cluster:
    server: https://a
    certificate-authority-data: |
      {first}
      {second}
"
    );
    let json = serde_json::json!({
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "u"}}],
        "clusters": [{"name": "a", "cluster": {
            "server": "https://a", "certificate-authority-data": encoded,
        }}],
        "users": null,
    });
    for text in [yaml, json.to_string()] {
        let TrustSource::Inline { pem, .. } = of_kubeconfig(&scratch, &text, None).trust else {
            panic!("{text}");
        };
        assert_eq!(pem, long.as_bytes(), "{text}");
    }
}

#[test]
fn nothing_of_a_kubeconfig_s_credentials_is_kept() {
    let scratch = Scratch::new();
    let cluster = of_kubeconfig(&scratch, KUBECONFIG, None);
    assert!(KUBECONFIG.contains("canary"));
    assert!(!format!("{cluster:?}").contains("canary"));
    // Nor is it in an error, not even in the debug text of one.
    let broken = KUBECONFIG.replace("token: canary", "token: \"canary\n  : [");
    let args = ServeArgs {
        upstream: None,
        upstream_ca: None,
        kubeconfig: Some(scratch.file("broken", broken)),
        ..enough()
    };
    let error = load(&args, &outside_of_a_pod()).unwrap_err();
    let text = format!("{error:?} {}", sentence(&error));
    assert!(text.contains("line 2"), "{text}");
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn the_example_file_shows_the_defaults() {
    let file = repository("config/kube-tls-proxy.yaml");
    let args = ServeArgs {
        config: Some(file),
        ..ServeArgs::default()
    };
    let shown = load(&args, &outside_of_a_pod()).unwrap();
    let defaults = load(&enough(), &outside_of_a_pod()).unwrap();
    assert_eq!(shown.listen, defaults.listen);
    assert_eq!(shown.workers, defaults.workers);
    assert_eq!(shown.limits, defaults.limits);
    assert_eq!(shown.timeouts, defaults.timeouts);
    assert_eq!(shown.log, defaults.log);
    assert_eq!(shown.identities.len(), 1);
    assert_eq!(shown.clusters.len(), 1);
    assert_eq!(shown.clusters[0].hosts, ["kube.example.com"]);
}

/// The values of the commented-out alternatives, too, must be what the parser takes.
#[test]
fn the_commented_parts_of_the_example_file_load() {
    let scratch = Scratch::new();
    let text = fs::read_to_string(repository("config/kube-tls-proxy.yaml")).unwrap();
    let mut uncommented = String::new();
    for line in text.lines() {
        let key = line.trim_start().strip_prefix("# ").is_some_and(|rest| {
            let key = rest.trim_start().trim_start_matches("- ");
            let word = key.split(':').next().unwrap();
            key.contains(": ") && word.chars().all(char::is_alphanumeric) && word != "Default"
        });
        let line = if key {
            line.replacen("# ", "", 1)
        } else {
            line.to_owned()
        };
        uncommented.push_str(&line);
        uncommented.push('\n');
    }
    scratch.file(
        "staging.conf",
        KUBECONFIG.replace("name: lab, context", "name: staging-admin, context"),
    );
    scratch.file("ca.crt", "any");
    let args = ServeArgs {
        config: Some(scratch.file("proxy.yaml", &uncommented)),
        ..ServeArgs::default()
    };
    let env = Environment {
        service_host: Some("10.96.0.1".to_owned()),
        service_port: Some("443".to_owned()),
        service_account: scratch.path().to_owned(),
        ..outside_of_a_pod()
    };
    let config =
        load(&args, &env).unwrap_or_else(|error| panic!("{}\n{uncommented}", sentence(&error)));
    let names: Vec<_> = config
        .clusters
        .iter()
        .map(|cluster| &cluster.name)
        .collect();
    assert_eq!(names, ["prod", "staging", "here"]);
    assert_eq!(config.workers.get(), 2);
    assert_eq!(config.limits, Limits::for_machine(config.workers, 1024));
}

#[test]
fn example_file_and_docs_show_every_key() {
    let text = fs::read_to_string(repository("config/kube-tls-proxy.yaml")).unwrap();
    let docs = fs::read_to_string(repository("docs/configuration.md")).unwrap();
    let mut keys = Vec::new();
    property_names(&schema(), &mut keys);
    assert!(keys.len() > 40, "{keys:?}");
    for key in keys {
        let shown = text.lines().any(|line| {
            let line = line.trim_start_matches(['#', ' ', '-']);
            line.strip_prefix(&key)
                .is_some_and(|rest| rest.starts_with(':'))
        });
        let spellings = [
            format!("`{key}`"),
            format!(".{key}`"),
            format!("`{key}:"),
            format!("`{key}["),
        ];
        assert!(
            spellings.iter().any(|spelling| docs.contains(spelling)),
            "docs/configuration.md does not show `{key}`"
        );
        assert!(shown, "config/kube-tls-proxy.yaml does not show `{key}`");
    }
}

#[test]
fn the_committed_schema_is_current() {
    let file = repository("config/kube-tls-proxy.schema.json");
    let mut current = serde_json::to_string_pretty(&schema()).unwrap();
    current.push('\n');
    if env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&file, &current).unwrap();
    }
    assert!(
        fs::read_to_string(&file).unwrap_or_default() == current,
        "config/kube-tls-proxy.schema.json is stale: UPDATE_SCHEMA=1 cargo test committed_schema"
    );
}

/// Each default in the tables of the docs is the one that the program has.
#[test]
fn the_docs_show_the_defaults() {
    let docs = fs::read_to_string(repository("docs/configuration.md")).unwrap();
    let mut text = String::new();
    let mut section = "";
    let mut keys = 0;
    for line in docs.lines() {
        section = match line {
            "## Limits" => "limits",
            "## Timeouts" => "timeouts",
            _ if line.starts_with("## ") => "",
            _ => section,
        };
        let mut cells = line
            .split(" | ")
            .map(|cell| cell.trim_matches(['|', ' ', '`']));
        if let (Some(key), Some(value)) = (cells.next(), cells.next())
            && !section.is_empty()
            && value.starts_with(|char: char| char.is_ascii_digit())
            && !value.contains(' ')
        {
            text.push_str(&format!("{section}.{key} {value}\n"));
            keys += 1;
        }
    }
    assert_eq!(keys, 21, "{text}");
    let yaml = |section: &str| -> String {
        let prefix = format!("{section}.");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        lines
            .map(|line| format!("  {}\n", line.replacen(' ', ": ", 1)))
            .collect()
    };
    let shown = format!("limits:\n{}timeouts:\n{}", yaml("limits"), yaml("timeouts"));
    let defaults = load(&enough(), &outside_of_a_pod()).unwrap();
    assert_eq!(with_config(enough(), &shown), defaults);
}

#[test]
fn a_section_whose_keys_are_all_commented_out_is_as_if_absent() {
    let config = with_config(enough(), "limits:\ntimeouts:\nlog:\nlisten:\nclusters:\n");
    assert_eq!(config, load(&enough(), &outside_of_a_pod()).unwrap());
}

#[test]
fn connections_follow_the_open_files() {
    let connections = |files| Limits::for_machine(NonZeroUsize::MIN, files).connections;
    assert_eq!(connections(1024), 384);
    assert_eq!(connections(1_048_576), 100_000);
    assert_eq!(connections(usize::MAX), 100_000);
    assert_eq!(connections(0), 1);
}

#[test]
fn reads_durations() {
    let seconds = Duration::from_secs;
    for (text, expected) in [
        ("500ms", Duration::from_millis(500)),
        ("5s", seconds(5)),
        ("10m", seconds(600)),
        ("1h30m", seconds(5400)),
        ("1m1s1ms", Duration::from_millis(61_001)),
        ("0s", Duration::ZERO),
        ("8760h", seconds(365 * 86_400)),
    ] {
        assert_eq!(units::duration(text).unwrap(), expected, "{text}");
    }
    for text in [
        "",
        "5",
        "s",
        "5S",
        "5 s",
        " 5s",
        "-5s",
        "+5s",
        "5s5",
        "1.5s",
        "5sec",
        "5µs",
        "8761h",
        "18446744073709551615h",
        "99999999999999999999s",
        "٥s",
    ] {
        assert!(units::duration(text).is_err(), "{text}");
    }
}

#[test]
fn reads_sizes() {
    let replay = |size: &str| {
        let text = format!("limits: {{replayBytes: {size}}}");
        with_config(enough(), &text).limits.replay_bytes
    };
    assert_eq!(replay("0"), 0);
    assert_eq!(replay("4096"), 4096);
    assert_eq!(replay("'4096'"), 4096);
    assert_eq!(replay("7B"), 7);
    assert_eq!(replay("64KiB"), 65_536);
    assert_eq!(replay("2 MiB"), 2_097_152);
}

#[test]
fn reads_hosts() {
    for (text, expected) in [
        ("kube.example.com", "kube.example.com"),
        ("KUBE.example.COM.", "kube.example.com"),
        ("*.example.com", "*.example.com"),
        ("*.internal", "*.internal"),
        ("localhost", "localhost"),
        ("a_b.example", "a_b.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
    ] {
        assert_eq!(text.parse::<HostPattern>().unwrap().to_string(), expected);
    }
    let long = format!("{}.example", "a".repeat(64));
    for text in [
        "",
        ".",
        "*",
        "*.",
        "a..b",
        "-a.example",
        "a-.example",
        "*.*.example",
        "a.*.example",
        "a*.example",
        "a.example:443",
        "https://a.example",
        "a.example/",
        "a b",
        "192.0.2.256",
        "1",
        "a.example..",
        "ä.example",
        "a\n",
        &long,
    ] {
        assert!(text.parse::<HostPattern>().is_err(), "{text}");
    }
}

#[test]
fn reads_upstream_urls() {
    for (text, host, port, prefix) in [
        ("https://api", "api", 443, ""),
        ("HTTPS://Api.Example./", "api.example", 443, ""),
        ("https://192.0.2.1:6443", "192.0.2.1", 6443, ""),
        ("https://[2001:db8::1]", "2001:db8::1", 443, ""),
        ("https://[2001:db8::1]:6443/a", "2001:db8::1", 6443, "/a"),
        ("https://a/b/c-1%20x//", "a", 443, "/b/c-1%20x"),
    ] {
        let url: UpstreamUrl = text.parse().unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.prefix.as_str()),
            (host, port, prefix)
        );
        assert_eq!(url.name, ServerName::try_from(host.to_owned()).unwrap());
    }
    for text in [
        "",
        "https",
        "https:",
        "https:/a",
        "https:///a",
        "https://:443",
        "https://a:",
        "https://a b",
        "https://[::1",
        "https://::1]",
        "https://[::1]a",
        "https://[192.0.2.1]",
        "https://a:443:443",
        "https://a/ä",
        "https://a/b c",
        "https://a/./b",
        "https://*.a",
        "ftp://a",
        "https://a\\b",
    ] {
        assert!(text.parse::<UpstreamUrl>().is_err(), "{text}");
    }
}

#[test]
fn a_password_in_a_url_is_not_repeated() {
    for text in [
        "https://u:canary@a",
        "http://canary@a/?x",
        "u:canary@a",
        "canary://u:canary@a",
    ] {
        let error = text.parse::<UpstreamUrl>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{text}");
    }
}

/// The error and its causes.
fn sentence(error: &dyn Error) -> String {
    let causes = error.source().map(|cause| format!(": {}", sentence(cause)));
    format!("{error}{}", causes.unwrap_or_default())
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The names of all properties in a JSON Schema.
fn property_names(schema: &Value, names: &mut Vec<String>) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                if let ("properties", Value::Object(properties)) = (key.as_str(), value) {
                    names.extend(properties.keys().cloned());
                }
                property_names(value, names);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| property_names(item, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
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
