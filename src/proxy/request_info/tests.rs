//! The spellings of a path, and what kube-apiserver takes each of them for.

use super::*;

/// Such as `get apps/deployments/scale in NAMESPACE named NAME`; `get -` when no resource is named.
fn describe(method: &str, target: &str) -> String {
    let (method, uri) = (method.parse().unwrap(), target.parse().unwrap());
    let info = RequestInfo::new(&method, &uri);
    let mut text = format!("{} ", info.verb);
    if !info.group.is_empty() {
        text += &format!("{}/", &*info.group);
    }
    text += &info.resource_name();
    if info.resource_label() == Resource::NONRESOURCE {
        text += "-";
    }
    for (word, value) in [("in", &*info.namespace), ("named", &*info.name)] {
        if !value.is_empty() {
            text += &format!(" {word} {value}");
        }
    }
    text
}

#[test]
fn reads_every_spelling_as_kube_apiserver_does() {
    for (request, expected) in [
        // Core and named groups, with and without a namespace.
        ("GET /api/v1/pods", "list pods"),
        ("GET /api/v1/nodes/n", "get nodes named n"),
        ("HEAD /api/v1/nodes/n", "get nodes named n"),
        ("HEAD /api/v1/nodes", "list nodes"),
        ("GET /api/v1/namespaces/a/pods", "list pods in a"),
        ("GET /api/v1/namespaces/a/pods/p", "get pods in a named p"),
        ("POST /api/v1/namespaces/a/pods", "create pods in a"),
        (
            "PUT /api/v1/namespaces/a/pods/p",
            "update pods in a named p",
        ),
        ("PATCH /api/v1/nodes/n", "patch nodes named n"),
        ("DELETE /api/v1/nodes/n", "delete nodes named n"),
        (
            "DELETE /api/v1/namespaces/a/pods",
            "deletecollection pods in a",
        ),
        ("OPTIONS /api/v1/pods", " pods"),
        ("BREW /api/v1/pods", " pods"),
        ("get /api/v1/pods", " pods"),
        ("GET /apis/apps/v1/deployments", "list apps/deployments"),
        (
            "PATCH /apis/apps/v1/namespaces/a/deployments/d",
            "patch apps/deployments in a named d",
        ),
        (
            "DELETE /apis/apps/v1/namespaces/a/deployments",
            "deletecollection apps/deployments in a",
        ),
        // Subresources; later parts are not looked at.
        (
            "POST /api/v1/namespaces/a/pods/p/exec?command=sh",
            "create pods/exec in a named p",
        ),
        (
            "GET /api/v1/namespaces/a/pods/p/log?follow=true",
            "get pods/log in a named p",
        ),
        (
            "PUT /apis/apps/v1/namespaces/a/deployments/d/scale",
            "update apps/deployments/scale in a named d",
        ),
        (
            "GET /api/v1/namespaces/a/services/s/proxy/x/y/z",
            "get services/proxy in a named s",
        ),
        (
            "GET /api/v1/nodes/n/proxy/api/v1/secrets",
            "get nodes/proxy named n",
        ),
        // Namespaces as a resource, and their own subresources.
        ("GET /api/v1/namespaces", "list namespaces"),
        ("GET /api/v1/namespaces/a", "get namespaces in a named a"),
        (
            "DELETE /api/v1/namespaces/a",
            "delete namespaces in a named a",
        ),
        (
            "PUT /api/v1/namespaces/a/finalize",
            "update namespaces/finalize in a named a",
        ),
        (
            "GET /api/v1/namespaces/a/status",
            "get namespaces/status in a named a",
        ),
        (
            "GET /api/v1/namespaces/a/status/x",
            "get namespaces/status in a named a",
        ),
        ("GET /api/v1/namespaces/a/statuses", "list statuses in a"),
        (
            "GET /apis/g/v1/namespaces/a",
            "get g/namespaces in a named a",
        ),
        // Paths that name no resource.
        ("GET /", "get -"),
        ("GET /version", "get -"),
        ("HEAD /livez/ping", "head -"),
        ("POST /version", "post -"),
        ("BREW /version", "other -"),
        ("OPTIONS *", "options -"),
        ("GET /api", "get -"),
        ("GET /api/v1", "get -"),
        ("GET /apis", "get -"),
        ("GET /apis/apps", "get -"),
        ("GET /apis/apps/v1", "get -"),
        ("GET /openapi/v3/apis/apps/v1", "get -"),
        ("GET /API/v1/pods", "get -"),
        // Watches, by query and by path.
        ("GET /api/v1/pods?watch=true", "watch pods"),
        ("GET /api/v1/pods?watch", "watch pods"),
        ("GET /api/v1/pods?watch=", "watch pods"),
        ("GET /api/v1/pods?watch=f", "watch pods"),
        ("GET /api/v1/pods?limit=1&%77atch=1", "watch pods"),
        ("GET /api/v1/pods?watch=False", "list pods"),
        ("GET /api/v1/pods?watch=fals%65", "list pods"),
        ("GET /api/v1/pods?watch=0&watch=1", "list pods"),
        ("GET /api/v1/pods?watch=%&watch=1", "watch pods"),
        ("GET /api/v1/pods?watch=1;a=2", "list pods"),
        ("GET /api/v1/pods?labelSelector=watch", "list pods"),
        ("POST /api/v1/namespaces/a/pods?watch=1", "create pods in a"),
        ("GET /api/v1/nodes/n?watch=true", "get nodes named n"),
        ("GET /api/v1/watch/pods", "watch pods"),
        ("POST /api/v1/watch/pods", "watch pods"),
        ("GET /api/v1/watch/namespaces/a/pods", "watch pods in a"),
        (
            "GET /apis/apps/v1/watch/namespaces/a/deployments/d/scale/x",
            "watch apps/deployments/scale in a named d",
        ),
        ("GET /api/v1/watch/namespaces", "watch namespaces"),
        ("GET /api/v1/watch", "get "),
        ("GET /api/v1/watch/", "get "),
        (
            "GET /api/v1/namespaces/a/pods/watch/log",
            "get pods/log in a named watch",
        ),
        // The special verb `proxy`, which has no subresources.
        ("GET /api/v1/proxy/nodes/n/metrics", "proxy nodes named n"),
        (
            "POST /api/v1/proxy/namespaces/a/services/s/x",
            "proxy services in a named s",
        ),
        ("GET /api/v1/proxy", "get "),
        ("GET /apis/g/v1/proxy/things/t", "proxy g/things named t"),
        // Decoded once, and before the path is split.
        (
            "GET /api/v1/namespaces/a/%63onfigmaps/c",
            "get configmaps in a named c",
        ),
        (
            "GET /api/v1/namespaces/suite%2Fconfigmaps/c",
            "get configmaps in suite named c",
        ),
        (
            "GET /api/v1/namespaces/suite%2fconfigmaps",
            "list configmaps in suite",
        ),
        ("GET /%61pi/v1/pods", "list pods"),
        ("GET /%2Fapi%2Fv1%2Fpods", "list pods"),
        ("GET /api/v1/%77atch/pods", "watch pods"),
        ("GET /api/v1/%2563onfigmaps", "list %63onfigmaps"),
        ("GET /api/v1/pods/a+b", "get pods named a+b"),
        ("GET /api/v1/pods/a%20b", "get pods named a b"),
        ("GET /api/v1/pods/%C3%A4", "get pods named \u{e4}"),
        ("GET /api/v1/pods/%ff", "get pods named \u{fffd}"),
        ("GET /api/v1/pods%3Fwatch=1", "list pods?watch=1"),
        // An escape that Go refuses: the apiserver answers 400.
        ("GET /api/v1/pods/%zz", "get -"),
        ("GET /api/v1/pods/%6", "get -"),
        ("GET /api/v1/pods/%", "get -"),
        ("GET /api/v1/pods/%+1", "get -"),
        // Outer slashes are trimmed, also encoded ones.
        ("GET //api/v1/pods", "list pods"),
        ("GET /api/v1/pods/", "list pods"),
        ("GET /api/v1/pods//", "list pods"),
        ("GET /api/v1/pods%2F", "list pods"),
        ("DELETE /api/v1/nodes/", "deletecollection nodes"),
        ("GET /api/v1/", "get -"),
        ("GET /apis/apps/v1//", "get -"),
        ("GET //", "get -"),
        // Inner empty parts stay parts.
        ("GET //api//v1/nodes/n", "get v1/n named nodes"),
        ("GET /api//pods", "list pods"),
        ("GET /api/v1//pods", "get  named pods"),
        ("GET /apis//v1/pods", "list pods"),
        ("GET /api/v1/namespaces//pods", "list pods"),
        ("GET /api/v1/namespaces//pods/p", "get pods named p"),
        ("GET /api/v1/namespaces/a//pods", "get  in a named pods"),
        ("GET /api/v1/namespaces/a/pods//log", "list pods/log in a"),
        (
            "DELETE /api/v1/nodes//status",
            "deletecollection nodes/status",
        ),
        // So do dot segments.
        ("GET /api/v1/./pods", "get . named pods"),
        ("GET /api/v1/nodes/../pods", "get nodes/pods named .."),
        ("GET /api/v1/namespaces/../pods", "list pods in .."),
        (
            "GET /api/v1/namespaces/a/../b/pods",
            "get ../pods in a named b",
        ),
        ("GET /x/../api/v1/pods", "get -"),
        ("GET /./api/v1/pods", "get -"),
        ("GET /api/v1/pods/%2e%2e", "get pods named .."),
    ] {
        let (method, target) = request.split_once(' ').unwrap();
        assert_eq!(describe(method, target), expected, "{request}");
    }
}

#[test]
fn watches_and_followed_logs_are_long_lived() {
    for (target, expected) in [
        ("/api/v1/pods?watch=1", Some(LongLived::Watch)),
        ("/api/v1/watch/pods", Some(LongLived::Watch)),
        (
            "/api/v1/namespaces/a/pods/p/log?follow=true",
            Some(LongLived::Log),
        ),
        ("/api/v1/namespaces/a/pods/p/log?follow=false", None),
        ("/api/v1/namespaces/a/pods/p/log", None),
        ("/api/v1/namespaces/a/pods/p?follow=true", None),
        ("/api/v1/pods", None),
    ] {
        let uri = target.parse().unwrap();
        let info = RequestInfo::new(&Method::GET, &uri);
        assert_eq!(info.long_lived(&uri), expected, "{target}");
    }
}

/// Content of a watch ends between two events in a drain, and the subresource changes only its label in metrics.
#[test]
fn verb_alone_decides_whether_a_request_is_a_watch() {
    for (target, expected) in [
        ("/api/v1/watch/namespaces/a/pods/p/exec", true),
        ("/api/v1/watch/namespaces/a/services/s/proxy", true),
        ("/api/v1/pods?limit=1&watch=1", true),
        ("/api/v1/pods?watch=false", false),
        ("/api/v1/namespaces/a/pods/watch/log", false),
        ("/api/v1/namespaces/a/pods/p/exec", false),
    ] {
        let uri = target.parse().unwrap();
        let info = RequestInfo::new(&Method::GET, &uri);
        assert_eq!(info.is_watch(), expected, "{target}");
    }
    let uri = "/api/v1/pods?watch=1".parse().unwrap();
    assert!(!RequestInfo::new(&Method::POST, &uri).is_watch());
}

#[test]
fn path_without_escapes_is_borrowed() {
    let uri: Uri = "/apis/apps/v1/namespaces/a/deployments/d/scale?watch=1"
        .parse()
        .unwrap();
    let info = RequestInfo::new(&Method::GET, &uri);
    let subresource = info.subresource.unwrap();
    for part in [
        info.group,
        info.resource,
        subresource,
        info.namespace,
        info.name,
    ] {
        assert!(matches!(part, Cow::Borrowed(_)), "{part}");
    }
}

/// Random paths of the words that the rules know, plain and with half of their bytes escaped.
#[test]
fn random_path_reads_alike_plain_and_escaped() {
    const WORDS: &[&str] = &[
        "api",
        "apis",
        "v1",
        "apps",
        "watch",
        "proxy",
        "namespaces",
        "status",
        "finalize",
        "pods",
        "log",
        "",
        ".",
        "..",
        "%",
        "%zz",
        "%2f",
        "\u{e4}",
        "?",
        "?watch=1",
    ];
    let mut seed: u32 = 1;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % below
    };
    for _ in 0..20_000 {
        let parts: Vec<_> = (0..random(12))
            .map(|_| WORDS[random(WORDS.len())])
            .collect();
        let path = parts.join("/");
        fuzz(path.as_bytes());
        let escaped: Vec<_> = path
            .bytes()
            .map(|byte| match random(2) {
                0 => format!("%{byte:02x}"),
                _ => char::from(byte).to_string(),
            })
            .collect();
        fuzz(escaped.concat().as_bytes());
    }
}
