//! `increase()` does not count a series that begins at 1, so the counters of the alerts begin at 0.

use std::{fs, path::Path};

use kube_tls_proxy::metrics::{Dialled, ErrorReason};
use standin::tcp;

use super::scrape;
use crate::proxy::World;

fn read(file: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(file)).unwrap()
}

#[tokio::test]
async fn counters_of_alerts_exist_at_zero_from_the_start() {
    let world = World::new();
    let proxy = world.proxy(tcp::refused().await).admin().start();
    let text = scrape(proxy.admin()).await.text;
    let is_at_zero = |name: &str, labels: &[&str]| {
        text.lines().any(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' '])
                && rest.ends_with(" 0")
                && labels.iter().all(|label| rest.contains(label))
        })
    };
    let rules = read("config/prometheus/rules.yaml");
    let mut found = 0;
    for selector in rules.split("increase(").skip(1) {
        let (selector, _) = selector.split_once('[').unwrap();
        let (name, labels) = selector.split_once('{').unwrap_or((selector, ""));
        let labels: Vec<&str> = labels
            .trim_end_matches('}')
            .split(',')
            .map(str::trim)
            .collect();
        assert!(is_at_zero(name, &labels), "{selector} in\n{text}");
        found += 1;
    }
    assert!(found >= 3, "{found} alerts on an increase");

    for dialled in Dialled::ALL {
        let result = format!("result=\"{}\"", dialled.label());
        let labels = ["cluster=\"test\"", &result];
        let name = "kube_tls_proxy_upstream_dials_total";
        assert!(is_at_zero(name, &labels), "{labels:?} in\n{text}");
    }
    for reason in ErrorReason::ALL {
        let labels = [&*format!("reason=\"{}\"", reason.label())];
        let name = "kube_tls_proxy_errors_total";
        assert!(is_at_zero(name, &labels), "{reason:?} in\n{text}");
    }
    for result in ["failed", "ok", "unchanged"] {
        let labels = [&*format!("result=\"{result}\"")];
        let name = "kube_tls_proxy_reloads_total";
        assert!(is_at_zero(name, &labels), "{result} in\n{text}");
    }
}
