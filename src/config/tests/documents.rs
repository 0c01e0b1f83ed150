//! Example file, schema and docs match the code.

use super::*;
use crate::config::TokenBucketSize;

#[test]
fn example_file_shows_defaults() {
    let file = repository("config/kube-tls-proxy.yaml");
    let args = ServeArgs {
        config: Some(file),
        ..ServeArgs::default()
    };
    let shown = load(&args, &outside_pod()).unwrap();
    let defaults = load(&enough(), &outside_pod()).unwrap();
    assert_eq!(shown.listen, defaults.listen);
    assert_eq!(shown.workers, defaults.workers);
    assert_eq!(shown.limits, defaults.limits);
    assert_eq!(shown.timeouts, defaults.timeouts);
    assert_eq!(shown.log, defaults.log);
    assert_eq!(shown.identities.len(), 1);
    assert_eq!(shown.clusters.len(), 1);
    assert_eq!(shown.clusters[0].hosts, ["kube.example.com"]);
}

/// The commented-out alternatives are valid, too.
#[test]
fn commented_parts_of_example_file_load() {
    let scratch = TempDir::new();
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
    scratch.write(
        "staging.conf",
        KUBECONFIG.replace("name: lab, context", "name: staging-admin, context"),
    );
    scratch.write("tenant.conf", KUBECONFIG);
    scratch.write("clusters.d/eu.yaml", KUBECONFIG);
    scratch.write("ca.crt", "any");
    let args = ServeArgs {
        config: Some(scratch.write("proxy.yaml", &uncommented)),
        ..ServeArgs::default()
    };
    let env = Environment {
        service_host: Some("10.96.0.1".to_owned()),
        service_port: Some("443".to_owned()),
        service_account: scratch.path().to_owned(),
        ..outside_pod()
    };
    let config =
        load(&args, &env).unwrap_or_else(|error| panic!("{}\n{uncommented}", sentence(&error)));
    let names: Vec<_> = config
        .clusters
        .iter()
        .map(|cluster| &cluster.name)
        .collect();
    assert_eq!(
        names,
        [
            "prod",
            "staging",
            "prod-direct",
            "remote",
            "tenant",
            "here",
            "eu"
        ]
    );
    assert!(config.clusters[2].passthrough);
    assert_eq!(config.workers.get(), 2);
    let expected = Limits {
        connections: 330,
        connections_per_client: Some(1000),
        requests_per_client: Some(TokenBucketSize {
            max_tokens: 400,
            fill_interval: Duration::from_millis(10),
        }),
        ..Limits::default()
    };
    assert_eq!(config.limits, expected);
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
fn committed_schema_is_current() {
    let file = repository("config/kube-tls-proxy.schema.json");
    let mut current = serde_json::to_string_pretty(&schema()).unwrap();
    current.push('\n');
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, &current).unwrap();
    }
    assert!(
        fs::read_to_string(&file).unwrap_or_default() == current,
        "config/kube-tls-proxy.schema.json is stale: UPDATE=1 cargo test committed_schema"
    );
}

/// Each default in the tables of the docs is the default of the code.
#[test]
fn docs_show_defaults() {
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
    assert_eq!(keys, 25, "{text}");
    let yaml = |section: &str| -> String {
        let prefix = format!("{section}.");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        lines
            .map(|line| format!("  {}\n", line.replacen(' ', ": ", 1)))
            .collect()
    };
    let shown = format!("limits:\n{}timeouts:\n{}", yaml("limits"), yaml("timeouts"));
    let defaults = load(&enough(), &outside_pod()).unwrap();
    assert_eq!(with_config(enough(), &shown), defaults);
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
