//! Certificates by ACME in flags and file.

use std::path::Path;

use super::*;
use crate::config::{AcmeConfig, CertificateSource, ExternalAccount};

fn acme(config: &Config) -> &AcmeConfig {
    config.identities[0].acme().unwrap()
}

fn without_files() -> ServeArgs {
    ServeArgs {
        certificates: Vec::new(),
        keys: Vec::new(),
        ..enough()
    }
}

#[test]
fn one_flag_is_enough_for_a_certificate() {
    let args = ServeArgs {
        acme: vec!["Kube.example.com".to_owned(), "192.0.2.1".to_owned()],
        ..without_files()
    };
    let config = load(&args, &outside_pod()).unwrap();
    assert_eq!(
        acme(&config),
        &AcmeConfig {
            names: vec!["kube.example.com".to_owned(), "192.0.2.1".to_owned()],
            email: None,
            directory: "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
            directory_ca: None,
            external_account: None,
            http01_listen: None,
            profile: None,
            store: "/var/lib/kube-tls-proxy".into(),
        }
    );
    // The CA validates there.
    assert_eq!(config.listen, ["[::]:443".parse().unwrap()]);
    let env = Environment {
        state_directory: Some("/var/lib/other".into()),
        ..outside_pod()
    };
    let config = load(&args, &env).unwrap();
    assert_eq!(acme(&config).store, Path::new("/var/lib/other"));
}

#[test]
fn file_says_everything_about_acme() {
    let config = with_config(
        without_files(),
        "
listen: ['[::]:8443']
certificates:
- certificate: a.crt
  key: a.key
- acme:
    domains: [b.test, b.test, 2001:db8::1]
    email: ops@example.com
    directory: https://ca.test:9000/dir
    directoryCa: ca.crt
    eab: {kid: key-1, keyFile: eab.key}
    http01Listen: ':80'
    profile: shortlived
    store: state
",
    );
    let [files, CertificateSource::Acme(acme)] = config.identities.as_slice() else {
        panic!("two certificates");
    };
    let folder = files.files().unwrap().key.parent().unwrap();
    assert_eq!(
        acme,
        &AcmeConfig {
            names: vec!["b.test".to_owned(), "2001:db8::1".to_owned()],
            email: Some("ops@example.com".to_owned()),
            directory: "https://ca.test:9000/dir".to_owned(),
            directory_ca: Some(folder.join("ca.crt")),
            external_account: Some(ExternalAccount {
                key_id: "key-1".to_owned(),
                key_file: folder.join("eab.key"),
            }),
            http01_listen: Some("[::]:80".parse().unwrap()),
            profile: Some("shortlived".to_owned()),
            store: folder.join("state"),
        }
    );
    assert_eq!(
        acme.certificate_file(),
        folder.join("state/certificate.pem")
    );
}

#[test]
fn name_of_a_passthrough_host_is_warned_of() {
    let args = ServeArgs {
        upstream: None,
        upstream_ca: None,
        ..without_files()
    };
    let config = with_config(
        args,
        "
certificates: [{acme: {domains: [a.test, b.test]}}]
clusters:
- name: a
  hosts: [b.test]
  passthrough: true
  upstream: {url: https://10.0.0.1}
",
    );
    let [warning] = config.warnings.as_slice() else {
        panic!("{:?}", config.warnings);
    };
    assert!(
        warning.starts_with("the CA cannot validate b.test "),
        "{warning}"
    );
}

#[test]
fn http_challenge_works_for_a_passthrough_host() {
    let args = ServeArgs {
        upstream: None,
        upstream_ca: None,
        ..without_files()
    };
    let config = with_config(
        args,
        "
certificates:
- acme: {domains: [b.test], http01Listen: '127.0.0.1:80'}
- acme: {domains: [c.test], http01Listen: '127.0.0.1:80', store: c}
clusters:
- name: a
  hosts: [b.test]
  passthrough: true
  upstream: {url: https://10.0.0.1}
",
    );
    assert_eq!(config.warnings, Vec::<String>::new());
    let listen = Some("127.0.0.1:80".parse().unwrap());
    assert_eq!(acme(&config).http01_listen, listen);
    // Clients still find the proxy where they expect it.
    assert_eq!(config.listen, ["[::]:443".parse().unwrap()]);
}

#[test]
fn flag_replaces_the_certificates_of_the_file() {
    let args = ServeArgs {
        acme: vec!["a.test".to_owned()],
        ..without_files()
    };
    let config = with_config(args, "certificates: [{certificate: a, key: b}]\n");
    assert_eq!(config.identities.len(), 1);
    assert_eq!(acme(&config).names, ["a.test"]);
}

#[test]
fn ports_for_http_challenges_are_the_same_or_do_not_overlap() {
    let with_second = |second: &str| {
        let dir = TempDir::new();
        let text = format!(
            "certificates:
- acme: {{domains: [a.test], http01Listen: ':80'}}
- acme: {{domains: [b.test], http01Listen: '{second}', store: b}}
"
        );
        let args = ServeArgs {
            config: Some(dir.write("proxy.yaml", text)),
            ..without_files()
        };
        load(&args, &outside_pod()).map_err(|error| error.to_string())
    };
    with_second("[::]:80").unwrap();
    with_second("127.0.0.1:81").unwrap();
    let refused = with_second("127.0.0.1:80").unwrap_err();
    assert!(
        refused.contains("127.0.0.1:80 and [::]:80 overlap")
            || refused.contains("[::]:80 and 127.0.0.1:80 overlap"),
        "{refused}"
    );
}
