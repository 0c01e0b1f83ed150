//! Hostile spellings of requests against rules, honest ones, and random paths.

use super::*;

const CLOSED: &str = "
  - deny: {resources: [pods/exec, pods/ephemeralcontainers, nodes/proxy, secrets]}
  - deny: {namespaces: [kube-*]}
  - deny: {paths: [/metrics, /logs/*]}
  - allow: {}
";

#[test]
fn hostile_spellings_open_nothing() {
    let rules = rules(CLOSED);
    let mut wrong = Vec::new();
    for (request, expected) in HOSTILE {
        let found = outside(&rules, request);
        if found != *expected {
            wrong.push(format!("{request}: {found} and not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(HOSTILE.len() >= 100, "{} requests", HOSTILE.len());
}

/// Each request, and the rule that denies it; `400` for a spelling that servers read in different ways.
const HOSTILE: &[(&str, &str)] = &[
    // What the rules are for.
    ("GET /api/v1/secrets", "rule 1"),
    ("GET /api/v1/namespaces/a/secrets/b", "rule 1"),
    ("HEAD /api/v1/namespaces/a/secrets/b", "rule 1"),
    ("POST /api/v1/namespaces/a/secrets", "rule 1"),
    ("PATCH /api/v1/namespaces/a/secrets/b", "rule 1"),
    ("DELETE /api/v1/namespaces/a/secrets", "rule 1"),
    ("OPTIONS /api/v1/namespaces/a/secrets", "rule 1"),
    ("get /api/v1/namespaces/a/secrets", "rule 1"),
    ("FOO /api/v1/namespaces/a/secrets", "rule 1"),
    ("GET /api/v1/namespaces/a/pods/b/exec", "rule 1"),
    ("POST /api/v1/namespaces/a/pods/b/exec", "rule 1"),
    (
        "PATCH /api/v1/namespaces/a/pods/b/ephemeralcontainers",
        "rule 1",
    ),
    // Absolute targets, and queries that change the verb.
    ("GET https://kube.test/api/v1/secrets", "rule 1"),
    ("GET /api/v1/secrets?watch=1", "rule 1"),
    ("GET /api/v1/secrets?watch=true&watch=false", "rule 1"),
    (
        "GET /api/v1/secrets?fieldSelector=metadata.name=b",
        "rule 1",
    ),
    ("GET /api/v1/secrets?/api/v1/pods", "rule 1"),
    (
        "GET /api/v1/namespaces/a/pods/b/exec?command=sh&stdin=true",
        "rule 1",
    ),
    // The old ways to watch and to proxy.
    ("GET /api/v1/watch/secrets", "rule 1"),
    ("GET /api/v1/watch/namespaces/a/secrets/b", "rule 1"),
    ("GET /api/v1/proxy/namespaces/a/secrets/b", "rule 1"),
    ("GET /api/v1/watch/namespaces/a/pods/b/exec", "rule 1"),
    // Slashes and parts at the ends.
    ("GET /api/v1/secrets/", "rule 1"),
    ("GET /api/v1/secrets//", "rule 1"),
    ("GET //api/v1/secrets", "rule 1"),
    ("GET ///api/v1/secrets", "rule 1"),
    ("GET /api/v1/namespaces/a/pods/b/exec/", "rule 1"),
    ("GET /api/v1/namespaces/a/pods/b/exec/more", "rule 1"),
    // Empty parts and dots.
    ("GET /api//v1/secrets", "400"),
    ("GET /api/v1//secrets", "400"),
    ("GET /apis//v1/secrets", "400"),
    ("GET /api/v1/namespaces//secrets", "400"),
    ("GET /api/v1/namespaces/a//secrets", "400"),
    ("GET /api/v1/namespaces/a/pods//exec", "400"),
    ("GET /api/v1/namespaces/a/pods/b//exec", "400"),
    ("GET /api/v1/./secrets", "400"),
    ("GET /api/./v1/secrets", "400"),
    ("GET /./api/v1/secrets", "400"),
    ("GET /x/../api/v1/secrets", "400"),
    ("GET /../api/v1/secrets", "400"),
    ("GET /api/v1/x/../secrets", "400"),
    ("GET /api/v1/namespaces/a/configmaps/../secrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b/log/../exec", "400"),
    ("GET /api/v1/namespaces/a/pods/./exec", "400"),
    ("GET /version/../api/v1/secrets", "400"),
    // Escapes of letters, once and twice.
    ("GET /%61pi/v1/secrets", "400"),
    ("GET /api/v1/%73ecrets", "400"),
    ("GET /api/v1/secret%73", "400"),
    ("GET /api/v1/%2573ecrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b/%65xec", "400"),
    ("GET /api/v1/namespaces/a/pods/b/%2565xec", "400"),
    ("GET /api/v1/names%70aces/a/secrets", "400"),
    ("GET /api/v1/n%6fdes/n/proxy/run", "400"),
    // Escapes of slashes and dots, once and twice.
    ("GET /api%2fv1%2fsecrets", "400"),
    ("GET /api%2Fv1/secrets", "400"),
    ("GET /api/v1%2fsecrets", "400"),
    ("GET /%2fapi/v1/secrets", "400"),
    ("GET /api/v1/namespaces/a%2fsecrets", "400"),
    ("GET /api/v1/namespaces%2fa/secrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b%2fexec", "400"),
    ("GET /api/v1/namespaces/a/pods/b%252fexec", "400"),
    ("GET /api/v1/namespaces/a/pods%2fb/exec", "400"),
    ("GET /api/v1/namespaces/a/configmaps/%2e%2e/secrets", "400"),
    (
        "GET /api/v1/namespaces/a/configmaps/%252e%252e/secrets",
        "400",
    ),
    ("GET /api/v1/namespaces/a/configmaps/.%2e%2fsecrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b%5cexec", "400"),
    ("GET /api/v1/namespaces/a/pods/b%255cexec", "400"),
    // What some servers cut off.
    ("GET /api/v1/secrets;a=b", "400"),
    ("GET /api/v1/;a=b/secrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec;a=b", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%3ba", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%253ba", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%20", "400"),
    ("GET /api/v1/namespaces/a/pods/b/%20exec", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%09", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%0a", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%00", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%00.txt", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%3f", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%23", "400"),
    ("GET /api/v1/secrets%3fwatch=1", "400"),
    // Not an escape.
    ("GET /api/v1/secrets%", "400"),
    ("GET /api/v1/secrets%zz", "400"),
    ("GET /api/v1/namespaces/a/pods/%/exec", "400"),
    // Case.
    ("GET /api/v1/Secrets", "400"),
    ("GET /api/v1/SECRETS", "400"),
    ("GET /API/v1/secrets", "400"),
    ("GET /Api/V1/secrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b/EXEC", "400"),
    ("GET /api/v1/namespaces/a/Pods/b/exec", "400"),
    ("GET /api/v1/NAMESPACES/a/secrets", "400"),
    // The kubelet through the apiserver, with the port and scheme in the name, or an escape there.
    ("GET /api/v1/nodes/n/proxy", "rule 1"),
    ("GET /api/v1/nodes/n/proxy/exec/a/b/c", "rule 1"),
    ("POST /api/v1/nodes/n:10250/proxy/run/a/b/c", "rule 1"),
    ("GET /api/v1/nodes/https:n:10250/proxy/pods", "rule 1"),
    ("GET /api/v1/nodes/n%3a10250/proxy/pods", "rule 1"),
    ("GET /api/v1/nodes/n/proxy/../proxy/pods", "rule 1"),
    ("GET /api/v1/nodes/n/proxy/a%2fb", "rule 1"),
    ("GET /api/v1/nodes/n/proxy//pods", "rule 1"),
    (
        "GET /api/v1/namespaces/a/services/web/proxy/../../../secrets",
        "400",
    ),
    (
        "GET /api/v1/namespaces/a/services/web/proxy/%2e%2e/%2e%2e/%2e%2e/secrets",
        "400",
    ),
    (
        "GET /api/v1/namespaces/a/services/web/proxy/..%2f..%2f..%2fsecrets",
        "400",
    ),
    ("GET /api/v1/namespaces/a/pods/proxy//exec", "400"),
    // A namespace, and all namespaces at once.
    ("GET /api/v1/namespaces/kube-system/configmaps", "rule 2"),
    (
        "GET /apis/apps/v1/namespaces/kube-system/deployments",
        "rule 2",
    ),
    ("DELETE /api/v1/namespaces/kube-system", "rule 2"),
    ("PUT /api/v1/namespaces/kube-system/finalize", "rule 2"),
    ("GET /api/v1/configmaps", "rule 2"),
    (
        "GET /api/v1/configmaps?fieldSelector=metadata.namespace=a",
        "rule 2",
    ),
    ("GET /api/v1/watch/configmaps", "rule 2"),
    ("DELETE /api/v1/pods", "rule 2"),
    ("GET /apis/example.com/v1/widgets", "rule 2"),
    ("GET /api/v1/namespaces/kube%2dsystem/configmaps", "400"),
    ("GET /api/v1/namespaces/Kube-System/configmaps", "400"),
    ("GET /api/v1/namespaces/kube-system%20/configmaps", "400"),
    ("GET /api/v1/namespaces/a/../kube-system/configmaps", "400"),
    // Paths without a resource.
    ("GET /metrics", "rule 3"),
    ("GET /metrics/", "rule 3"),
    ("GET /metrics?a=b", "rule 3"),
    ("get /metrics", "rule 3"),
    ("GET /logs/", "rule 3"),
    ("GET /logs/audit.log", "rule 3"),
    ("GET //metrics", "400"),
    ("GET /metrics//", "400"),
    ("GET /./metrics", "400"),
    ("GET /x/../metrics", "400"),
    ("GET /%6detrics", "400"),
    ("GET /%256detrics", "400"),
    ("GET /metrics%20", "400"),
    ("GET /metrics%00", "400"),
    ("GET /metrics;a=b", "400"),
    ("GET /logs%2faudit.log", "400"),
    ("GET /healthz/..%2fmetrics", "400"),
];

/// The same words in places where they mean something else, and spellings that clients use.
#[test]
fn honest_requests_stay_open() {
    let rules = rules(CLOSED);
    for request in [
        "GET /api",
        "GET /api/",
        "GET /apis/apps/v1",
        "GET /version?timeout=32s",
        "GET /openapi/v3/apis/apps/v1?hash=ABC",
        "GET /.well-known/openid-configuration",
        "OPTIONS *",
        "GET /",
        "GET /METRICS",
        "GET /api/v1/namespaces",
        "GET /api/v1/namespaces/a",
        "GET /api/v1/nodes",
        "GET /api/v1/nodes/proxy",
        "GET /api/v1/persistentvolumes",
        "GET /api/v1/namespaces/a/pods/exec",
        "GET /api/v1/namespaces/secrets/pods/secrets",
        "GET /api/v1/namespaces/a/pods/secrets/log?follow=true",
        "GET /apis/example.com/v1/namespaces/a/secrets",
        "GET /apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
        "GET /apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "POST /apis/authentication.k8s.io/v1/selfsubjectreviews",
        "GET /api/v1/namespaces/a/services/https:web:443/proxy/A/b.html?c=D",
        "GET /api/v1/namespaces/a/services/https%3Aweb%3A443/proxy/a",
        "GET /api/v1/namespaces/a/services/web/proxy/api/label/a%2Fb/c%25d",
        "GET /api/v1/namespaces/a/services/web/proxy//a/../b;c=d/%E4",
        "GET /api/v1/namespaces/a/configmaps/kube-root-ca.crt",
        "GET /api/v1/namespaces/akube-x/configmaps",
    ] {
        assert_eq!(outside(&rules, request), "open 4", "{request}");
    }
}

/// Without a rule about what a request asks for, no spelling of a path matters.
#[test]
fn rules_about_clients_leave_paths_alone() {
    let rules = rules("  - allow: {from: [198.51.100.0/24]}");
    for path in ["/api//v1/%73ecrets", "/a/../b", "/api/v1/x%zz"] {
        assert_eq!(outside(&rules, &format!("GET {path}")), "open 1", "{path}");
    }
}

/// Whatever a server before the apiserver does to a path that is open, the result is open, too.
#[test]
fn no_reading_of_an_open_path_is_closed() {
    const PIECES: [&str; 34] = [
        "/",
        "/",
        "/",
        "/",
        "/",
        "/api",
        "/v1",
        "/apis",
        "/namespaces",
        "/pods",
        "/secrets",
        "/exec",
        "/proxy",
        "/nodes",
        "/kube-system",
        "/metrics",
        "a",
        ".",
        "..",
        "%2e",
        "%2f",
        "%252f",
        "%61pi",
        "%70ods",
        ";",
        "%3b",
        "%00",
        "%20",
        "%5c",
        "%3f",
        "%25",
        "S",
        "/watch",
        "x",
    ];
    let rules = rules(CLOSED);
    let (mut state, mut open) = (7_u64, 0);
    let mut next = |below: usize| {
        // Knuth's MMIX constants. Only the high bits are random enough.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..50_000 {
        let prefix = ["/api/v1", "/api/v1/namespaces/a", "/apis/apps/v1", ""][next(4)];
        let pieces: String = (0..=next(7)).map(|_| PIECES[next(PIECES.len())]).collect();
        let path = format!("{prefix}/{pieces}");
        if !outside(&rules, &format!("GET {path}")).starts_with("open") {
            continue;
        }
        open += 1;
        for reading in readings(&path) {
            let found = outside(&rules, &format!("GET {reading}"));
            assert!(
                !found.starts_with("rule"),
                "{path} is open, but {reading} is {found}"
            );
        }
    }
    assert!(open > 1000, "{open} paths are open");
}

/// The path decoded up to twice, and each of these with dots resolved, slashes merged and parameters cut. Written
/// without the code that it tests.
fn readings(path: &str) -> Vec<String> {
    let decode = |path: &str| {
        let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
        while let [first, more @ ..] = rest {
            let digits = more.get(..2).and_then(|digits| str::from_utf8(digits).ok());
            let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            match byte.filter(|_| *first == b'%') {
                Some(byte) => (bytes.push(byte), rest = &more[2..]).1,
                None => (bytes.push(*first), rest = more).1,
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let once = decode(path);
    let twice = decode(&once);
    let mut readings = Vec::new();
    for reading in [path.to_owned(), once, twice] {
        let cut = reading.split(['?', '#', '\0']).next().unwrap();
        let mut parts: Vec<&str> = Vec::new();
        for part in cut.split(['/', '\\']) {
            match part.split(';').next().unwrap().trim() {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        readings.push(format!("/{}", parts.join("/")));
        readings.push(format!("/{}", parts.join("/").to_lowercase()));
        readings.push(reading);
    }
    readings.retain(|reading| {
        reading
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"\"<>`{}\\^|#?".contains(&byte))
    });
    readings
}
