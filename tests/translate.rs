//! `kube-tls-proxy translate` over the manifests in `tests/manifests`.
//!
//! A file begins with comments that say what must come out of it: `# error: …` for each error, `# source: …` for the
//! place where the facts of the manifest were found, and `# field: …` for a line of the report. The configuration that
//! a file becomes is beside it, with the ending `.config`; `UPDATE=1` writes these again.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, its helper functions too"
)]

use std::{
    env, fs,
    io::Write as _,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use kube_tls_proxy::{
    cli::sentence,
    config::{self, Config, Environment, ServeArgs},
    translate::{FieldVerdict, FilePlacement, ManifestFile, Translation, translate},
};
use serde_json::Value;
use standin::{TempDir, pki::Ca};

/// The manifests in a folder, by name.
fn manifests(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/manifests")
        .join(folder);
    let entries = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    paths.sort();
    let read = paths.into_iter().map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    });
    read.collect()
}

/// What the comments at the top of a file say after this word.
fn expected<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let comments = text.lines().take_while(|line| line.starts_with('#'));
    let prefix = format!("# {word}: ");
    comments
        .filter_map(|line| line.strip_prefix(&prefix))
        .collect()
}

fn file(text: &str) -> ManifestFile {
    ManifestFile {
        path: PathBuf::from("m.yaml"),
        text: text.to_owned(),
    }
}

fn translated(text: &str) -> Result<Translation, Vec<String>> {
    translate(&[file(text)], FilePlacement::Mounted).map_err(|errors| {
        let sentences = errors.iter().map(|error| sentence(error));
        sentences.collect()
    })
}

/// Loads a configuration as `serve` does, in a pod.
fn load(config: &str) -> Config {
    let dir = TempDir::new();
    dir.write("ca.crt", Ca::new("cluster").pem());
    let path = dir.write("kube-tls-proxy.yaml", config);
    let env = Environment {
        service_host: Some("10.96.0.1".into()),
        service_port: Some("443".into()),
        service_account: dir.path().to_owned(),
        cpus: NonZeroUsize::MIN,
        ..Environment::from_process()
    };
    let args = ServeArgs {
        config: Some(path),
        ..ServeArgs::default()
    };
    let loaded = config::load(&args, &env);
    loaded.unwrap_or_else(|error| panic!("{}\n{config}", sentence(&error)))
}

#[test]
fn invalid_manifests_give_line_field_and_fix() {
    let manifests = manifests("invalid");
    assert!(manifests.len() >= 40, "{} manifests", manifests.len());
    let mut wrong = Vec::new();
    for (path, text) in manifests {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let wanted = expected(&text, "error");
        assert!(!wanted.is_empty(), "{name} says no error");
        let found = match translated(&text) {
            Ok(translation) => vec![translation.config],
            Err(errors) => errors,
        };
        for error in &found {
            // `manifest m.yaml, line 3, column 5: FIELD: what is wrong; the fix`.
            let is_placed = error.starts_with("manifest m.yaml, line ");
            if !is_placed || !error.contains("; ") {
                wrong.push(format!("{name}: no place or no fix: {error}"));
            }
        }
        let found: Vec<_> = found
            .iter()
            .map(|error| error.trim_start_matches("manifest m.yaml, "))
            .collect();
        if found != wanted {
            wrong.push(format!("{name}:\n{}", found.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn public_manifests_are_translated_or_refused() {
    let manifests = manifests("public");
    assert!(manifests.len() >= 20, "{} manifests", manifests.len());
    let mut wrong = Vec::new();
    for (path, text) in manifests {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(
            expected(&text, "source").len(),
            1,
            "{name} names its source"
        );
        let (errors, fields) = (expected(&text, "error"), expected(&text, "field"));
        let beside = path.with_extension("config");
        match translated(&text) {
            Err(found) => {
                let found: Vec<_> = found
                    .iter()
                    .map(|error| error.trim_start_matches("manifest m.yaml, "))
                    .collect();
                if found != errors {
                    wrong.push(format!("{name}:\n{}", found.join("\n")));
                }
            }
            Ok(translation) => {
                if env::var_os("UPDATE").is_some() {
                    fs::write(&beside, &translation.config).unwrap();
                }
                if !errors.is_empty()
                    || fs::read_to_string(&beside).ok() != Some(translation.config.clone())
                {
                    wrong.push(format!(
                        "{name}: UPDATE=1 cargo test --test translate\n{}",
                        translation.config
                    ));
                }
                load(&translation.config);
                let lines: Vec<_> = translation.fields.iter().map(ToString::to_string).collect();
                let missing = fields
                    .iter()
                    .filter(|field| !lines.iter().any(|line| line.contains(**field)));
                let missing: Vec<_> = missing.collect();
                if !missing.is_empty() {
                    wrong.push(format!("{name}: {missing:?} not in\n{}", lines.join("\n")));
                }
                let unknown = translation
                    .fields
                    .iter()
                    .filter(|field| field.verdict == FieldVerdict::NotKnown);
                let unknown: Vec<_> = unknown
                    .map(ToString::to_string)
                    .filter(|line| !fields.iter().any(|field| line.contains(field)))
                    .collect();
                if !unknown.is_empty() {
                    wrong.push(format!("{name}: not known:\n{}", unknown.join("\n")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// The example blocks of a page: lines with four blanks before them.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in page.lines() {
        match (line.strip_prefix("    "), blocks.last_mut()) {
            (Some(line), Some(block)) => block.extend([line, "\n"]),
            _ => blocks.push(String::new()),
        }
    }
    blocks
}

#[test]
fn guides_show_what_translate_prints() {
    for name in ["contour", "ingress-nginx", "gateway-api"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let page = fs::read_to_string(folder.join(format!("from-{name}.md"))).unwrap();
        let blocks = blocks(&page);
        let block = |start| {
            blocks
                .iter()
                .find(|block| block.starts_with(start))
                .unwrap()
        };
        let translation = translated(block("apiVersion: ")).unwrap();
        assert!(
            translation
                .config
                .ends_with(&format!("\n{}", block("certificates:"))),
            "{name}: {}",
            translation.config
        );
        for line in blocks
            .iter()
            .filter_map(|block| block.strip_prefix("httpproxy.yaml"))
        {
            let line = format!("m.yaml{}", line.trim_end());
            let mut fields = translation.fields.iter();
            assert!(
                fields.any(|field| field.to_string() == line),
                "{name}: {line}"
            );
        }
    }
}

/// The paths of all values that have no further value in them.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let path = if key.contains(['.', '/', '[', '"']) {
                    format!("{path}[\"{key}\"]")
                } else if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                leaves(value, &path, found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                leaves(value, &format!("{path}[{index}]"), found);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Object(_)
        | Value::Array(_) => found.push(path.to_owned()),
    }
}

#[test]
fn every_field_of_every_object_has_a_verdict() {
    let mut count = 0;
    for (path, text) in manifests("public") {
        // With this port the Services that are passed through may be apiservers, so their fields count too.
        let text = text.replace(": 443", ": 6443");
        let Ok(translation) = translated(&text) else {
            continue;
        };
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for document in documents
            .iter()
            .filter(|document| document["kind"] != "List")
        {
            let namespace = document["metadata"]["namespace"]
                .as_str()
                .unwrap_or("default");
            let name = document["metadata"]["name"].as_str().unwrap();
            let title = format!("{} {namespace}/{name}", document["kind"].as_str().unwrap());
            let of_object = translation
                .fields
                .iter()
                .filter(|field| field.object == title);
            let fields: Vec<_> = of_object.map(|field| field.field.as_str()).collect();
            let mut found = Vec::new();
            leaves(document, "", &mut found);
            for leaf in found {
                count += 1;
                let is_covered = fields.iter().any(|field| {
                    *field == "all of it"
                        || leaf
                            .strip_prefix(field)
                            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
                });
                assert!(
                    is_covered,
                    "{}: {title}: {leaf}: {fields:#?}",
                    path.display()
                );
            }
        }
    }
    assert!(count > 200, "{count} fields");
}

#[test]
fn field_that_is_not_known_is_reported() {
    let text = INGRESS
        .replace("spec:", "spec:\n  newField: {deep: [1]}")
        .replace(
            "annotations: {",
            "annotations: {nginx.ingress.kubernetes.io/brand-new: x, example.com/y: z, ",
        );
    let translation = translated(&text).unwrap();
    let unknown: Vec<_> = translation
        .fields
        .iter()
        .filter(|field| field.verdict == FieldVerdict::NotKnown)
        .map(|field| (field.at.line, field.field.as_str()))
        .collect();
    assert_eq!(
        unknown,
        [
            (
                5,
                "metadata.annotations[\"nginx.ingress.kubernetes.io/brand-new\"]"
            ),
            (5, "metadata.annotations[\"example.com/y\"]"),
            (7, "spec.newField.deep[0]"),
        ]
    );
}

#[test]
fn private_key_is_never_repeated() {
    let ca = Ca::new("public");
    let identity = ca.server(&["kube.example.com"]);
    let key = identity.key_pem();
    let lines: Vec<_> = key
        .lines()
        .filter(|line| line.len() > 40 && !line.starts_with('-'))
        .collect();
    assert!(!lines.is_empty());
    let indented = key.replace('\n', "\n    ");
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: kube}}\nstringData:\n  tls.key: |\n    {indented}\n  ca.crt: |\n    {}\n---\n",
        ca.pem().replace('\n', "\n    ")
    );
    let verified = INGRESS.replace(
        "annotations: {",
        "annotations: {nginx.ingress.kubernetes.io/proxy-ssl-secret: default/kube, ",
    );
    for text in [
        format!("{secret}{INGRESS}"),
        format!("{secret}{verified}"),
        // The CA is a key by mistake.
        format!("{secret}{verified}")
            .replace("ca.crt: |", "x: |")
            .replace("tls.key: |", "ca.crt: |"),
        // YAML that breaks off after the key.
        format!("{secret}{INGRESS}}}"),
        format!("{secret}kind: [{}", lines[0]),
    ] {
        let shown = match translate(&[file(&text)], FilePlacement::Beside) {
            Ok(translation) => format!("{translation:?}"),
            Err(errors) => errors
                .iter()
                .map(|error| format!("{}\n{:?}\n", sentence(error), error.excerpt()))
                .collect(),
        };
        for line in &lines {
            assert!(!shown.contains(*line), "{shown}");
        }
    }
}

#[test]
fn ca_of_a_secret_becomes_a_file_beside_the_configuration() {
    let ca = Ca::new("cluster").pem();
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: kube}}\nstringData:\n  ca.crt: |\n    {}\n---\n{}",
        ca.replace('\n', "\n    "),
        INGRESS.replace(
            "annotations: {",
            "annotations: {nginx.ingress.kubernetes.io/proxy-ssl-secret: default/kube, "
        )
    );
    let translation = translate(&[file(&text)], FilePlacement::Beside).unwrap();
    let written = translation
        .files
        .iter()
        .find_map(|file| Some((file.path.as_str(), file.content.as_deref()?)));
    assert_eq!(
        written.map(|(path, pem)| (path, pem.trim())),
        Some(("default-kube-ca.crt", ca.trim()))
    );
    assert!(
        translation.config.contains("ca: default-kube-ca.crt"),
        "{}",
        translation.config
    );
    load(&translation.config);
}

#[test]
fn first_limit_of_requests_keeps_its_unit() {
    for (annotations, rate) in [
        (["limit-rps: \"10\"", "limit-rpm: \"300\""], 10),
        (["limit-rpm: \"300\"", "limit-rps: \"10\""], 5),
    ] {
        let annotations = annotations.map(|one| format!("nginx.ingress.kubernetes.io/{one}, "));
        let annotations = format!("annotations: {{{}", annotations.concat());
        let text = INGRESS.replace("annotations: {", &annotations);
        let config = translated(&text).unwrap().config;
        assert!(config.contains(&format!("rate: {rate}\n")), "{config}");
    }
}

/// A route, and a Gateway with these listeners.
fn route(kind: &str, parent: &str, listeners: &str) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: kubernetes}}
spec:
  parentRefs: [{parent}]
  hostnames: [kube.example.com]
  rules: [{{backendRefs: [{{name: kubernetes, port: 443}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: public}}
spec:
  listeners: [{listeners}]
"
    )
}

#[test]
fn port_of_a_parent_chooses_the_listener() {
    let listeners = "{name: a, port: 443, protocol: TLS, tls: {mode: Terminate, certificateRefs: [{name: kube}]}}, \
                     {name: b, port: 6443, protocol: TLS, tls: {mode: Passthrough}}";
    for (port, is_passed) in [(443, false), (6443, true)] {
        let parent = format!("{{name: public, port: {port}}}");
        let text = route("TLSRoute", &parent, listeners);
        let config = load(&translated(&text).unwrap().config);
        assert_eq!(config.clusters[0].passthrough, is_passed, "{port}");
    }
}

#[test]
fn ca_of_clients_may_be_in_another_namespace() {
    let listener = "{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: kube}], \
                    frontendValidation: {caCertificateRefs: [{group: \"\", kind: ConfigMap, name: clients, namespace: pki}]}}}";
    let translation = translated(&route("HTTPRoute", "{name: public}", listener)).unwrap();
    let ca = "ca: /etc/kube-tls-proxy/configmaps/pki/clients/ca.crt\n";
    assert!(translation.config.contains(ca), "{}", translation.config);
}

#[test]
fn lists_of_addresses_reach_the_listener_for_passthrough() {
    let text = INGRESS.replace(
        "annotations: {",
        "annotations: {nginx.ingress.kubernetes.io/ssl-passthrough: \"true\", nginx.ingress.kubernetes.io/whitelist-source-range: 10.1.2.3/8, ",
    );
    let config = load(&translated(&text).unwrap().config);
    assert!(config.clusters[0].passthrough && config.clusters[0].access.is_empty());
    let allowed = config.listen[0].peers.allow.as_ref().unwrap();
    assert!(allowed.contains("10.255.0.1".parse().unwrap()));
    assert!(!allowed.contains("11.0.0.1".parse().unwrap()));
}

/// Runs the binary with this standard input: exit code, standard output and standard error.
fn run(args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kube-tls-proxy"))
        .arg("translate")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

#[test]
fn exit_code_says_whether_everything_was_translated() {
    let lossy = INGRESS.replace(
        "HTTPS}",
        "HTTPS, nginx.ingress.kubernetes.io/auth-url: \"https://a\"}",
    );
    for (args, input, code) in [
        (&["-"][..], INGRESS, 0),
        (&["-", "--strict"], INGRESS, 0),
        (&["-"], &lossy, 0),
        (&["-", "--strict"], &lossy, 1),
        (&["-"], &INGRESS.replace("path: /,", "path: /api,"), 2),
        (&["/nowhere/ingress.yaml"], "", 2),
        (&[], "", 2),
    ] {
        let (ended, config, report) = run(args, input);
        assert_eq!(ended, Some(code), "{args:?}: {report}");
        assert_eq!(
            config.contains("clusters:"),
            code != 2,
            "{args:?}: {config}"
        );
        if code != 2 {
            assert!(
                report.contains(
                    "standard input:8:11: used: Ingress default/kubernetes: spec.rules[0].host"
                ),
                "{report}"
            );
        }
    }
}

#[test]
fn error_shows_the_line_with_a_mark() {
    let (_, _, report) = run(&["-"], &INGRESS.replace("path: /,", "path: /api,"));
    let lines: Vec<_> = report.lines().collect();
    assert!(lines[0].starts_with("kube-tls-proxy: manifest standard input, line 9, column 27: Ingress default/kubernetes: spec.rules[0].http.paths[0].path: "), "{report}");
    let column = lines[2].find('^').unwrap();
    assert_eq!(&lines[1][column..column + 4], "/api", "{report}");
}

#[test]
fn output_directory_gets_files_and_keeps_old_ones() {
    let dir = TempDir::new();
    let output = dir.path().join("made");
    let args = ["-", "--output", output.to_str().unwrap()];
    let (ended, config, report) = run(&args, INGRESS);
    assert_eq!((ended, config.as_str()), (Some(0), ""), "{report}");
    let written = fs::read_to_string(output.join("kube-tls-proxy.yaml")).unwrap();
    load(&written);
    let (ended, _, report) = run(
        &args,
        &INGRESS.replace("kube.example.com", "other.example.com"),
    );
    assert_eq!(ended, Some(1), "{report}");
    let wanted = "kube-tls-proxy.yaml: it exists, and is not replaced; remove it, or name";
    assert!(report.contains(wanted), "{report}");
    assert_eq!(
        fs::read_to_string(output.join("kube-tls-proxy.yaml")).unwrap(),
        written
    );
}

const INGRESS: &str = "\
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: kubernetes
  annotations: {nginx.ingress.kubernetes.io/backend-protocol: HTTPS}
spec:
  rules:
  - host: kube.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: kubernetes, port: {number: 443}}}}]}
  tls: [{hosts: [kube.example.com], secretName: kube-tls}]
";
