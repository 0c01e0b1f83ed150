//! The ways in which the user of the suite comes in, and the cases that make no sense in one of them.
//!
//! `CLUSTER_WAY` selects a way. The cases do not know it: they ask the suite for its server and for its user.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::{env, fs};

use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::impersonation;
use crate::kubectl::{Kubectl, same_on_both};
use crate::process::run;
use crate::suite::{Credential, Route, shared};

/// A way in which the user of the suite comes in through the proxy. The same user comes in directly with the same
/// credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// With a token.
    Token,
    /// With a token, through access rules that allow it.
    Rules,
    /// With a client certificate, through a proxy that is a front proxy.
    FrontProxy,
    /// With a client certificate, through a proxy that impersonates its owner.
    Impersonation,
    /// With a client certificate, which the apiserver verifies itself.
    Passthrough,
    /// With a token, through the translation of an `HTTPProxy`.
    HttpProxy,
    /// With a token, through the translation of an Ingress.
    Ingress,
    /// With a token, through the translation of an `HTTPRoute`.
    HttpRoute,
}

impl Way {
    const ALL: [Self; 8] = [
        Self::Token,
        Self::Rules,
        Self::FrontProxy,
        Self::Impersonation,
        Self::Passthrough,
        Self::HttpProxy,
        Self::Ingress,
        Self::HttpRoute,
    ];

    /// The value of `CLUSTER_WAY`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Rules => "rules",
            Self::FrontProxy => "front-proxy",
            Self::Impersonation => "impersonation",
            Self::Passthrough => "passthrough",
            Self::HttpProxy => "http-proxy",
            Self::Ingress => "ingress",
            Self::HttpRoute => "http-route",
        }
    }

    /// The way that the environment selects.
    ///
    /// # Panics
    /// When the variable has another value, because the cases would then test less than they say.
    pub(crate) fn from_environment() -> Self {
        let Ok(name) = env::var("CLUSTER_WAY") else {
            return Self::Token;
        };
        let names = Self::ALL.map(Self::name);
        let way = Self::ALL.into_iter().find(|way| way.name() == name);
        way.unwrap_or_else(|| panic!("CLUSTER_WAY={name}: the ways are {names:?}"))
    }

    /// The credential of the user of the suite, who may do everything.
    pub(crate) fn credential(self, fixture: &Fixture) -> Credential {
        match self {
            Self::Token | Self::Rules | Self::HttpProxy | Self::Ingress | Self::HttpRoute => {
                Credential::Token(fixture.token().to_owned())
            }
            Self::FrontProxy | Self::Impersonation | Self::Passthrough => {
                let [certificate, key] = fixture.user_files().map(str::to_owned);
                Credential::Certificate { certificate, key }
            }
        }
    }

    /// The name of that user.
    pub(crate) fn user(self) -> &'static str {
        match self {
            Self::Token | Self::Rules | Self::HttpProxy | Self::Ingress | Self::HttpRoute => {
                "system:serviceaccount:suite:admin"
            }
            Self::FrontProxy | Self::Impersonation | Self::Passthrough => "jane",
        }
    }

    /// The manifest from which the configuration is translated, in `tests/manifests/public`, and the host in it.
    fn manifest(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::HttpProxy => Some(("contour-seed.yaml", "kube.example.com")),
            Self::Ingress => Some(("kops-530.yaml", "api.k8s.example.com")),
            Self::HttpRoute => Some(("envoy-gateway-9945.yaml", "kube.example.com")),
            Self::Token
            | Self::Rules
            | Self::FrontProxy
            | Self::Impersonation
            | Self::Passthrough => None,
        }
    }

    /// The cluster that the access log names for the user of the suite.
    fn cluster(self) -> &'static str {
        match self {
            Self::Token | Self::Rules | Self::FrontProxy | Self::Impersonation => "test",
            Self::Passthrough => "direct",
            Self::HttpProxy | Self::Ingress => "default/kubernetes",
            Self::HttpRoute => "default/apiserver",
        }
    }

    /// The configuration of a proxy in front of `upstream`, which has the address and the CA of the apiserver.
    pub(crate) fn config(self, fixture: &Fixture, upstream: &Value) -> Value {
        if let Some((file, host)) = self.manifest() {
            let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/public");
            let manifest = fs::read_to_string(manifests.join(file)).unwrap();
            return translated(&manifest.replace(host, "localhost"), upstream);
        }
        let mut cluster = json!({ "name": "test", "upstream": upstream });
        match self {
            Self::Token | Self::HttpProxy | Self::Ingress | Self::HttpRoute => {}
            Self::Rules => cluster["access"] = rules(),
            Self::FrontProxy => {
                let [certificate, key] = fixture.front_proxy_files();
                cluster["clientCertificates"] = json!({
                    "ca": fixture.ca(),
                    "frontProxy": { "certificate": certificate, "key": key },
                });
            }
            Self::Impersonation => {
                let token = impersonation::token_file(fixture, impersonation::ROLE, "suite");
                cluster["clientCertificates"] = json!({
                    "ca": fixture.ca(),
                    "impersonate": { "tokenFile": token },
                });
            }
            Self::Passthrough => {
                let mut passed = upstream.clone();
                // The client verifies the apiserver, not the proxy.
                passed.as_object_mut().unwrap().remove("ca");
                cluster["hosts"] = json!(["localhost"]);
                let host = json!([PASSED_HOST]);
                let direct = json!({ "name": "direct", "hosts": host, "passthrough": true, "upstream": passed });
                return json!({ "clusters": [cluster, direct] });
            }
        }
        json!({ "clusters": [cluster] })
    }
}

/// What `translate` prints for this manifest, with the one change that the docs name for a proxy outside of a pod: it
/// says where the apiserver is. The flags of the proxy replace the files of `certificates`.
fn translated(manifest: &str, upstream: &Value) -> Value {
    let mut translate = Command::new(env!("CARGO_BIN_EXE_kube-tls-proxy"));
    translate.args(["translate", "--strict", "-"]);
    let printed = run(translate, manifest.into(), Duration::from_secs(20)).ok();
    outside_of_a_pod(&printed, upstream)
}

/// This translated configuration, with `upstream` in place of the apiserver of a pod.
pub(crate) fn outside_of_a_pod(printed: &str, upstream: &Value) -> Value {
    let mut config: Value = serde_saphyr::from_str(printed).unwrap();
    let clusters = config["clusters"].as_array_mut().unwrap();
    let [cluster] = clusters.as_mut_slice() else {
        panic!("not one cluster: {printed}")
    };
    let cluster = cluster.as_object_mut().unwrap();
    assert_eq!(cluster["hosts"], json!(["localhost"]), "{printed}");
    assert_eq!(cluster.remove("inCluster"), Some(json!(true)), "{printed}");
    cluster.insert("upstream".into(), upstream.clone());
    config
}

/// A name of every certificate that kubeadm makes for an apiserver.
pub(crate) const PASSED_HOST: &str = "kubernetes";

/// Rules that allow every request of the suite, each by another selector, and deny what it never asks for.
fn rules() -> Value {
    // The last one is a client that a trusted proxy names.
    let here = json!(["127.0.0.0/8", "::1", "198.51.100.7"]);
    json!([
        { "deny": { "unlessFrom": here } },
        { "deny": { "credentials": ["basic"] } },
        { "deny": { "paths": [DENIED_PATH] } },
        { "deny": { "namespaces": ["kube-system"], "resources": ["secrets"] } },
        { "allow": { "issuers": ["https://kubernetes.default.svc"], "resources": ["*"], "verbs": ["get", "list", "watch"] } },
        { "allow": { "credentials": ["serviceAccount"], "from": here } },
        // The apiserver refuses these, as it does without the proxy.
        { "allow": { "credentials": ["none", "opaque"] } },
    ])
}

const DENIED_PATH: &str = "/debug/denied-by-the-rules-of-the-suite";

/// A case that makes no sense in some ways.
struct Exception {
    /// The name of a case, or of a module with cases.
    case: &'static str,
    ways: &'static [Way],
    reason: &'static str,
}

const WITHOUT_CERTIFICATE: &[Way] = &[
    Way::Token,
    Way::Rules,
    Way::Passthrough,
    Way::HttpProxy,
    Way::Ingress,
    Way::HttpRoute,
];
const NOT_TOKEN: &[Way] = &[
    Way::Rules,
    Way::FrontProxy,
    Way::Impersonation,
    Way::Passthrough,
    Way::HttpProxy,
    Way::Ingress,
    Way::HttpRoute,
];
const NOT_IMPERSONATION: &[Way] = &[
    Way::Token,
    Way::Rules,
    Way::FrontProxy,
    Way::Passthrough,
    Way::HttpProxy,
    Way::Ingress,
    Way::HttpRoute,
];
const NOT_PASSTHROUGH: &[Way] = &[
    Way::Token,
    Way::Rules,
    Way::FrontProxy,
    Way::Impersonation,
    Way::HttpProxy,
    Way::Ingress,
    Way::HttpRoute,
];
const IMPERSONATION: &[Way] = &[Way::Impersonation];
const PASSTHROUGH: &[Way] = &[Way::Passthrough];

const WITHOUT_AS: &str =
    "the proxy refuses --as, because the apiserver would ask whether the proxy may impersonate";
const WITHOUT_ADDRESS: &str =
    "the proxy cannot add the client's address to requests that it does not see";

/// Every other case runs in every way.
const EXCEPTIONS: &[Exception] = &[
    Exception {
        case: "access",
        ways: NOT_TOKEN,
        reason: "it has a proxy with rules of its own",
    },
    Exception {
        case: "audit::audit_log_and_access_log_name_the_same_user",
        ways: NOT_TOKEN,
        reason: "it is about the names in tokens, and has a proxy of its own",
    },
    Exception {
        case: "audit::audit_shows_client_and_proxy_and_no_spoofed_address",
        ways: PASSTHROUGH,
        reason: WITHOUT_ADDRESS,
    },
    Exception {
        case: "audit::audit_shows_client_that_balancer_or_trusted_proxy_names",
        ways: PASSTHROUGH,
        reason: WITHOUT_ADDRESS,
    },
    Exception {
        case: "certificates",
        ways: WITHOUT_CERTIFICATE,
        reason: "the proxy of the suite asks for no client certificate",
    },
    Exception {
        case: "certificates::owner_of_certificate_impersonates_as_without_the_proxy",
        ways: IMPERSONATION,
        reason: WITHOUT_AS,
    },
    Exception {
        case: "check",
        ways: NOT_TOKEN,
        reason: "it has flags for a cluster of its own",
    },
    Exception {
        case: "discovery",
        ways: NOT_TOKEN,
        reason: "it has a proxy of its own, and no client",
    },
    Exception {
        case: "guides",
        ways: NOT_TOKEN,
        reason: "the guides are the same in every way, and it has proxies of its own",
    },
    Exception {
        case: "impersonation",
        ways: NOT_IMPERSONATION,
        reason: "the proxy of the suite does not impersonate",
    },
    Exception {
        case: "informers::informers_resume_when_the_proxy_stops_24_times",
        ways: PASSTHROUGH,
        reason: "the proxy cannot tell a client to move whose requests it does not see",
    },
    Exception {
        case: "informers::restarted_apiserver_gets_its_share_of_informers",
        ways: NOT_TOKEN,
        reason: "connections move in the same way for every user, and it takes a minute",
    },
    Exception {
        case: "informers::watches_resume_when_one_of_two_apiservers_is_killed",
        ways: PASSTHROUGH,
        reason: "a connection that is passed ends with that of its apiserver",
    },
    Exception {
        case: "manifests",
        ways: NOT_TOKEN,
        reason: "it is about files, which are the same in every way",
    },
    Exception {
        case: "passthrough",
        ways: NOT_PASSTHROUGH,
        reason: "the proxy of the suite passes no connection on",
    },
    Exception {
        case: "reads::impersonation_reaches_the_apiserver",
        ways: IMPERSONATION,
        reason: WITHOUT_AS,
    },
    Exception {
        case: "reads::unusually_many_header_fields_reach_the_apiserver",
        ways: IMPERSONATION,
        reason: WITHOUT_AS,
    },
    Exception {
        case: "restart",
        ways: PASSTHROUGH,
        reason: "the proxy cannot answer in place of an apiserver that is down",
    },
    Exception {
        case: "spellings",
        ways: NOT_TOKEN,
        reason: "its requests do not go through a proxy",
    },
];

impl Exception {
    fn is_about(&self, case: &str) -> bool {
        case.strip_prefix(self.case)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }
}

/// The case that runs now, and why it makes no sense in this way.
///
/// # Panics
/// When no case runs on this thread.
pub(crate) fn exception(way: Way) -> Option<String> {
    // The test harness runs each case on a thread with its name.
    let thread = thread::current();
    let case = thread.name().filter(|name| name.contains("::"));
    let case = case.expect("only a case may ask for its turn, on its own thread");
    let found = EXCEPTIONS
        .iter()
        .find(|exception| exception.is_about(case) && exception.ways.contains(&way));
    found.map(|exception| format!("{case} in the way {}: {}", way.name(), exception.reason))
}

#[test]
fn every_exception_is_about_a_case() {
    let mut list = Command::new(env::current_exe().unwrap());
    list.args(["--list", "--format", "terse"]);
    let list = run(list, Vec::new(), Duration::from_secs(20)).ok();
    let cases: Vec<&str> = list
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .collect();
    assert!(cases.contains(&"way::every_exception_is_about_a_case"));
    for exception in EXCEPTIONS {
        let case = exception.case;
        assert!(
            cases.iter().any(|name| exception.is_about(name)),
            "no case has the name {case}"
        );
        let elsewhere = Way::ALL.iter().any(|way| !exception.ways.contains(way));
        assert!(elsewhere, "{case} runs in no way");
    }
}

/// A way that is missing there is not tested.
#[test]
fn ci_runs_the_suite_in_every_way() {
    let steps = include_str!("../../../.ci/run");
    let ways = steps
        .lines()
        .find_map(|line| line.strip_prefix("cluster_ways=\"")?.strip_suffix('"'));
    let ways: Vec<_> = ways.unwrap().split(' ').collect();
    assert_eq!(ways, Way::ALL.map(Way::name));
}

#[test]
fn user_of_the_suite_comes_in_the_way_it_says() {
    let Some(suite) = shared() else { return };
    let way = suite.way;
    let who = same_on_both(&suite, &["auth", "whoami"]).ok();
    assert!(who.contains(way.user()), "{who}");
    let denied = Kubectl::new(&suite, Route::Proxied).run(&["get", "--raw", DENIED_PATH]);
    assert_eq!(denied.code, Some(1));
    let by_rule = denied.stderr.contains("(rule 3 of cluster test)");
    assert_eq!(by_rule, way == Way::Rules, "{}", denied.stderr);
    let log = suite.proxy.end_of_log();
    let cluster = format!(" cluster={} ", way.cluster());
    assert!(log.contains(&cluster), "no{cluster}in\n{log}");
}
