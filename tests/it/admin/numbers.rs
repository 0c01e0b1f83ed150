//! Which events count, and with which labels.

use std::{future::pending, time::Duration};

use http::{Request, Response};
use kube_tls_proxy::{
    config::{AcmeConfig, CertificateSource},
    metrics::{FAMILIES, MetricKind, quantile},
};
use standin::{tcp, upstream::full};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::{api, scrape, wait_for_numbers};
use crate::{
    access::with_rules,
    certificates::Authorities,
    proxy::{HOST, World},
    upgrades::WEBSOCKET,
};

#[tokio::test]
async fn requests_are_counted_by_kind_and_status() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let mut http1 = proxy.client().alpn(&["http/1.1"]).http1().await;
    http1.get(HOST, "/api/v1/namespaces/default/pods", "").await;
    http1
        .send(format!(
            "POST /apis/apps/v1/namespaces/default/deployments HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nhello"
        ))
        .await;
    http1.response().await;
    http1.get(HOST, "/apis/example.com/v1/widgets/w", "").await;
    http1.get(HOST, "/version", "").await;
    http1.get(HOST, "/api/v1/secrets", "").await;
    let http2 = proxy.client().http2().await;
    http2.get("https://kube.test/api/v1/nodes/n").await.unwrap();
    let request = Request::delete("https://other.test/api/v1/nodes/n").body(bytes::Bytes::new());
    http2.request(request.unwrap()).await.unwrap();

    let series = |verb: &str, resource: &str, code: u16, protocol: &str| {
        // The proxy refuses a request for an unknown host before it chooses a cluster.
        let cluster = if code == 421 { "" } else { "test" };
        format!(
            "requests_total{{cluster=\"{cluster}\",verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\",protocol=\"{protocol}\"}}"
        )
    };
    let wanted = [
        series("list", "pods", 200, "http/1.1"),
        series("create", "deployments", 200, "http/1.1"),
        series("get", "custom", 200, "http/1.1"),
        series("get", "nonresource", 200, "http/1.1"),
        series("list", "secrets", 401, "http/1.1"),
        series("get", "nodes", 200, "h2"),
        series("delete", "nodes", 421, "h2"),
    ];
    let mut wanted: Vec<(&str, f64)> = wanted.iter().map(|series| (&**series, 1.0)).collect();
    wanted.extend([
        ("connections_total{protocol=\"http/1.1\"}", 1.0),
        ("connections_total{protocol=\"h2\"}", 1.0),
        ("connections", 2.0),
        ("connections_limit", 10_000.0),
        ("handshakes_total{result=\"ok\"}", 2.0),
        ("errors_total{cluster=\"\",reason=\"rejected\"}", 1.0),
        ("errors_total{cluster=\"test\",reason=\"rejected\"}", 0.0),
        ("requests_in_flight{cluster=\"test\"}", 0.0),
        ("received_bytes_total", 5.0),
        (
            "request_time_to_headers_seconds_count{cluster=\"test\",verb=\"get\"}",
            3.0,
        ),
        (
            "request_duration_seconds_count{cluster=\"test\",verb=\"list\"}",
            2.0,
        ),
        // The proxy itself has responded, so this says nothing about an apiserver.
        (
            "request_time_to_headers_seconds_count{cluster=\"\",verb=\"delete\"}",
            0.0,
        ),
        // One per client: the 401 affects only its own client.
        ("leases_taken_total{from=\"dial\"}", 2.0),
        ("leases_taken_total{from=\"idle\"}", 0.0),
        ("upstream_dials_total{cluster=\"test\",result=\"ok\"}", 2.0),
    ]);
    let numbers = wait_for_numbers(proxy.admin(), &wanted).await;
    assert!(numbers.get("sent_bytes_total") >= 52.0, "{}", numbers.text);

    drop((http1, http2));
    // The connection with the 401 is not leased to another client.
    let gone = [
        ("connections", 0.0),
        ("leases_retired_total{reason=\"unauthorized\"}", 1.0),
    ];
    wait_for_numbers(proxy.admin(), &gone).await;
    proxy
        .client()
        .http2()
        .await
        .get("https://kube.test/version")
        .await
        .unwrap();
    wait_for_numbers(proxy.admin(), &[("leases_taken_total{from=\"idle\"}", 1.0)]).await;
}

#[tokio::test]
async fn open_watches_and_tunnels_are_counted() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let admin = proxy.admin();
    let http2 = proxy.client().http2().await;
    let watch = http2
        .open("https://kube.test/api/v1/pods?watch=1")
        .await
        .unwrap();
    let log = "https://kube.test/api/v1/namespaces/default/pods/p/log?follow=true";
    let log = http2.open(log).await.unwrap();
    let mut exec = proxy.client().http1().await;
    exec.send(WEBSOCKET).await;
    exec.head().await.unwrap();
    exec.send("four").await;
    exec.take(4).await.unwrap();
    let open = [
        ("watches{cluster=\"test\"}", 2.0),
        ("tunnels{cluster=\"test\"}", 1.0),
        ("connections", 2.0),
    ];
    wait_for_numbers(admin, &open).await;

    exec.stream().shutdown().await.unwrap();
    exec.end().await.unwrap();
    drop((watch, log));
    let numbers = wait_for_numbers(
        admin,
        &[
            ("watches{cluster=\"test\"}", 0.0),
            ("tunnels{cluster=\"test\"}", 0.0),
            ("requests_total{cluster=\"test\",verb=\"watch\",resource=\"pods\",code=\"200\",protocol=\"h2\"}", 1.0),
            ("requests_total{cluster=\"test\",verb=\"get\",resource=\"pods/log\",code=\"200\",protocol=\"h2\"}", 1.0),
            ("requests_total{cluster=\"test\",verb=\"connect\",resource=\"pods/exec\",code=\"101\",protocol=\"http/1.1\"}", 1.0),
            ("request_time_to_headers_seconds_count{cluster=\"test\",verb=\"watch\"}", 1.0),
            ("received_bytes_total", 4.0),
            ("sent_bytes_total", 10.0),
            ("leases_retired_total{reason=\"upgrade\"}", 1.0),
        ],
    )
    .await;
    // The client chooses how long these last, so their duration says nothing about response times.
    for verb in ["watch", "connect", "get"] {
        let series = format!("request_duration_seconds_count{{cluster=\"test\",verb=\"{verb}\"}}");
        assert_eq!(numbers.get(&series), 0.0, "{series}");
    }
}

#[tokio::test]
async fn handshakes_and_limits_are_counted() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let proxy = world
        .proxy(upstream.address())
        .admin()
        .limits(|limits| {
            limits.connections = 2;
            limits.streams_per_connection = 2;
        })
        .timeouts(|timeouts| timeouts.handshake = Duration::from_millis(200))
        .start();
    let admin = proxy.admin();
    let silent = TcpStream::connect(proxy.address()).await.unwrap();
    wait_for_numbers(admin, &[("handshakes_total{result=\"timeout\"}", 1.0)]).await;
    drop(silent);
    let mut noise = TcpStream::connect(proxy.address()).await.unwrap();
    noise.write_all(b"no hello\r\n").await.unwrap();
    wait_for_numbers(admin, &[("handshakes_total{result=\"failed\"}", 1.0)]).await;
    drop(noise);

    // Too many fields over both protocols. Over HTTP/1.1 the parser refuses them.
    let many: String = (0..200)
        .map(|number| format!("X-{number}: 1\r\n"))
        .collect();
    let mut http1 = proxy.client().alpn(&["http/1.1"]).http1().await;
    assert_eq!(http1.get(HOST, "/version", &many).await.status, 431);
    wait_for_numbers(admin, &[("limits_hit_total{limit=\"header_fields\"}", 1.0)]).await;
    drop(http1);
    let http2 = proxy.client().http2().await;
    let mut request = Request::get("https://kube.test/version");
    for number in 0..200 {
        request = request.header(format!("x-{number}"), "1");
    }
    let response = http2
        .request(request.body(bytes::Bytes::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status, 431);
    let long = format!("https://kube.test/{}", "x".repeat(65_000));
    drop(http2.get(&long).await);

    let watch = "https://kube.test/api/v1/pods?watch=1";
    let first = http2.open(watch).await.unwrap();
    let second = http2.open(watch).await.unwrap();
    let other = proxy.client().http2().await;
    let waiting = TcpStream::connect(proxy.address()).await.unwrap();
    wait_for_numbers(
        admin,
        &[
            ("limits_hit_total{limit=\"header_fields\"}", 2.0),
            ("limits_hit_total{limit=\"streams\"}", 1.0),
            ("limits_hit_total{limit=\"connections\"}", 1.0),
            ("errors_total{cluster=\"\",reason=\"rejected\"}", 2.0),
        ],
    )
    .await;
    drop((first, second, other, waiting));
}

/// Docs, dashboards and alerts rely on the list of families, so it must match the exposition.
#[tokio::test]
async fn exposition_matches_the_metrics_reference() {
    let world = World::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let slices = format!(
        r#"{{"metadata": {{"resourceVersion": "1"}}, "items": [{{"addressType": "IPv4", "ports": [{{"port": {}}}],
           "endpoints": [{{"addresses": ["127.0.0.1"]}}]}}]}}"#,
        listener.local_addr().unwrap().port()
    );
    let respond = move |request: Request<_>| {
        let slices = slices.clone();
        async move {
            let is_list = request.uri().query() == Some("fieldSelector=metadata.name%3Dkubernetes");
            match is_list {
                true => Response::new(full(slices)),
                false => api(request).await,
            }
        }
    };
    let upstream = world.apiserver().http(respond).serve(listener);
    // With discovery, client certificates, access rules and ACME, whose families other proxies leave out.
    let cas = Authorities::new();
    let mut section = cas.section(&world);
    let in_an_hour = std::time::SystemTime::now() + Duration::from_secs(3600);
    let list = cas.users.revocation_list(&[7], in_an_hour);
    section.crl = Some(world.dir.write("users.crl", list));
    let proxy = world.proxy(upstream.address()).admin();
    let token = world.dir.write("pod-token", "token");
    let proxy = proxy.cluster(|cluster| {
        cluster.client_certificates = Some(section);
        cluster.discovery = Some(token);
    });
    let mut proxy = with_rules(proxy, "  - deny: {verbs: [create]}\n  - allow: {}");
    let acme = AcmeConfig {
        names: vec!["acme.test".into()],
        email: None,
        // Nothing listens there.
        directory: "https://127.0.0.1:1/dir".into(),
        directory_ca: None,
        external_account: None,
        http01_listen: None,
        profile: None,
        store: world.dir.path().join("store"),
    };
    proxy.config.identities.push(CertificateSource::Acme(acme));
    let proxy = proxy.start();
    let client = proxy.client().http2().await;
    client.get("https://kube.test/api/v1/pods").await.unwrap();
    client.get("https://other.test/").await.unwrap();
    let order = "acme_orders_total{name=\"acme.test\",result=\"failed\"}";
    let of_request = "requests_total{cluster=\"test\",verb=\"list\",resource=\"pods\",code=\"200\",protocol=\"h2\"}";
    let scrape = wait_for_numbers(proxy.admin(), &[(of_request, 1.0), (order, 1.0)]).await;
    for family in FAMILIES {
        let labels: Vec<&str> = family.labels.iter().map(|(name, _)| *name).collect();
        let sample = match family.kind {
            MetricKind::Histogram => format!("{}_sum", family.name),
            MetricKind::Counter | MetricKind::Gauge | MetricKind::Info => family.name.to_owned(),
        };
        let mut found = scrape.names().filter_map(|series| {
            let rest = series.strip_prefix(&sample)?;
            (rest.is_empty() || rest.starts_with('{')).then_some(rest)
        });
        let rest = found
            .next()
            .unwrap_or_else(|| panic!("no {sample} in\n{}", scrape.text));
        let names: Vec<&str> = rest
            .trim_matches(['{', '}'])
            .split(',')
            .filter_map(|pair| pair.split_once("=\"").map(|(name, _)| name))
            .collect();
        assert_eq!(names, labels, "{sample}");
    }
    for series in scrape.names() {
        let name = series.split('{').next().unwrap();
        let known = FAMILIES.iter().any(|family| {
            name == family.name
                || (family.kind == MetricKind::Histogram
                    && ["_bucket", "_sum", "_count"]
                        .iter()
                        .any(|suffix| name.strip_suffix(suffix) == Some(family.name)))
        });
        assert!(known, "{series} is not in the reference");
    }
    let now = std::time::SystemTime::now();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let expires = scrape.get("certificate_not_after_timestamp_seconds{name=\"kube.test\"}");
    assert!(expires > now, "{expires}");
    assert!(scrape.get("ca_not_after_timestamp_seconds{cluster=\"test\"}") > now);
    assert_eq!(scrape.get("last_reload_successful"), 1.0);
    let healthy = format!(
        "endpoint_healthy{{cluster=\"test\",endpoint=\"{}\"}}",
        upstream.address()
    );
    assert_eq!(scrape.get(&healthy), 1.0);
}

#[tokio::test]
async fn failed_reload_is_counted() {
    let world = World::new();
    let proxy = world.proxy(tcp::refused().await).admin().start();
    let admin = proxy.admin();
    world.dir.write("cluster-ca.crt", "nothing");
    proxy.reload();
    let failed = [
        ("reloads_total{result=\"failed\"}", 1.0),
        ("last_reload_successful", 0.0),
    ];
    wait_for_numbers(admin, &failed).await;
    world.dir.write("cluster-ca.crt", world.cluster_ca.pem());
    proxy.reload();
    wait_for_numbers(admin, &[("last_reload_successful", 1.0)]).await;
    let last = scrape(admin).await.get("last_reload_timestamp_seconds");
    assert!(last > 1.5e9, "{last}");
}

#[tokio::test]
async fn request_cancelled_before_its_response_resets_its_lease() {
    let world = World::new();
    let upstream = world.apiserver().http(|_| pending()).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let mut http1 = proxy.client().alpn(&["http/1.1"]).http1().await;
    http1
        .send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    upstream.next_request().await;
    drop(http1);
    let reset = "leases_retired_total{reason=\"reset\"}";
    wait_for_numbers(proxy.admin(), &[(reset, 1.0)]).await;
    let http2 = proxy.client().http2().await;
    let get = Request::get("https://kube.test/").body(()).unwrap();
    let pending_request = http2.begin(get, true).await.unwrap();
    upstream.next_request().await;
    let in_flight = "requests_in_flight{cluster=\"test\"}";
    assert_eq!(scrape(proxy.admin()).await.get(in_flight), 1.0);
    drop((pending_request, http2));
    let gone = "requests_total{cluster=\"test\",verb=\"get\",resource=\"nonresource\",code=\"no_response\",protocol=\"h2\"}";
    let numbers = [(reset, 2.0), (in_flight, 0.0), (gone, 1.0)];
    wait_for_numbers(proxy.admin(), &numbers).await;
}

#[tokio::test]
async fn numbers_of_one_cluster_do_not_count_for_another() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let setup = world.proxy(upstream.address()).admin();
    let setup = setup.second_cluster("staging", "staging.test", tcp::refused().await);
    let proxy = setup.start();
    let client = proxy.client().http2().await;
    let watch = client.open("https://kube.test/api/v1/pods?watch=1").await;
    let failed = client
        .get("https://staging.test/api/v1/pods")
        .await
        .unwrap();
    assert_eq!(failed.status, 503);
    wait_for_numbers(
        proxy.admin(),
        &[
            ("watches{cluster=\"test\"}", 1.0),
            ("watches{cluster=\"staging\"}", 0.0),
            ("errors_total{cluster=\"staging\",reason=\"connect\"}", 1.0),
            ("errors_total{cluster=\"test\",reason=\"connect\"}", 0.0),
            ("requests_total{cluster=\"staging\",verb=\"list\",resource=\"pods\",code=\"503\",protocol=\"h2\"}", 1.0),
            ("request_duration_seconds_count{cluster=\"staging\",verb=\"list\"}", 1.0),
            ("request_duration_seconds_count{cluster=\"test\",verb=\"list\"}", 0.0),
        ],
    )
    .await;
    drop(watch);
}

#[tokio::test]
async fn time_to_headers_counts_for_the_endpoint_that_answered() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    for alpn in ["h2", "http/1.1"] {
        let before = scrape(proxy.admin()).await;
        let series = format!(
            "endpoint_time_to_headers_seconds_count{{cluster=\"test\",endpoint=\"{}\"}}",
            upstream.address()
        );
        let count = before.get(&series);
        if alpn == "h2" {
            let client = proxy.client().http2().await;
            client.get("https://kube.test/version").await.unwrap();
        } else {
            let mut client = proxy.client().alpn(&[alpn]).http1().await;
            client.get(HOST, "/version", "").await;
        }
        wait_for_numbers(proxy.admin(), &[(&series, count + 1.0)]).await;
    }
}

/// A request on a connection that is open costs no measurement, and a failed one gives none.
#[tokio::test]
async fn time_to_connect_counts_once_for_each_connection() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let mut setup = world.proxy(upstream.address()).admin();
    setup.config.timeouts.probe_interval = Duration::ZERO;
    let refused = tcp::refused().await;
    let closing = tcp::Peer::start(tcp::Behaviour::CloseInHandshake).await;
    let proxy = setup
        .second_cluster("staging", "staging.test", refused)
        .second_cluster("closing", "closing.test", closing.address())
        .start();
    let client = proxy.client().http2().await;
    for host in ["kube.test", "kube.test", "staging.test", "closing.test"] {
        let url = format!("https://{host}/version");
        client.get(&url).await.unwrap();
    }
    let count = |cluster, endpoint, step| {
        format!(
            "endpoint_connect_seconds_count{{cluster=\"{cluster}\",endpoint=\"{endpoint}\",step=\"{step}\"}}"
        )
    };
    let counts = [("tcp", 1.0), ("tls", 0.0)].map(|(step, of_closing)| {
        [
            (count("test", upstream.address(), step), 1.0),
            (count("staging", refused, step), 0.0),
            (count("closing", closing.address(), step), of_closing),
        ]
    });
    let counts = counts.as_flattened().iter();
    let counts: Vec<_> = counts
        .map(|(series, count)| (series.as_str(), *count))
        .collect();
    wait_for_numbers(proxy.admin(), &counts).await;
    let endpoint = proxy.health(upstream.address()).connect_times;
    let tls = quantile(&endpoint.tls.counts(), 0.5);
    assert!(tls.unwrap() > 0.0 && tls.unwrap() < 60.0, "{tls:?}");
}
