//! `--direct`: a kubeconfig for a passthrough host.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use super::*;

/// The flags for an admin.conf of kubeadm with this CA.
fn direct_args(dir: &TempDir, ca: &str) -> KubeconfigArgs {
    let file = dir.write(
        "admin.conf",
        format!(
            r#"
current-context: kubernetes-admin@kubernetes
clusters: [{{ name: kubernetes, cluster: {{ server: "https://10.0.0.1:6443", certificate-authority-data: {} }} }}]
contexts: [{{ name: kubernetes-admin@kubernetes, context: {{ cluster: kubernetes, user: kubernetes-admin }} }}]
users: [{{ name: kubernetes-admin, user: {{ client-certificate-data: Y2VydA==, client-key-data: a2V5, client-key: pki/a.key }} }}]
"#,
            BASE64_STANDARD.encode(ca)
        ),
    );
    args(|args| {
        args.server = "https://kube.example.com".into();
        args.from = Some(file);
        args.direct = true;
    })
}

/// `--direct` writes an admin.conf of kubeadm that differs in two lines.
#[test]
fn direct_kubeconfig_keeps_ca_and_client_certificate() {
    let dir = TempDir::new();
    let ca = standin::pki::Ca::new("cluster").pem();
    let direct = |name: Option<&str>| KubeconfigArgs {
        tls_server_name: name.map(str::to_owned),
        ..direct_args(&dir, &ca)
    };
    let (config, remarks) = made(&direct(None));
    assert_eq!(
        config["clusters"][0]["cluster"],
        json!({
            "certificate-authority-data": BASE64_STANDARD.encode(&ca),
            "server": "https://kube.example.com", "tls-server-name": "kubernetes",
        })
    );
    let key = dir.path().join("pki/a.key");
    assert_eq!(
        config["users"][0],
        json!({ "name": "kubernetes-admin", "user": {
            "client-certificate-data": "Y2VydA==", "client-key-data": "a2V5", "client-key": key.to_str().unwrap(),
        }})
    );
    assert!(remarks.contains("contains a private key"), "{remarks}");
    assert!(
        !remarks.contains("left out") && !remarks.contains("no credential"),
        "{remarks}"
    );
    let (config, _) = made(&direct(Some("Kubernetes.Default.svc.")));
    let name = &config["clusters"][0]["cluster"]["tls-server-name"];
    assert_eq!(name, "kubernetes.default.svc");
    for bad in ["*.example.com", "192.0.2.1", "a b", ""] {
        let error = compose(&direct(Some(bad))).err().unwrap().to_string();
        assert!(error.contains("--tls-server-name"), "{bad} {error}");
    }
    let mut with_path = direct(None);
    with_path.server = SERVER.into();
    let error = compose(&with_path).err().unwrap().to_string();
    assert!(error.contains("the URL has a path"), "{error}");
}

#[test]
fn direct_kubeconfig_is_readable_by_its_owner_only() {
    let dir = TempDir::new();
    let output_file = dir.path().join("direct.conf");
    let mut args = direct_args(&dir, &standin::pki::Ca::new("cluster").pem());
    args.output = Some(output_file.clone());
    let write = |args: &KubeconfigArgs| {
        let composed = compose(args).map_err(|error| error.to_string()).unwrap();
        let remarks = output(args, composed).map_err(|error| error.to_string());
        remarks.unwrap().concat()
    };
    let remarks = write(&args);
    assert_eq!(mode_of(&output_file), 0o600);
    assert!(!remarks.contains("private key"), "{remarks}");
    // A key is not merged into a file that others can read.
    fs::set_permissions(&output_file, Permissions::from_mode(0o644)).unwrap();
    args.merge = true;
    for _ in 0..2 {
        write(&args);
        assert_eq!(mode_of(&output_file), 0o600);
    }
}

fn mode_of(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

#[test]
fn direct_kubeconfig_needs_a_ca_and_the_whole_key() {
    let dir = TempDir::new();
    let conf = |cluster: &str, user: &str| {
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: c}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://a', {cluster}}}}}]\nusers: [{{name: c, user: {{{user}}}}}]\n"
        );
        let file = dir.write("conf", text);
        args(|args| {
            args.server = "https://kube.example.com".into();
            args.from = Some(file);
            args.direct = true;
        })
    };
    for (cluster, words) in [
        ("proxy-url: ''", "has no certificate-authority"),
        ("insecure-skip-tls-verify: true", "insecure-skip-tls-verify"),
        ("certificate-authority-data: DATA+OMITTED", "--raw"),
        ("certificate-authority: /no/such/ca.crt", "/no/such/ca.crt"),
    ] {
        let error = compose(&conf(cluster, "token: t")).err().unwrap();
        let error = crate::cli::sentence(&error);
        assert!(error.contains(words), "{cluster}: {error}");
    }
    let ca = BASE64_STANDARD.encode(standin::pki::Ca::new("c").pem());
    let ca = format!("certificate-authority-data: {ca}");
    let (config, remarks) = made(&conf(&ca, "client-key-data: DATA+OMITTED"));
    assert_eq!(config["users"][0]["user"], json!({}));
    assert!(remarks.contains("kubectl config view --raw"), "{remarks}");
}
