//! What is read from a kubeconfig, and that nothing else is kept.

use super::*;

#[test]
fn flags_win_over_kubeconfig_over_pod() {
    let scratch = TempDir::new();
    scratch.write("ca.crt", "any");
    let env = Environment {
        service_host: Some("10.96.0.1".to_owned()),
        service_port: Some("443".to_owned()),
        service_account: scratch.path().to_owned(),
        ..outside_pod()
    };
    let host = |args: &ServeArgs| load(args, &env).unwrap().clusters[0].upstream_host.clone();
    let mut args = enough();
    assert_eq!(host(&args), "10.0.0.1");
    args.upstream = None;
    args.upstream_ca = None;
    assert_eq!(host(&args), "10.96.0.1");
    args.kubeconfig = Some(scratch.write("kubeconfig", KUBECONFIG));
    assert_eq!(host(&args), "api.example");
}

#[test]
fn kubeconfig_gives_url_ca_and_name() {
    let scratch = TempDir::new();
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
    let in_same_directory = scratch.path().join("etc/pki/lab.crt");
    assert_eq!(other.trust, TrustSource::File(in_same_directory));
}

#[test]
fn kubeconfig_may_be_json_with_folded_base64() {
    let scratch = TempDir::new();
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
fn no_credential_of_kubeconfig_is_kept() {
    let scratch = TempDir::new();
    let cluster = of_kubeconfig(&scratch, KUBECONFIG, None);
    assert!(KUBECONFIG.contains("canary"));
    assert!(!format!("{cluster:?}").contains("canary"));
    // Neither is it in an error, nor in the debug text of one.
    let broken = KUBECONFIG.replace("token: canary", "token: \"canary\n  : [");
    let args = ServeArgs {
        upstream: None,
        upstream_ca: None,
        kubeconfig: Some(scratch.write("broken", broken)),
        ..enough()
    };
    let error = load(&args, &outside_pod()).unwrap_err();
    let text = format!("{error:?} {}", sentence(&error));
    assert!(text.contains("line 2"), "{text}");
    assert!(!text.contains("canary"), "{text}");
}

/// The smallest kubeconfig that works; MORE is replaced.
const SMALL: &str = "
current-context: a
contexts:
- {name: a, context: {cluster: c}}
CONTEXTS
clusters:
- {name: c, cluster: {server: 'https://a', certificate-authority: ca.crt}}
CLUSTERS
users:
USERS
";

/// kubectl reads all of these.
#[test]
fn unused_parts_of_a_kubeconfig_do_not_decide() {
    let scratch = TempDir::new();
    for (contexts, clusters, users) in [
        ("", "", ""),
        ("- {name: b}", "- {name: d}", "- {name: u}"),
        ("- ~", "- ~", "- ~"),
        (
            "- {name: b, context: ~}",
            "- {name: d, cluster: ~}",
            "- {name: u, user: ~}",
        ),
        (
            "- {context: {cluster: c}}",
            "- {cluster: {server: 'http://b'}}",
            "- {user: {}}",
        ),
        (
            "- {name: ~, context: {user: u2, namespace: ~, cluster: ~}}",
            "",
            "",
        ),
        (
            "",
            "- {name: d, cluster: {server: ~, certificate-authority-data: '%'}}",
            "",
        ),
        ("", "", "- {name: u, user: {token: a, token: b}}"),
    ] {
        let text = SMALL
            .replace("CONTEXTS", contexts)
            .replace("CLUSTERS", clusters)
            .replace("USERS", users);
        let cluster = of_kubeconfig(&scratch, &text, None);
        assert_eq!(cluster.upstream_host, "a", "{text}");
    }
    let unnamed = ["CONTEXTS", "CLUSTERS", "USERS"]
        .iter()
        .fold(SMALL.to_owned(), |text, key| text.replace(key, ""))
        .replace("current-context: a", "current-context: ''")
        .replace("name: a", "name: ''");
    let cluster = of_kubeconfig(&scratch, &unnamed, None);
    assert_eq!(cluster.upstream_host, "a");
}

#[test]
fn kubeconfig_of_any_editor_is_read() {
    let scratch = TempDir::new();
    let text = ["CONTEXTS", "CLUSTERS", "USERS"]
        .iter()
        .fold(SMALL.to_owned(), |text, key| text.replace(key, "# no more"));
    let utf16 = |bom: u16, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
        let text = text.encode_utf16();
        [bom].into_iter().chain(text).flat_map(bytes).collect()
    };
    for (case, bytes) in [
        (
            "document markers",
            format!("# first\n---\n{text}---\n").into_bytes(),
        ),
        (
            "end marker",
            format!("%YAML 1.2\n--- # c\n{text}...\n---\n# c\n\n").into_bytes(),
        ),
        (
            "CRLF",
            format!("{text}---\n").replace('\n', "\r\n").into_bytes(),
        ),
        ("byte-order mark", format!("\u{feff}{text}").into_bytes()),
        ("UTF-16, little end first", utf16(0xfeff, u16::to_le_bytes)),
        ("UTF-16, big end first", utf16(0xfeff, u16::to_be_bytes)),
    ] {
        let args = ServeArgs {
            upstream: None,
            upstream_ca: None,
            kubeconfig: Some(scratch.write("kubeconfig", bytes)),
            ..enough()
        };
        let config = load(&args, &outside_pod())
            .unwrap_or_else(|error| panic!("{case}: {}", sentence(&error)));
        assert_eq!(config.clusters[0].upstream_host, "a", "{case}");
    }
    for bytes in [&b"\xff\xfea"[..], b"\xff\xfe\x00\xd8", b"a: \xff"] {
        let args = ServeArgs {
            upstream: None,
            upstream_ca: None,
            kubeconfig: Some(scratch.write("kubeconfig", bytes)),
            ..enough()
        };
        let error = load(&args, &outside_pod()).unwrap_err();
        assert!(
            sentence(&error).ends_with("save it as UTF-8"),
            "{}",
            sentence(&error)
        );
    }
}
