//! A real apiserver accepts the manifests and the chart of `config`.
//!
//! Every apply is a dry run by the server: it sets defaults, validates and admits the objects, but stores none.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::kubectl::{Kubectl, same_on_both};
use crate::process::run;
use crate::suite::{Route, Suite, shared};

#[test]
fn apiserver_accepts_the_base_and_its_overlays() {
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
        // A warning would mean a deprecated field, or a pod that is not restricted.
        assert_eq!(outcome.stderr, "", "{folder}");
        let accepted = outcome.ok();
        for kind in KINDS.iter().copied().chain(more) {
            assert!(
                accepted.contains(&format!("{kind}/kube-tls-proxy "))
                    || accepted.contains(&format!("{kind}.")),
                "no {kind} in {accepted}"
            );
        }
        assert_eq!(
            accepted.lines().count(),
            KINDS.len() + 2 + usize::from(more.is_some()),
            "{accepted}"
        );
        for line in accepted.lines() {
            assert!(line.ends_with("(server dry run)"), "{line}");
        }
    }
}

#[test]
fn apiserver_accepts_the_chart() {
    let Some(suite) = shared() else { return };
    if !has_helm() {
        // Not with a macro: the test harness hides the output of the macros when a test passes.
        let _ = writeln!(
            io::stderr(),
            "skipped: the chart, because helm is not installed"
        );
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
        let accepted = outcome.ok();
        assert_eq!(accepted.lines().count(), objects, "{accepted}");
        // helm itself also compares the version of the apiserver with that of the chart, and prints the notes.
        let notes = helm(&[&["install", "--dry-run=server"], settings].concat());
        assert!(notes.contains("get service kube-tls-proxy"), "{notes}");
    }
}

/// Creates the objects that a dry run needs: the namespace, and the kinds that other operators define.
fn prepare(suite: &Suite) {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let kubectl = Kubectl::new(suite, Route::Direct);
        let namespace = config("kubernetes/base/namespace.yaml");
        kubectl
            .run(&["apply", "-f", namespace.to_str().unwrap()])
            .ok();
        // The namespace rejects pods that are not restricted, but no controller creates pods here. With this label
        // the apiserver also warns about a Deployment.
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

/// The kinds, in the spelling of kubectl's output.
const KINDS: [&str; 5] = [
    "deployment.apps",
    "service",
    "poddisruptionbudget.policy",
    "networkpolicy.networking.k8s.io",
    "horizontalpodautoscaler.autoscaling",
];
