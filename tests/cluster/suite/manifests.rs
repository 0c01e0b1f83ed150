//! The manifests and the chart of `config`, as a real apiserver takes them.
//!
//! Nothing of them is kept: every apply is a dry run by the server, which defaults, validates and admits all the same.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::kubectl::{Kubectl, same_on_both};
use crate::process::run;
use crate::suite::{Route, Suite, shared};

#[test]
fn the_base_and_its_overlays_are_taken() {
    let Some(suite) = shared() else { return };
    prepare(&suite);
    for (folder, more) in [
        ("base", None),
        ("overlays/servicemonitor", Some("servicemonitor")),
        ("overlays/cert-manager", Some("certificate")),
    ] {
        let folder = config("kubernetes").join(folder);
        let folder = folder.to_str().unwrap();
        let outcome = same_on_both(&suite, &["apply", "--dry-run=server", "-k", folder]);
        // A warning would be of a deprecated field, or of a pod that is not restricted enough.
        assert_eq!(outcome.stderr, "", "{folder}");
        let taken = outcome.ok();
        for kind in KINDS.iter().copied().chain(more) {
            assert!(
                taken.contains(&format!("{kind}/kube-tls-proxy "))
                    || taken.contains(&format!("{kind}.")),
                "no {kind} in {taken}"
            );
        }
        assert_eq!(
            taken.lines().count(),
            KINDS.len() + 2 + usize::from(more.is_some()),
            "{taken}"
        );
        for line in taken.lines() {
            assert!(line.ends_with("(server dry run)"), "{line}");
        }
    }
}

#[test]
fn the_chart_is_taken() {
    let Some(suite) = shared() else { return };
    if !has_helm() {
        // Not by a macro: the test harness hides what the macros print when a test passes.
        let _ = writeln!(io::stderr(), "skipped: the chart, for want of helm");
        return;
    }
    prepare(&suite);
    let kubectl = Kubectl::new(&suite, Route::Proxied);
    let chart = config("helm/kube-tls-proxy");
    let helm = |args: &[&str]| {
        let mut command = Command::new("helm");
        command
            .args(args)
            .args([
                "kube-tls-proxy",
                chart.to_str().unwrap(),
                "--namespace",
                NAMESPACE,
            ])
            .env("HOME", suite.fixture.scratch())
            .env("KUBECONFIG", kubectl.kubeconfig());
        run(command, Vec::new(), HELM_LIMIT).ok()
    };
    let everything = [
        "--set=serviceMonitor.enabled=true,certificate.enabled=true,certificate.dnsNames={kube.example.com}",
        "--set-json=config={\"limits\": {\"headerFields\": 256}}",
    ];
    for settings in [&[][..], &everything[..]] {
        let rendered = helm(&[&["template"], settings].concat());
        let objects = rendered
            .lines()
            .filter(|line| line.starts_with("kind: "))
            .count();
        let apply = ["apply", "--dry-run=server", "-f", "-"];
        let outcome = kubectl.run_with_input(&apply, rendered.into_bytes());
        assert_eq!(outcome.stderr, "");
        let taken = outcome.ok();
        assert_eq!(taken.lines().count(), objects, "{taken}");
        // By helm itself too, which compares the version of the apiserver with the chart's, and shows the notes.
        let notes = helm(&[&["install", "--dry-run=server"], settings].concat());
        assert!(notes.contains("get service kube-tls-proxy"), "{notes}");
    }
}

/// Makes what a dry run does not: the namespace, and the kinds that other operators define.
fn prepare(suite: &Suite) {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let kubectl = Kubectl::new(suite, Route::Direct);
        let namespace = config("kubernetes/base/namespace.yaml");
        kubectl
            .run(&["apply", "-f", namespace.to_str().unwrap()])
            .ok();
        // Pods that are not restricted are refused there, and no controller makes pods here. This says so of a Deployment.
        let warn = "pod-security.kubernetes.io/warn=restricted";
        kubectl.run(&["label", "namespace", NAMESPACE, warn]).ok();
        kubectl
            .run_with_input(&["apply", "-f", "-"], CRDS.into())
            .ok();
        let defined = [
            "crd/servicemonitors.monitoring.coreos.com",
            "crd/certificates.cert-manager.io",
        ];
        let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
        kubectl.run(&[&wait[..], &defined[..]].concat()).ok();
    });
}

fn config(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(path)
}

fn has_helm() -> bool {
    let mut version = Command::new("helm");
    version
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

const CRDS: &str = include_str!("crds.yaml");
const HELM_LIMIT: Duration = Duration::from_mins(2);
const NAMESPACE: &str = "kube-tls-proxy";

/// As kubectl calls them.
const KINDS: [&str; 5] = [
    "deployment.apps",
    "service",
    "poddisruptionbudget.policy",
    "networkpolicy.networking.k8s.io",
    "horizontalpodautoscaler.autoscaling",
];
