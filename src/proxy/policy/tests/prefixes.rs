//! Which cluster a path leads to, on a host whose clusters have prefixes.

use super::*;

/// The cluster and the target that a request below a prefix gets, or why it gets none.
fn below(routes: &Routes, target: &str) -> Result<(String, String), Rejection> {
    let mut request = Request::builder().uri(target);
    if target.starts_with('/') {
        request = request.header("host", "shared.test");
    }
    let mut request = request.body(()).unwrap();
    let taken = take_prefix(&mut request, routes, None);
    let taken = taken.expect("the host has prefixes")?;
    let target = request.uri().path_and_query().unwrap().to_string();
    Ok((taken.cluster.name().to_owned(), target))
}

/// Routes of one host with four prefixes.
fn shared() -> Routes {
    let mut routes = routes();
    for (prefix, name) in [
        ("/clusters/a", "a"),
        ("/clusters/b", "b"),
        ("/clusters/ab", "ab"),
        ("/k8s/eu/c", "c"),
    ] {
        routes.add_below("shared.test", prefix, &route(name));
    }
    routes
}

#[test]
fn prefix_is_compared_with_whole_segments_as_written() {
    let routes = shared();
    for (target, cluster, rest) in [
        ("/clusters/a", "a", "/"),
        ("/clusters/a/", "a", "/"),
        ("/clusters/a?x=/clusters/b", "a", "/?x=/clusters/b"),
        (
            "/clusters/a/api/v1?watch=1&a=..",
            "a",
            "/api/v1?watch=1&a=..",
        ),
        ("/clusters/ab/api", "ab", "/api"),
        ("/clusters/b/clusters/a", "b", "/clusters/a"),
        ("/k8s/eu/c/apis", "c", "/apis"),
        ("https://shared.test/clusters/b/version", "b", "/version"),
        // The rest is left as it is, for a Service under `proxy` as well.
        ("/clusters/a//api", "a", "//api"),
        (
            "/clusters/a/x/proxy/y%2Fz%20;v=1/...",
            "a",
            "/x/proxy/y%2Fz%20;v=1/...",
        ),
        ("/clusters/a/%zz", "a", "/%zz"),
    ] {
        let expected = (cluster.to_owned(), rest.to_owned());
        assert_eq!(below(&routes, target), Ok(expected), "{target}");
    }
    for target in [
        "/",
        "/api",
        "/clusters",
        "/clusters/",
        "/clusters/c",
        "/clusters/A",
        "/Clusters/a",
        "/clusters/a.",
        "/clusters/a;x/api",
        "/clusters/a%2Fapi",
        "/clusters%2Fa/api",
        "/clusters%2fa",
        "/%63lusters/a",
        "/clusters/%61",
        "//clusters/a",
        "/clusters//a",
        "/./clusters/a",
        "/clusters/./a",
        "/x/../clusters/a",
        "/%2e/clusters/a",
        "/clusters\\a",
        "/clusters/a%00",
        "/clusters/a%20",
        "/clusters/a%3fx",
        "/clusters/a%23x",
        "/k8s/eu",
        "/k8s/c",
        "/eu/c",
    ] {
        assert_eq!(
            below(&routes, target),
            Err(Rejection::NoSuchPrefix),
            "{target}"
        );
    }
}

/// A server could read such a path as one of another cluster.
#[test]
fn path_that_may_lead_out_of_its_prefix_is_refused() {
    let routes = shared();
    for rest in [
        "/../b",
        "/..",
        "/../",
        "/.",
        "/./b",
        "/x/../../b",
        "/%2e%2e/b",
        "/%2E%2e/b",
        "/.%2e/b",
        "/%2e./b",
        "/%252e%252e/b",
        "/..%2fb",
        "/..%252fb",
        "/..%5cb",
        "/..\\b",
        "/x%2f..%2fb",
        "/..;/b",
        "/..;x=1/b",
        "/%2e%2e;/b",
        "/..%3bx/b",
        "/..%00/b",
        "/..%3f/b",
        "/..%23",
        "/%20../b",
        "/..%20/b",
        "/%09..",
        "//../b",
        "/\\../b",
    ] {
        let target = format!("/clusters/a{rest}");
        assert_eq!(
            below(&routes, &target),
            Err(Rejection::AmbiguousPath),
            "{target}"
        );
    }
}

#[test]
fn host_with_prefixes_has_no_cluster_without_one() {
    let mut routes = routes();
    assert!(!routes.has_prefixes());
    routes.add_below("shared.test", "/clusters/a", &route("a"));
    routes.add_below("kube.test", "/clusters/a", &route("a"));
    assert!(routes.has_prefixes() && routes.serves("shared.test"));
    let find = |host: &str, sni| {
        let found = routes.find(&host.parse().unwrap(), sni);
        found.map(|route| route.cluster.name().to_owned())
    };
    assert_eq!(find("shared.test", None), Err(Rejection::NoSuchPrefix));
    assert_eq!(
        find("192.0.2.1", Some("shared.test")),
        Err(Rejection::NoSuchPrefix)
    );
    assert_eq!(
        find("kube.test", None),
        Ok("kube".to_owned()),
        "it keeps its cluster"
    );
    assert_eq!(
        find("other.test", Some("shared.test")),
        Err(Rejection::NotOurs)
    );
}
