//! The content of a kubeconfig, and what is never copied into it.

mod direct;

use std::path::Path;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use standin::TempDir;

use super::{KubeconfigArgs, compose, missing_credential, output, to_yaml};

const SERVER: &str = "https://kube.example.com:8443/prefix/";

fn args(change: impl FnOnce(&mut KubeconfigArgs)) -> KubeconfigArgs {
    let mut args = KubeconfigArgs {
        server: SERVER.into(),
        ..KubeconfigArgs::default()
    };
    change(&mut args);
    args
}

/// The kubeconfig as a YAML parser reads it, and the remarks.
fn made(args: &KubeconfigArgs) -> (Value, String) {
    let made = compose(args).map_err(|error| error.to_string()).unwrap();
    let content = made.document.alone();
    let read = serde_saphyr::from_str(&to_yaml(&content)).unwrap();
    let remarks = [missing_credential(&content, &made), made.remarks].concat();
    (read, remarks.join("\n"))
}

#[test]
fn kubeconfig_has_public_host_and_no_ca() {
    let (config, remarks) = made(&args(|_| {}));
    assert_eq!(
        config,
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "kube.example.com",
            "clusters": [{ "name": "kube.example.com", "cluster": {
                "server": "https://kube.example.com:8443/prefix", "tls-server-name": "kube.example.com",
            }}],
            "users": [{ "name": "kube.example.com", "user": {} }],
            "contexts": [{ "name": "kube.example.com", "context": {
                "cluster": "kube.example.com", "user": "kube.example.com",
            }}],
        })
    );
    assert!(remarks.contains("has no credential yet"), "{remarks}");
    assert!(
        remarks.contains("client certificate cannot pass"),
        "{remarks}"
    );
}

#[test]
fn server_with_path_of_the_api_is_refused() {
    for path in ["/api", "/api/v1", "/apis/", "/version"] {
        let error = compose(&args(|args| {
            args.server = format!("https://kube.example.com{path}")
        }));
        let error = error.err().unwrap().to_string();
        assert!(error.contains("path of the API"), "{path} {error}");
    }
    let (_, remarks) = made(&args(|_| {}));
    assert!(
        remarks.contains("forwards the path /prefix to"),
        "{remarks}"
    );
    let (_, remarks) = made(&args(|args| {
        args.server = "https://kube.example.com".into()
    }));
    assert!(!remarks.contains("path"), "{remarks}");
}

#[test]
fn ca_and_namespace_are_written() {
    let scratch = TempDir::new();
    let ca = standin::pki::Ca::new("own").pem();
    let file = scratch.write("ca.crt", format!("\u{feff}{ca}"));
    let (config, _) = made(&args(|args| {
        args.ca = Some(file.clone());
        args.namespace = Some("apps".into());
    }));
    let data = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str();
    let data = BASE64_STANDARD.decode(data.unwrap()).unwrap();
    assert_eq!(String::from_utf8(data).unwrap().trim_end(), ca.trim_end());
    assert_eq!(config["contexts"][0]["context"]["namespace"], "apps");
    let key = standin::pki::Identity::self_signed(&["a"])
        .key_pem()
        .to_owned();
    for text in [format!("{ca}{key}"), key, String::new()] {
        scratch.write("ca.crt", text);
        assert!(compose(&args(|args| args.ca = Some(file.clone()))).is_err());
    }
    for flag in ["--namespace", "--name"] {
        let empty = compose(&args(|args| match flag {
            "--name" => args.name = Some(String::new()),
            _ => args.namespace = Some(String::new()),
        }));
        let error = empty.err().unwrap().to_string();
        assert_eq!(
            error,
            format!("{flag} is empty; give a name, or leave the flag out")
        );
    }
}

/// `KUBECONFIG=new:old kubectl config view --flatten` keeps the first cluster of each name.
#[test]
fn names_of_from_are_a_remark() {
    let scratch = TempDir::new();
    let from = scratch.write("from", FROM);
    let remark = "The names are those of --from";
    let (_, remarks) = made(&args(|args| args.from = Some(from.clone())));
    assert!(remarks.contains(remark), "{remarks}");
    let (_, remarks) = made(&args(|args| {
        args.from = Some(from.clone());
        args.name = Some("outside".into());
    }));
    assert!(!remarks.contains(remark), "{remarks}");
}

const FROM: &str = r#"
apiVersion: v1
kind: Config
current-context: prod
contexts:
- name: prod
  context: { cluster: c1, user: "jane: of ops", namespace: apps }
- name: ops
  context: { cluster: c1, user: exec }
- name: cert
  context: { cluster: c1, user: cert }
clusters:
- name: c1
  cluster: { server: "https://10.0.0.1:6443", certificate-authority-data: SECRET-CA }
users:
- name: "jane: of ops"
  user: { token: "123", as: admin, as-groups: [a, "on"] }
- name: exec
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: ./bin/login
      args: ["--flag=a b", "-"]
      env: [{ name: A, value: "1" }]
      interactiveMode: Never
- name: cert
  user: { client-certificate-data: SECRET-CERT, client-key-data: SECRET-KEY, username: u, password: SECRET-WORD }
"#;

#[test]
fn names_namespace_and_token_are_copied() {
    let dir = TempDir::new();
    let file = dir.write("from", FROM);
    let (config, remarks) = made(&args(|args| args.from = Some(file)));
    assert_eq!(
        config["users"],
        json!([{ "name": "jane: of ops", "user": {
            "token": "123", "as": "admin", "as-groups": ["a", "on"],
        }}])
    );
    assert_eq!(
        config["contexts"],
        json!([{ "name": "prod", "context": {
            "cluster": "c1", "user": "jane: of ops", "namespace": "apps",
        }}])
    );
    assert_eq!(config["clusters"][0]["name"], "c1");
    assert!(remarks.contains("contains a token"), "{remarks}");
    assert!(!remarks.contains("certificate"), "{remarks}");
}

#[test]
fn exec_plugin_is_copied_with_an_absolute_path() {
    let dir = TempDir::new();
    let file = dir.write("from", FROM);
    let (config, remarks) = made(&args(|args| {
        args.from = Some(file);
        args.context = Some("ops".into());
        args.name = Some("outside".into());
    }));
    assert_eq!(
        config["users"],
        json!([{ "name": "outside", "user": { "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": dir.path().join("bin/login"),
            "args": ["--flag=a b", "-"],
            "env": [{ "name": "A", "value": "1" }],
            "interactiveMode": "Never",
        }}}])
    );
    assert!(!remarks.contains("contains a token"), "{remarks}");
}

#[test]
fn certificates_passwords_and_ca_are_not_copied() {
    let dir = TempDir::new();
    let file = dir.write("from", FROM);
    let args = args(|args| {
        args.from = Some(file);
        args.context = Some("cert".into());
    });
    let made_alone = compose(&args).map_err(|error| error.to_string()).unwrap();
    let text = to_yaml(&made_alone.document.alone());
    assert!(
        !text.contains("SECRET") && !text.contains("10.0.0.1"),
        "{text}"
    );
    let (config, remarks) = made(&args);
    assert_eq!(config["users"], json!([{ "name": "cert", "user": {} }]));
    assert!(
        remarks.contains("The client certificate of user `cert` was left out"),
        "{remarks}"
    );
    assert!(remarks.contains("kubectl create token"), "{remarks}");
}

#[test]
fn flag_overrides_the_copied_credential() {
    let dir = TempDir::new();
    let (file, token) = (dir.write("from", FROM), dir.write("token", "t0ken\n"));
    let from = args(|args| args.from = Some(file));
    let with_token = KubeconfigArgs {
        token_file: Some(token),
        ..from.clone()
    };
    assert_eq!(
        made(&with_token).0["users"][0]["user"],
        json!({ "token": "t0ken" })
    );
    let with_command = KubeconfigArgs {
        exec_command: Some("kubectl".into()),
        exec_args: vec!["oidc-login".into(), "--x=1".into()],
        ..from
    };
    assert_eq!(
        made(&with_command).0["users"][0]["user"]["exec"],
        json!({
            "apiVersion": "client.authentication.k8s.io/v1", "command": "kubectl",
            "args": ["oidc-login", "--x=1"], "interactiveMode": "IfAvailable",
        })
    );
}

/// As `kubectl config set-credentials --exec-env`.
#[test]
fn variables_of_an_exec_plugin_are_written() {
    let with_env = |pairs: &[&str]| {
        args(|args| {
            args.exec_command = Some("aws".into());
            args.exec_env = pairs.iter().map(ToString::to_string).collect();
        })
    };
    let (config, _) = made(&with_env(&["AWS_PROFILE=prod", "X=a=b", "EMPTY="]));
    assert_eq!(
        config["users"][0]["user"]["exec"]["env"],
        json!([
            { "name": "AWS_PROFILE", "value": "prod" },
            { "name": "X", "value": "a=b" },
            { "name": "EMPTY", "value": "" },
        ])
    );
    for bad in ["", "=x", "s3cret"] {
        let error = compose(&with_env(&["A=b", bad])).err().unwrap().to_string();
        assert!(
            error.starts_with("--exec-env: the value is not a variable; "),
            "{error}"
        );
        assert!(!error.contains("s3cret"));
    }
}

#[test]
fn bad_input_is_explained() {
    let dir = TempDir::new();
    let from = dir.write("from", FROM);
    let (empty, two) = (dir.write("empty", " \n"), dir.write("two", "a b"));
    let sentence = |args: KubeconfigArgs| {
        let error = compose(&args)
            .err()
            .map(|error| crate::cli::sentence(&error));
        error
            .unwrap_or_default()
            .replace(&dir.path().display().to_string(), "DIR")
    };
    for (args, expected) in [
        (
            args(|args| args.server = "http://kube.example.com".into()),
            "--server: `http://kube.example.com` is not an https URL; tokens go over verified TLS only, so write https://HOST:PORT",
        ),
        (
            args(|args| {
                args.from = Some(from.clone());
                args.context = Some("prd".into());
            }),
            "kubeconfig DIR/from: there is no context `prd`; choose one of: prod, ops, cert",
        ),
        (
            args(|args| args.token_file = Some(empty)),
            "--token-file DIR/empty: the file is empty; write the token into it and nothing else",
        ),
        (
            args(|args| args.token_file = Some(two)),
            "--token-file DIR/two: the file does not contain one token; write the token into it as one line and nothing else",
        ),
        (
            args(|args| args.token_file = Some("/nowhere".into())),
            "--token-file /nowhere: no such file; check the path",
        ),
        (
            args(|args| args.name = Some(String::new())),
            "--name is empty; give a name, or leave the flag out",
        ),
    ] {
        assert_eq!(sentence(args), expected);
    }
}

#[test]
fn write_error_is_explained() {
    let dir = TempDir::new();
    let sentence = |file: &Path| {
        let error = super::file::OutputFile::find(file)
            .and_then(|file| file.write("", super::file::FileMode::OwnerOnly))
            .map_err(|error| crate::cli::sentence(&error));
        let sentence = error.err().unwrap_or_default();
        sentence.replace(&dir.path().display().to_string(), "DIR")
    };
    for (file, expected) in [
        (
            dir.path().join("no/jane.conf"),
            "cannot write DIR/no/jane.conf: its directory does not exist; create it, or name another with --output",
        ),
        (
            dir.path().to_owned(),
            "cannot write DIR: is a directory; give the path of a file in it with --output",
        ),
        (
            dir.path().join(".."),
            "cannot write DIR/..: is a directory; give the path of a file in it with --output",
        ),
    ] {
        assert_eq!(sentence(&file), expected);
    }
}

#[test]
fn any_text_survives_a_round_trip() {
    for text in [
        "",
        "a",
        "no",
        "On",
        "~",
        "1",
        "1.5",
        "0x1f",
        "-",
        "- a",
        "a: b",
        "a:",
        "a #b",
        "#",
        "'",
        "\"",
        "\\",
        "é",
        "a\nb",
        "\t",
        " a ",
        "@",
        "%",
        "&a",
        "*a",
        "!",
        "|",
        ">",
        "{}",
        "[]",
        "null",
        "=",
        "<<",
        "a=b",
        "2026-01-01",
        "arn:aws:eks:eu-west-1:1:cluster/a",
        "/path/to",
        "jane@example.com",
        "\u{202e}",
    ] {
        let value = json!({ text: text, "list": [text, { "k": text, text: [] }, {}], "deep": { text: { text: null } } });
        let written = to_yaml(&value);
        let read: Value =
            serde_saphyr::from_str(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
        assert_eq!(read, value, "{written}");
    }
}

/// Merges the kubeconfig of `args` into this file, and returns the user of the result and the remarks.
fn merged_user(existing: &str, mut args: KubeconfigArgs) -> (Value, String) {
    let dir = TempDir::new();
    let file = dir.write("config", existing);
    args.merge = true;
    args.output = Some(file.clone());
    let composed = compose(&args)
        .map_err(|error| crate::cli::sentence(&error))
        .unwrap();
    let remarks = output(&args, composed)
        .map_err(|error| crate::cli::sentence(&error))
        .unwrap();
    let merged: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    (merged["users"][0]["user"].clone(), remarks.join("\n"))
}

const OWN: &str = r#"
clusters: [{ name: mine, cluster: { server: "https://kube.example.com:8443/prefix" } }]
contexts: [{ name: mine, context: { cluster: mine, user: mine } }]
"#;

#[test]
fn merge_without_a_credential_keeps_the_existing_one() {
    let args = || args(|args| args.name = Some("mine".into()));
    for user in [
        json!({ "token": "old" }),
        json!({ "exec": { "command": "login" } }),
        json!({ "tokenFile": "/token", "as": "admin" }),
    ] {
        let existing = format!("{OWN}users: [{{ name: mine, user: {user} }}]\n");
        for force in [false, true] {
            let args = KubeconfigArgs { force, ..args() };
            let (merged, remarks) = merged_user(&existing, args);
            assert_eq!(merged, user);
            assert!(!remarks.contains("no credential yet"), "{remarks}");
        }
    }
    let existing = format!("{OWN}users: [{{ name: mine, user: {{}} }}]\n");
    let (_, remarks) = merged_user(&existing, args());
    assert!(remarks.contains("no credential yet"), "{remarks}");
}

#[test]
fn merge_replaces_credentials_and_keeps_other_keys_of_the_user() {
    let dir = TempDir::new();
    let token = dir.write("token", "new");
    let args = args(|args| {
        args.name = Some("mine".into());
        args.token_file = Some(token);
    });
    let user = json!({
        "as": "admin", "token": "old", "tokenFile": "old", "exec": { "command": "old" }, "extensions": [],
        "client-certificate": "old", "client-certificate-data": "old", "client-key": "old", "client-key-data": "old",
        "username": "old", "password": "old", "auth-provider": { "name": "old" },
    });
    let existing = format!("{OWN}users: [{{ name: mine, user: {user} }}]\n");
    let (merged, _) = merged_user(&existing, args);
    assert_eq!(
        merged,
        json!({ "as": "admin", "token": "new", "extensions": [] })
    );
}

/// client-go gives it to the exec plugin, which fails without it.
#[test]
fn exec_extension_of_the_cluster_is_copied() {
    let dir = TempDir::new();
    let extensions = json!([
        { "name": "client.authentication.k8s.io/exec", "extension": { "audience": "06e3" } },
        { "name": "minikube.sigs.k8s.io", "extension": {} },
    ]);
    let cluster = json!({
        "server": "https://10.0.0.1:6443", "proxy-url": "socks5://10.0.0.2", "disable-compression": true,
        "extensions": extensions,
    });
    let from = json!({
        "current-context": "a", "contexts": [{ "name": "a", "context": { "cluster": "c", "user": "u" } }],
        "clusters": [{ "name": "c", "cluster": cluster }],
        "users": [{ "name": "u", "user": { "exec": { "command": "login", "provideClusterInfo": true } } }],
    });
    let file = dir.write("from", from.to_string());
    let (config, remarks) = made(&args(|args| args.from = Some(file)));
    assert_eq!(
        config["clusters"][0]["cluster"],
        json!({
            "disable-compression": true, "extensions": [extensions[0]],
            "server": "https://kube.example.com:8443/prefix", "tls-server-name": "kube.example.com",
        })
    );
    for part in [
        "The proxy-url of cluster `c` was left out",
        "These extensions of cluster `c` were left out: `minikube.sigs.k8s.io`.",
    ] {
        assert!(remarks.contains(part), "{part} in {remarks}");
    }
}

#[test]
fn every_credential_that_is_left_out_is_named() {
    let dir = TempDir::new();
    for (user, remark) in [
        (
            json!({ "username": "a", "password": "SECRET" }),
            "User name and password of user `u` were left out",
        ),
        (
            json!({ "auth-provider": { "name": "oidc" } }),
            "The auth-provider of user `u` was left out",
        ),
        (
            json!({ "token": "REDACTED" }),
            "`kubectl config view` wrote REDACTED in its place",
        ),
        (
            json!({ "client-certificate": "a" }),
            "The client certificate of user `u` was left out",
        ),
    ] {
        let from = json!({
            "current-context": "a", "contexts": [{ "name": "a", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": user }],
        });
        let file = dir.write("from", from.to_string());
        let (config, remarks) = made(&args(|args| args.from = Some(file)));
        assert_eq!(config["users"], json!([{ "name": "u", "user": {} }]));
        assert!(remarks.contains(remark), "{remarks}");
        assert!(
            !remarks.contains("A client certificate cannot pass"),
            "one cause is enough: {remarks}"
        );
        assert!(!remarks.contains("SECRET"), "{remarks}");
    }
}

#[test]
fn merge_into_a_file_with_duplicate_names_is_refused() {
    let dir = TempDir::new();
    let text = "kind: Config\nusers: [{name: a}, {name: a}]\n";
    let file = dir.write("config", text);
    let args = args(|args| {
        args.merge = true;
        args.output = Some(file.clone());
    });
    let composed = compose(&args).map_err(|error| error.to_string()).unwrap();
    let error = output(&args, composed)
        .err()
        .map(|error| crate::cli::sentence(&error));
    let found = error.unwrap_or_default();
    assert!(found.ends_with("two users have the name `a`, so kubectl refuses this file; rename or remove one of them"), "{found}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), text);
}
