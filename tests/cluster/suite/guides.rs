//! The guides for a move from another ingress, followed on a real apiserver as a reader follows them: the objects of
//! the page are applied, its commands run as they stand, and kubectl works through the result.
//!
//! Four things differ from the page: the host is `localhost`, the addresses are loopback, a temporary CA has signed the
//! certificate, and the proxy runs as a process, because no controller here starts pods.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, iter};

use serde_json::{Value, json};

use crate::kubectl::Kubectl;
use crate::process::{Outcome, run};
use crate::suite::{Route, Suite, shared};
use crate::way::outside_of_a_pod;

#[test]
fn guide_from_contour_leads_to_a_working_kubectl() {
    let Some(suite) = shared() else { return };
    follow(&suite, "from-contour.md");
}

#[test]
fn guide_from_ingress_nginx_leads_to_a_working_kubectl() {
    let Some(suite) = shared() else { return };
    follow(&suite, "from-ingress-nginx.md");
}

#[test]
fn guide_from_gateway_api_leads_to_a_working_kubectl() {
    let Some(suite) = shared() else { return };
    follow(&suite, "from-gateway-api.md");
}

#[test]
fn guide_copies_the_certificate_to_the_proxys_namespace() {
    let Some(suite) = shared() else { return };
    let desk = Desk::new(&suite, "certificate");
    symlink(repository("config"), desk.folder.join("config")).unwrap();
    let file = |name: &str| suite.fixture.scratch().join(name).display().to_string();
    let direct = Kubectl::new(&suite, Route::Direct);
    let (certificate, key) = (file("public.crt"), file("public.key"));
    let create = ["create", "secret", "tls", "kube-example-com"];
    let rest = ["--namespace=default", "--cert", &certificate, "--key", &key];
    direct.run(&[&create[..], &rest[..]].concat()).ok();
    desk.run(Route::Direct, page("from-contour.md").block("get secret"))
        .ok();
    assert!(
        !desk.folder.join("tls.key").exists(),
        "the page leaves the key"
    );
    let get = ["get", "secret", "kube-tls-proxy-tls", "--output=json"];
    let copied = direct.run(&[&get[..], &["--namespace=kube-tls-proxy"]].concat());
    let original = ["get", "secret", "kube-example-com", "--output=json"];
    let original = direct.run(&[&original[..], &["--namespace=default"]].concat());
    let data =
        |outcome: Outcome| serde_json::from_str::<Value>(&outcome.ok()).unwrap()["data"].clone();
    assert_eq!(data(copied), data(original));
}

/// Follows this page to its end.
#[track_caller]
fn follow(suite: &Suite, name: &str) {
    define_kinds(suite);
    let guide = page(name);
    let desk = Desk::new(suite, name);
    let objects = guide.block_from("apiVersion: ");
    let direct = Kubectl::new(suite, Route::Direct);
    direct
        .run_with_input(&["apply", "-f", "-"], objects.into())
        .ok();
    let report = desk.run(Route::Direct, guide.block("kube-tls-proxy translate"));
    assert!(
        report.stderr.contains(" 0 not possible, 0 not known"),
        "{}",
        report.stderr
    );
    report.ok();
    let printed = fs::read_to_string(desk.folder.join("kube-tls-proxy.yaml")).unwrap();
    let documented = guide.block_from("certificates:");
    assert!(printed.ends_with(&format!("\n{documented}")), "{printed}");

    let config = outside_of_a_pod(&printed, &suite.upstream());
    let proxy = suite.proxy.another(&suite.fixture, &config, &[]);
    // All pages lead to these steps of this one.
    let steps = page("from-contour.md");
    let token = desk.folder.join("token");
    fs::write(token, suite.fixture.token()).unwrap();
    let check = steps.block("--connect-to");
    let check = check
        .trim_end()
        .replace("203.0.113.20:443", &format!("127.0.0.1:{}", proxy.port()));
    let check = format!("{check} --through-ca {}", proxy.server().ca);
    desk.run(Route::Direct, &check).ok();

    let proxied = Kubectl::new(suite, Route::Proxied).with_server(proxy.server());
    let kubeconfig = proxied.kubeconfig();
    let commands = steps.block("kubectl auth whoami");
    assert_eq!(commands.lines().count(), 4, "{commands}");
    for command in commands.lines() {
        let here = command
            .replace("POD", "shell")
            .replace("timeout 60", "timeout 3");
        let outcome = desk.run_with(&kubeconfig, &here);
        // `timeout` ended a watch that was still open.
        let expected = if here.starts_with("timeout ") { 124 } else { 0 };
        assert_eq!(outcome.code, Some(expected), "{here}\n{}", outcome.stderr);
        let output = outcome.text();
        if here.contains("whoami") {
            assert!(output.contains(suite.way.user()), "{output}");
        }
        if here.contains("--watch") {
            assert!(output.contains("shell"), "{output}");
        }
    }
    desk.run(
        Route::Direct,
        guide.block("kubectl --namespace default delete"),
    )
    .ok();
}

/// Creates the kinds of Contour and of the Gateway API, and the namespace of the Gateway. No controller reads them.
fn define_kinds(suite: &Suite) {
    let kinds = [
        ("projectcontour.io", "HTTPProxy", "httpproxies"),
        ("gateway.networking.k8s.io", "HTTPRoute", "httproutes"),
        ("gateway.networking.k8s.io", "Gateway", "gateways"),
        (
            "gateway.networking.k8s.io",
            "BackendTLSPolicy",
            "backendtlspolicies",
        ),
    ];
    let definitions = kinds.map(|(group, kind, plural)| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{group}"),
                // The apiserver asks for this in groups of Kubernetes.
                "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" },
            },
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase() },
                "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                }}}],
            },
        })
    });
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "gateways" } });
    let items: Vec<_> = definitions.iter().chain(iter::once(&namespace)).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let kubectl = Kubectl::new(suite, Route::Direct);
    let apply = ["apply", "--server-side", "-f", "-"];
    kubectl.run_with_input(&apply, list.to_string().into()).ok();
    let names = kinds.map(|(group, _, plural)| format!("crd/{plural}.{group}"));
    let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
    let wait: Vec<_> = wait
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    kubectl.run(&wait).ok();
}

/// The example blocks of a page: lines with four blanks before them.
struct Guide {
    name: String,
    blocks: Vec<String>,
}

/// Reads this page, for a reader on this machine.
fn page(name: &str) -> Guide {
    let text = fs::read_to_string(repository("docs").join(name)).unwrap();
    let text = text
        .replace("kube.example.com", "localhost")
        .replace("203.0.113.0/24", "127.0.0.0/8");
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(line) => blocks.last_mut().unwrap().extend([line, "\n"]),
            None => blocks.push(String::new()),
        }
    }
    let name = name.to_owned();
    Guide { name, blocks }
}

impl Guide {
    /// The first block that contains `text`.
    #[track_caller]
    fn block(&self, text: &str) -> &str {
        self.find(|block| block.contains(text), text)
    }

    /// The first block that begins with `text`.
    #[track_caller]
    fn block_from(&self, text: &str) -> &str {
        self.find(|block| block.starts_with(text), text)
    }

    #[track_caller]
    fn find(&self, is_wanted: impl Fn(&str) -> bool, text: &str) -> &str {
        let found = self.blocks.iter().find(|block| is_wanted(block));
        found.unwrap_or_else(|| panic!("{} has no example with {text}", self.name))
    }
}

/// Where the reader of a page types its commands.
struct Desk<'a> {
    suite: &'a Suite,
    folder: PathBuf,
}

impl<'a> Desk<'a> {
    fn new(suite: &'a Suite, name: &str) -> Self {
        let folder = suite.fixture.scratch().join(format!("guide-{name}"));
        fs::create_dir(&folder).unwrap();
        Self { suite, folder }
    }

    /// Runs commands of a page in a shell.
    #[track_caller]
    fn run(&self, route: Route, commands: &str) -> Outcome {
        self.run_with(&Kubectl::new(self.suite, route).kubeconfig(), commands)
    }

    #[track_caller]
    fn run_with(&self, kubeconfig: &Path, commands: &str) -> Outcome {
        let program = Path::new(env!("CARGO_BIN_EXE_kube-tls-proxy"));
        let before = env::var_os("PATH").unwrap();
        let folders =
            iter::once(program.parent().unwrap().to_owned()).chain(env::split_paths(&before));
        let mut shell = Command::new("sh");
        shell
            .args(["-e", "-c", commands])
            .current_dir(&self.folder)
            .env("PATH", env::join_paths(folders).unwrap())
            .env("HOME", &self.folder)
            .env("KUBECONFIG", kubeconfig);
        run(shell, Vec::new(), Duration::from_mins(2))
    }
}

fn repository(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}
