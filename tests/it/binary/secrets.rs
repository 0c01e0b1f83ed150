//! No message repeats a key or a token that was given in the wrong place.
//!
//! The tests take the flags and the keys of the configuration file from the code, so that they cover new ones too.

use std::{fs, net::SocketAddr, process::Output};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Arg, ArgAction, CommandFactory as _};
use kube_tls_proxy::{cli::Cli, config::schema};
use serde_json::{Map, Value, json};
use standin::{pki::Identity, within};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Binary, command, good_flags};
use crate::proxy::{HOST, World};

/// Secrets in the forms in which they are given in place of a path, a name or a number.
struct Secrets {
    values: Vec<(&'static str, String)>,
}

impl Secrets {
    fn new() -> Self {
        let pem = Identity::self_signed(&[HOST]).key_pem().to_owned();
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let jwt = format!(
            "{}.{}.{}",
            "eyJhbGciOiJSUzI1NiIsImtpZCI6InNlY3JldCJ9",
            "eyJpc3MiOiJrdWJlcm5ldGVzL3NlcnZpY2VhY2NvdW50Iiwic3ViIjoic3lzdGVtOnNlcnZpY2VhY2NvdW50OmE6YiJ9",
            "dGhpcy1pcy1ub3QtYS1zaWduYXR1cmUtYnV0LWl0LWlzLWFzLWxvbmctYXMtb25lLXdvdWxkLWJl"
        );
        Self {
            values: vec![
                ("PEM on one line", pem.replace('\n', " ")),
                ("PEM in base64", BASE64_STANDARD.encode(&pem)),
                ("base64 key", body),
                ("JWT", jwt),
                ("PEM", pem),
            ],
        }
    }

    /// Asserts that `printed` has no twelve consecutive characters of a secret.
    #[track_caller]
    fn assert_absent(&self, printed: &str, case: &str) {
        let hidden = |line: &str| line.starts_with("-----");
        for (_, secret) in &self.values {
            for line in secret.lines().filter(|line| !hidden(line)) {
                for word in line.split([' ', '.']).filter(|word| word.len() >= 12) {
                    let leaked = word
                        .as_bytes()
                        .windows(12)
                        .find(|part| printed.contains(std::str::from_utf8(part).unwrap()));
                    assert!(leaked.is_none(), "{case} prints a secret:\n{printed}");
                }
            }
        }
    }
}

async fn run(args: &[String], environment: &[(&str, &str)]) -> Output {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = command(&args);
    command.env("KUBE_TLS_PROXY_LOG_LEVEL", "trace");
    let output = command.envs(environment.iter().copied()).output();
    within("the process to exit", output).await.unwrap()
}

fn printed(output: &Output) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// Flags of a `serve` that fails: its CA file is missing, which is noticed after all other errors.
fn failing_flags(world: &World) -> Vec<String> {
    let mut flags = good_flags(world, "127.0.0.1:1".parse().unwrap());
    let at = flags
        .iter()
        .position(|flag| flag == "--upstream-ca")
        .unwrap();
    flags[at + 1] = "/nowhere/ca.crt".to_owned();
    flags
}

/// `flags` without `flag` and its value.
fn without(flags: &[String], flag: &str) -> Vec<String> {
    let pairs = flags.chunks(2).filter(|pair| pair[0] != flag);
    pairs.flatten().cloned().collect()
}

fn value_flags(subcommand: &str) -> Vec<Arg> {
    let command = Cli::command();
    let subcommand = command.find_subcommand(subcommand).unwrap();
    let arguments = subcommand.get_arguments();
    let with_value =
        arguments.filter(|flag| matches!(flag.get_action(), ArgAction::Set | ArgAction::Append));
    with_value.cloned().collect()
}

#[tokio::test]
async fn secret_in_a_flag_is_not_printed() {
    let world = World::new();
    let secrets = Secrets::new();
    let good = failing_flags(&world);
    let mut tried = 0;
    for subcommand in ["serve", "check"] {
        for flag in value_flags(subcommand) {
            let name = format!("--{}", flag.get_long().unwrap());
            for (form, secret) in &secrets.values {
                let mut args = vec![subcommand.to_owned()];
                args.extend(without(&good, &name));
                args.push(format!("{name}={secret}"));
                let output = run(&args, &[]).await;
                let case = format!("{subcommand} {name}={form}");
                secrets.assert_absent(&printed(&output), &case);
                assert_ne!(output.status.code(), Some(0), "{case}");
                tried += 1;
            }
        }
    }
    assert!(tried > 150, "{tried}");
}

/// A password may have characters that end the host of a URL.
#[tokio::test]
async fn password_in_a_url_is_not_printed() {
    let world = World::new();
    let good = failing_flags(&world);
    for url in [
        "https://user:SECRET@host",
        "https://user:pa/SECRET@host",
        "https://user:SECRET?x@host",
        "https://user:SECRET#x@host",
        "https:/user:SECRET@host",
    ] {
        for subcommand in ["serve", "check"] {
            let mut args = vec![subcommand.to_owned()];
            args.extend(without(&good, "--upstream"));
            args.push(format!("--upstream={url}"));
            let output = run(&args, &[]).await;
            assert!(!printed(&output).contains("SECRET"), "{output:?}");
            assert_eq!(output.status.code(), Some(2), "{url}");
        }
        let server = format!("--server={url}");
        let output = run(&["kubeconfig".to_owned(), server], &[]).await;
        assert!(!printed(&output).contains("SECRET"), "{output:?}");
        assert_eq!(output.status.code(), Some(2), "{url}");
    }
}

#[tokio::test]
async fn secret_in_a_variable_is_not_printed() {
    let world = World::new();
    let secrets = Secrets::new();
    let good = failing_flags(&world);
    let mut variables: Vec<_> = value_flags("serve")
        .iter()
        .map(|flag| {
            let variable = flag.get_env().unwrap().to_str().unwrap().to_owned();
            (variable, format!("--{}", flag.get_long().unwrap()))
        })
        .collect();
    for switch in ["KUBE_TLS_PROXY_REUSE_PORT", "KUBE_TLS_PROXY_NO_ACCESS_LOG"] {
        variables.push((switch.to_owned(), String::new()));
    }
    for (variable, flag) in &variables {
        for (form, secret) in &secrets.values {
            let mut args = vec!["serve".to_owned()];
            args.extend(without(&good, flag));
            let output = run(&args, &[(variable, secret)]).await;
            secrets.assert_absent(&printed(&output), &format!("{variable}={form}"));
        }
    }
    // Kubernetes sets these variables in every pod.
    for variable in ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
        for (form, secret) in &secrets.values {
            let mut environment = vec![
                ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
                ("KUBERNETES_SERVICE_PORT", "443"),
            ];
            environment.retain(|(name, _)| *name != variable);
            environment.push((variable, secret));
            let mut args = vec!["serve".to_owned()];
            for flag in good
                .chunks(2)
                .filter(|pair| !pair[0].starts_with("--upstream"))
            {
                args.extend(flag.iter().cloned());
            }
            let output = run(&args, &environment).await;
            secrets.assert_absent(&printed(&output), &format!("{variable}={form}"));
        }
    }
}

#[tokio::test]
async fn argument_parser_does_not_print_secrets() {
    let secrets = Secrets::new();
    for (form, secret) in &secrets.values {
        for line in [
            vec![secret.as_str()],
            vec!["serve", secret],
            vec!["serve", "--", secret],
            vec!["serve", "--key", secret],
            vec!["serve", "--key", "a", secret, "b"],
            vec!["serve", "--log-level", secret, "--cert"],
            vec!["check", "--output", secret],
            vec!["completions", secret],
            vec!["completions", "bash", secret],
            vec!["kubeconfig", secret],
            vec!["kubeconfig", "--server", secret, "--context", secret],
        ] {
            let joined = format!("--{secret}");
            let valued = format!("--kei={secret}");
            let switch = format!("--reuse-port={secret}");
            for more in [None, Some(&joined), Some(&valued), Some(&switch)] {
                let args: Vec<_> = line
                    .iter()
                    .map(|word| (*word).to_owned())
                    .chain(more.cloned())
                    .collect();
                let output = run(&args, &[]).await;
                let case = format!("{} with {form}", line[0].split(' ').next().unwrap());
                secrets.assert_absent(&printed(&output), &case);
                assert_eq!(output.status.code(), Some(2), "{case}");
            }
        }
    }
}

#[tokio::test]
async fn kubeconfig_command_does_not_print_secrets_in_messages() {
    let world = World::new();
    let secrets = Secrets::new();
    for flag in value_flags("kubeconfig") {
        let name = format!("--{}", flag.get_long().unwrap());
        for (form, secret) in &secrets.values {
            let mut args = vec!["kubeconfig".to_owned()];
            if name != "--server" {
                args.extend(["--server".to_owned(), "https://kube.test".to_owned()]);
            }
            if name == "--context" {
                let from = world.dir.write("from", kubeconfig(&[]).to_string());
                args.extend(["--from".to_owned(), from.to_str().unwrap().to_owned()]);
            }
            if name == "--exec-arg" || name == "--exec-env" {
                args.extend(["--exec-command".to_owned(), "a".to_owned()]);
            }
            args.push(format!("{name}={secret}"));
            let output = run(&args, &[]).await;
            // The requested kubeconfig on stdout may contain the value; the messages on stderr may not.
            let messages = String::from_utf8_lossy(&output.stderr);
            secrets.assert_absent(&messages, &format!("kubeconfig {name}={form}"));
        }
    }
}

/// Finds the path of each scalar in the schema, as a list of keys; `[]` is an item of a list.
fn leaves(root: &Value, node: &Value, at: &[String], found: &mut Vec<Vec<String>>) {
    let node = resolve(root, node);
    if let Some(properties) = node.get("properties").and_then(Value::as_object) {
        for (key, property) in properties {
            leaves(
                root,
                property,
                &[at, std::slice::from_ref(key)].concat(),
                found,
            );
        }
    } else if let Some(items) = node.get("items") {
        leaves(root, items, &[at, &["[]".to_owned()]].concat(), found);
    } else {
        found.push(at.to_vec());
    }
}

/// Returns the schema that a node refers to; of alternatives, the first one, which is not `null`.
fn resolve<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    if let Some(reference) = node.get("$ref").and_then(Value::as_str) {
        return resolve(
            root,
            root.pointer(reference.trim_start_matches('#')).unwrap(),
        );
    }
    if let Some(all) = node.get("anyOf").and_then(Value::as_array) {
        return resolve(root, all.first().unwrap());
    }
    node
}

/// Returns a document with `value` at this path and with all required keys next to it.
fn document(root: &Value, node: &Value, at: &[String], value: &Value) -> Value {
    let node = resolve(root, node);
    let Some((first, rest)) = at.split_first() else {
        return value.clone();
    };
    if first == "[]" {
        return json!([document(root, &node["items"], rest, value)]);
    }
    let mut object = Map::new();
    for required in node["required"].as_array().into_iter().flatten() {
        let key = required.as_str().unwrap();
        let good = if key == "url" {
            "https://127.0.0.1:1"
        } else {
            "/nowhere"
        };
        object.insert(key.to_owned(), json!(good));
    }
    object.insert(
        first.clone(),
        document(root, &node["properties"][first], rest, value),
    );
    Value::Object(object)
}

#[tokio::test]
async fn secret_in_the_configuration_file_is_not_printed() {
    let world = World::new();
    let secrets = Secrets::new();
    let schema = schema();
    let mut keys = Vec::new();
    leaves(&schema, &schema, &[], &mut keys);
    assert!(keys.len() > 40, "{keys:?}");
    let mut documents = Vec::new();
    for (form, secret) in &secrets.values {
        for key in &keys {
            let text = document(&schema, &schema, key, &json!(secret)).to_string();
            documents.push((format!("{} with {form}", key.join(".")), text));
        }
        let block = secret.replace('\n', "\n    ");
        documents.extend([
            (
                format!("a key that is a {form}"),
                json!({ secret.as_str(): 1 }).to_string(),
            ),
            (
                format!("a key that is a {form}, twice"),
                format!("{0}: 1\n{0}: 1\n", json!(secret)),
            ),
            (format!("a list of {form}"), json!([secret]).to_string()),
            (format!("a {form} alone"), format!("{secret}\n")),
            (
                format!("a {form} after the end"),
                format!("workers: 1\n---\n{secret}\n"),
            ),
            (
                format!("a {form} not indented"),
                format!("workers:\n{secret}\n"),
            ),
            (format!("a tag {form}"), format!("workers: !{secret}\n")),
            (format!("an alias {form}"), format!("workers: *{secret}\n")),
            (
                format!("a block of {form}"),
                format!("certificates:\n- certificate: a\n  key: |\n    {block}\n"),
            ),
        ]);
    }
    for (case, text) in documents {
        let file = world.dir.write("config.yaml", text);
        for subcommand in ["serve", "check"] {
            let args = [subcommand, "--config", file.to_str().unwrap()].map(str::to_owned);
            let output = run(&args, &[]).await;
            secrets.assert_absent(&printed(&output), &format!("{subcommand}: {case}"));
            assert_ne!(output.status.code(), Some(0), "{case}");
        }
    }
}

/// Returns a kubeconfig with other values for some keys, which are given as JSON pointers.
fn kubeconfig(changes: &[(&str, &str)]) -> Value {
    let mut config = json!({
        "current-context": "a",
        "contexts": [{ "name": "a", "context": { "cluster": "a", "user": "a", "namespace": "a" } }],
        "clusters": [{ "name": "a", "cluster": {
            "server": "https://127.0.0.1:1",
            "certificate-authority": "/nowhere/ca.crt",
            "certificate-authority-data": "",
            "tls-server-name": "",
            "proxy-url": "",
        }}],
        "users": [{ "name": "a", "user": {
            "client-certificate": "a", "client-certificate-data": "", "client-key": "a", "client-key-data": "",
            "token": "", "tokenFile": "", "username": "", "password": "", "as": "",
        }}],
    });
    for (pointer, value) in changes {
        *config.pointer_mut(pointer).unwrap() = json!(value);
    }
    config
}

/// Finds the JSON pointers of all strings.
fn string_pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(at.to_owned()),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                string_pointers(item, &format!("{at}/{index}"), found);
            }
        }
        Value::Object(fields) => {
            for (key, field) in fields {
                string_pointers(field, &format!("{at}/{key}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[tokio::test]
async fn secret_in_a_kubeconfig_is_not_printed() {
    let world = World::new();
    let secrets = Secrets::new();
    let good: Vec<_> = failing_flags(&world)
        .chunks(2)
        .filter(|pair| !pair[0].starts_with("--upstream"))
        .flatten()
        .cloned()
        .collect();
    let mut pointers = Vec::new();
    string_pointers(&kubeconfig(&[]), "", &mut pointers);
    assert!(pointers.len() > 15, "{pointers:?}");
    for pointer in &pointers {
        for (form, secret) in &secrets.values {
            let text = kubeconfig(&[(pointer, secret)]).to_string();
            let file = world.dir.write("kubeconfig", text);
            let file = file.to_str().unwrap().to_owned();
            for subcommand in ["serve", "check"] {
                let mut args = vec![
                    subcommand.to_owned(),
                    "--kubeconfig".to_owned(),
                    file.clone(),
                ];
                args.extend(good.iter().cloned());
                let output = run(&args, &[]).await;
                let case = format!("{subcommand}: {pointer} with {form}");
                secrets.assert_absent(&printed(&output), &case);
            }
            let args = [
                "kubeconfig",
                "--server",
                "https://kube.test",
                "--from",
                &file,
            ];
            let output = run(&args.map(str::to_owned), &[]).await;
            let messages = String::from_utf8_lossy(&output.stderr);
            secrets.assert_absent(&messages, &format!("kubeconfig: {pointer} with {form}"));
        }
    }
}

#[tokio::test]
async fn pem_text_in_place_of_a_path_is_explained() {
    let world = World::new();
    let good = failing_flags(&world);
    let identity = Identity::self_signed(&[HOST]);
    let (key, chain) = (identity.key_pem().to_owned(), world.public_ca.pem());
    for (flag, text, content) in [
        ("--key", key.as_str(), "the key itself"),
        ("--cert", &chain, "the certificate itself"),
        ("--upstream-ca", &chain, "the certificate itself"),
        (
            "--config",
            "listen: []\nworkers: 1",
            "the content of the file",
        ),
    ] {
        let mut args = vec!["serve".to_owned()];
        args.extend(without(&good, flag));
        args.push(format!("{flag}={text}"));
        let output = run(&args, &[]).await;
        let sentence = format!(
            "kube-tls-proxy: {flag}: a path belongs here, not {content}; write it to a file and give the path of that file\n"
        );
        assert_eq!(String::from_utf8_lossy(&output.stderr), sentence);
        assert_eq!(output.status.code(), Some(2));
    }
    let mut args = vec!["serve".to_owned()];
    args.extend(without(&good, "--key"));
    let output = run(&args, &[("KUBE_TLS_PROXY_KEY", &key)]).await;
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "kube-tls-proxy: environment variable KUBE_TLS_PROXY_KEY: --key: a path belongs here, not the key itself; write it to a file and give the path of that file\n"
    );
}

/// A name can look like a key, so only a file that does not exist is taken for one.
#[tokio::test]
async fn file_with_a_name_like_a_key_is_read() {
    let world = World::new();
    let name = &Secrets::new().values[2].1.replace('/', "_");
    let good = failing_flags(&world);
    let mut args = vec!["serve".to_owned()];
    args.extend(without(&good, "--key"));
    args.push(format!("--key={}", world.dir.path().join(name).display()));
    let output = run(&args, &[]).await;
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "kube-tls-proxy: key (hidden: may be a secret): a path belongs here, not the content of the file; write it to a file and give the path of that file\n"
    );
    world.dir.write(name, "no key");
    let output = run(&args, &[]).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("PEM block"), "{stderr}");
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    within("the response", stream.read_to_string(&mut response))
        .await
        .unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    response
}

#[tokio::test]
async fn failed_reload_does_not_log_or_serve_secrets() {
    let world = World::new();
    let mut secrets = Secrets::new();
    let upstream = world.apiserver().start().await;
    let config = world.dir.write("config.yaml", "{}\n");
    let flags = [
        "--config",
        config.to_str().unwrap(),
        "--admin-listen",
        "127.0.0.1:0",
        "--log-level",
        "trace",
    ];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let own_key = fs::read_to_string(world.dir.path().join("public.key")).unwrap();
    secrets.values.insert(0, ("own key", own_key));
    let admin = binary.admin().await;
    let mut failures = 0;
    let mut documents: Vec<_> = secrets
        .values
        .iter()
        .flat_map(|(_, secret)| {
            [
                // The flags of this proxy override `certificates`, so a second value makes the reload fail.
                json!({ "certificates": [{ "certificate": "a", "key": secret }], "workers": secret }),
                json!({ "log": { "filter": secret } }),
                json!({ secret.as_str(): "a" }),
            ]
        })
        .map(|document| (config.clone(), document.to_string()))
        .collect();
    // Every key of the file. The second one makes each reload fail, whatever a flag overrides.
    let schema = schema();
    let mut keys = Vec::new();
    leaves(&schema, &schema, &[], &mut keys);
    let (_, jwt) = secrets
        .values
        .iter()
        .find(|(form, _)| *form == "JWT")
        .unwrap();
    for key in keys {
        let mut document = document(&schema, &schema, &key, &json!(jwt));
        document["workers"] = json!(jwt);
        documents.push((config.clone(), document.to_string()));
    }
    // A key file that has lost its line breaks.
    let key = world.dir.path().join("public.key");
    documents.push((config.clone(), "{}".to_owned()));
    for lost in [" ", "", "\r"] {
        let text = secrets.values.last().unwrap().1.replace('\n', lost);
        documents.push((key.clone(), text));
    }
    for (file, text) in documents {
        fs::write(&file, &text).unwrap();
        binary.signal("HUP").await;
        if text == "{}" {
            binary.wait_for_line("reload works again").await;
            continue;
        }
        failures += 1;
        let logged = within("the failed reload", async {
            loop {
                let lines = binary.stderr();
                let failed = lines.iter().filter(|line| line.contains("reload failed"));
                if failed.count() >= failures {
                    return lines;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        secrets.assert_absent(&logged.join("\n"), &text);
        for path in ["/status.json", "/", "/metrics"] {
            secrets.assert_absent(&get(admin, path).await, path);
        }
    }
}
