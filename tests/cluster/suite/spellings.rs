//! What the proxy reads from a request's method and target, against what the apiserver reads: its audit log names verb
//! and object of every request, whatever the spelling. An access rule about that verb and object must deny the request.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use http::{Method, Uri};
use kube_tls_proxy::config::{AccessRule, RuleEffect};
use kube_tls_proxy::fuzz::{AccessRules, RequestAttributes, is_open, request_attributes};
use serde_json::Value;

use crate::process::run;
use crate::suite::{Route, Suite, shared};

#[test]
fn request_info_names_what_the_audit_log_names() {
    let Some(suite) = shared() else { return };
    let requests = requests();
    assert!(requests.len() >= 300, "{} requests", requests.len());
    let statuses = send(&suite, &requests);
    let events = events(&suite, &requests, &statuses);
    let mut compared = 0;
    let mut wrong = Vec::new();
    let mut judged = [0; 3];
    let mut previous = None;
    for (number, request) in requests.iter().enumerate() {
        let (method, target) = request.split_once(' ').unwrap();
        // The proxy refuses a target that this parser refuses.
        let Ok(uri) = target.parse::<Uri>() else {
            continue;
        };
        let Some(event) = events.get(&number) else {
            // The apiserver refuses it before it knows what is asked for.
            let status = statuses[number];
            assert!([400, 500].contains(&status), "{status}: {request}");
            continue;
        };
        compared += 1;
        let ours = request_attributes(&Method::from_bytes(method.as_bytes()).unwrap(), &uri);
        let theirs = attributes(event, target);
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let denied = rule_about(&theirs, &uri).map(|rule| is_denied(rule, &method, &uri));
        let other = previous.replace((rule_about(&theirs, &uri), theirs.clone()));
        let other = other.filter(|(_, other)| !overlap(other, &theirs));
        let other = other
            .and_then(|(rule, _)| rule)
            .map(|rule| is_denied(rule, &method, &uri));
        match (denied, other) {
            (Some(Some(true)), None | Some(Some(false) | None)) => judged[0] += 1,
            (Some(None), None | Some(Some(false) | None)) => judged[1] += 1,
            // No rule can name this object, so its spelling must be refused.
            (None, _) if refuses(&method, &uri) => judged[2] += 1,
            decisions => wrong.push(format!(
                "{request}\n  {theirs:?}\n  decisions {decisions:?}"
            )),
        }
        if ours != theirs {
            wrong.push(format!("{request}\n  ours   {ours:?}\n  theirs {theirs:?}"));
        }
    }
    eprintln!("{compared} of {} requests compared", requests.len());
    eprintln!("denied, refused, nameless: {judged:?}");
    assert!(judged[0] >= 300, "{judged:?}");
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared >= 300, "{compared} requests have an audit event");
}

/// A rule that denies exactly what the audit log names. `None` if no rule can name it.
fn rule_about(theirs: &RequestAttributes, uri: &Uri) -> Option<AccessRule> {
    let mut rule = AccessRule::new(RuleEffect::Deny);
    if !theirs.verb.is_empty() {
        rule.verbs = vec![theirs.verb.parse().ok()?];
    }
    if theirs.resource.is_empty() {
        rule.paths = vec![uri.path().parse().ok()?];
        return Some(rule);
    }
    let group = Some(theirs.group.as_str())
        .filter(|group| !group.is_empty())
        .unwrap_or("core");
    let mut resource = format!("{group}/{}", theirs.resource);
    if !theirs.subresource.is_empty() {
        resource = format!("{resource}/{}", theirs.subresource);
    }
    rule.resources = vec![resource.parse().ok()?];
    if !theirs.namespace.is_empty() {
        rule.namespaces = vec![theirs.namespace.parse().ok()?];
    }
    Some(rule)
}

/// Whether this rule denies a request that is open otherwise. `None` if the proxy refuses its spelling.
fn is_denied(rule: AccessRule, method: &Method, uri: &Uri) -> Option<bool> {
    let rules = [rule, AccessRule::new(RuleEffect::Allow)];
    let rules = AccessRules::new("suite", &rules).unwrap();
    is_open(&rules, method, uri).map(|is_open| !is_open)
}

/// Whether a rule about verbs makes the proxy refuse the spelling, or denies everything.
fn refuses(method: &Method, uri: &Uri) -> bool {
    let rule = AccessRule {
        resources: vec!["*".parse().unwrap()],
        ..AccessRule::new(RuleEffect::Deny)
    };
    // A path such as `/api/v1/watch` names no resource, and the rule for all of them has it.
    is_denied(rule, method, uri) != Some(false)
}

/// Whether a rule about one of these may also deny the other: exec has two verbs, and a rule for a namespace includes
/// all of them.
fn overlap(one: &RequestAttributes, other: &RequestAttributes) -> bool {
    let object = |of: &RequestAttributes| {
        (
            of.group.clone(),
            of.resource.clone(),
            of.subresource.clone(),
        )
    };
    object(one) == object(other)
}

/// Sends the requests directly. Nothing they ask for happens, because the impersonated user may do nothing.
fn send(suite: &Suite, requests: &[String]) -> Vec<u64> {
    let mut client = suite.raw_client("spellings", Route::Direct, &suite.credential());
    client.args(["-header", "Impersonate-User: stranger"]);
    let output = run(client, requests.join("\n").into_bytes(), LIMIT).ok();
    let output: Value = serde_json::from_str(&output).unwrap();
    let statuses = output["status"].as_array().unwrap();
    statuses
        .iter()
        .map(|status| status.as_u64().unwrap())
        .collect()
}

/// The audit event of each request that has one. An event can be later than its response.
fn events(suite: &Suite, requests: &[String], statuses: &[u64]) -> BTreeMap<usize, Value> {
    let forbidden = statuses.iter().filter(|status| **status == 403).count();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let log = fs::read_to_string(suite.fixture.audit()).unwrap();
        let lines = log.lines().filter(|line| line.contains("spelling-"));
        let events: BTreeMap<usize, Value> = lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|event| {
                let number = event["userAgent"].as_str()?.strip_prefix("spelling-")?;
                Some((number.parse().ok()?, event))
            })
            .collect();
        if events.len() >= forbidden || Instant::now() > deadline {
            assert!(
                events.len() >= forbidden,
                "{} of {} events",
                events.len(),
                requests.len()
            );
            return events;
        }
        thread::park_timeout(Duration::from_millis(50));
    }
}

fn attributes(event: &Value, target: &str) -> RequestAttributes {
    let object = &event["objectRef"];
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let mut theirs = RequestAttributes {
        verb: event["verb"].as_str().unwrap().to_owned(),
        group: text("apiGroup"),
        resource: text("resource"),
        subresource: text("subresource"),
        namespace: text("namespace"),
        name: text("name"),
    };
    // The one difference: a query must not reach the log of the proxy.
    if target.contains("fieldSelector") && ["list", "watch"].contains(&theirs.verb.as_str()) {
        theirs.name = String::new();
    }
    theirs
}

/// Spellings of paths and queries, each once.
fn requests() -> Vec<String> {
    let mut requests = Vec::new();
    for path in PATHS {
        requests.push(format!("GET {path}"));
        for spelling in respell(path) {
            requests.push(format!("GET {spelling}"));
        }
    }
    for method in ["HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for path in PATHS {
            requests.push(format!("{method} {path}"));
        }
    }
    for query in QUERIES {
        for path in [
            "/api/v1/pods",
            "/api/v1/namespaces/suite/pods/shell",
            "/version",
        ] {
            requests.push(format!("GET {path}?{query}"));
        }
        requests.push(format!("HEAD /api/v1/pods?{query}"));
    }
    requests.sort();
    requests.dedup();
    requests
}

/// Other ways to write a path: letters and slashes as escapes, parts that are empty or made of dots.
fn respell(path: &str) -> Vec<String> {
    let middle = path.len() / 2;
    let slash = path.rfind('/').unwrap();
    let escaped = |at: usize| {
        let byte = path.as_bytes()[at];
        format!("{}%{byte:02x}{}", &path[..at], &path[at + 1..])
    };
    vec![
        escaped(middle),
        escaped(path.len() - 1).to_uppercase().replace("%2F", "%2f"),
        escaped(slash),
        format!("/{path}"),
        format!("{path}/"),
        format!("{path}//"),
        format!("{}//{}", &path[..slash], &path[slash + 1..]),
        format!("{}/./{}", &path[..slash], &path[slash + 1..]),
        format!("{}/x/../{}", &path[..slash], &path[slash + 1..]),
        format!("{path}%20"),
        format!("{path}%00"),
        format!("{path}%"),
        format!("{path};a=b"),
    ]
}

const PATHS: &[&str] = &[
    "/api",
    "/api/v1",
    "/apis",
    "/apis/apps",
    "/apis/apps/v1",
    "/version",
    "/healthz/etcd",
    "/openapi/v3/api/v1",
    "/api/v1/pods",
    "/api/v1/namespaces",
    "/api/v1/namespaces/suite",
    "/api/v1/namespaces/suite/status",
    "/api/v1/namespaces/suite/finalize",
    "/api/v1/namespaces/suite/pods",
    "/api/v1/namespaces/suite/pods/shell",
    "/api/v1/namespaces/suite/pods/shell/log",
    "/api/v1/namespaces/suite/pods/shell/exec",
    "/api/v1/namespaces/suite/pods/shell/ephemeralcontainers",
    "/api/v1/namespaces/suite/pods/shell/proxy/a/b",
    "/api/v1/namespaces/suite/services/https:web:443/proxy/a",
    "/api/v1/namespaces/suite/serviceaccounts/admin/token",
    "/api/v1/nodes/node-1/proxy/metrics",
    "/api/v1/watch",
    "/api/v1/watch/pods",
    "/api/v1/watch/namespaces/suite/pods/shell",
    "/api/v1/proxy",
    "/api/v1/proxy/namespaces/suite/pods/shell/log",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/namespaces/suite/deployments/web/scale",
    "/apis/metrics.k8s.io/v1beta1/nodes",
    "/apis/none.example/v1/things/one/two/three",
    "/namespaces/suite/pods",
];

const QUERIES: &[&str] = &[
    "",
    "watch",
    "watch=",
    "watch=1",
    "watch=true",
    "watch=TRUE",
    "watch=t",
    "watch=0",
    "watch=false",
    "watch=False",
    "watch=FALSE",
    "watch=f",
    "watch=no",
    "watch=%30",
    "watch=fals%65",
    "watch=%zz",
    "watch=true&watch=false",
    "watch=false&watch=true",
    "watch=0;&watch=1",
    "a=b;watch=1",
    "watch=1;a=b",
    "%77atch=1",
    "w%61tch=false",
    "Watch=1",
    "+watch=1",
    "watch+=1",
    "watch=+1",
    "=&watch=1",
    "&&watch=1",
    "watch=true=false",
    "limit=1&watch=1",
    "fieldSelector=metadata.name%3Dshell",
    "fieldSelector=metadata.name=shell&watch=1",
    "watch=1&fieldSelector=spec.nodeName=x",
    "pretty=true",
    "timeoutSeconds=1&watch=true&allowWatchBookmarks=true",
];

const LIMIT: Duration = Duration::from_mins(2);
