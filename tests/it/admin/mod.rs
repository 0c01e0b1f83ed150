//! The admin port: liveness, readiness and its limits.

mod beginnings;
mod labels;
mod names;
mod numbers;
mod readiness;
mod status;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use kube_tls_proxy::drain::Phase;
pub(crate) use standin::upstream::api;
use standin::{
    client::{self, Http1},
    tcp, within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    binary::{Binary, run},
    proxy::World,
};

/// The series of one scrape with their values.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) text: String,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    /// The value of a series, given without the common prefix. 0 if the series does not exist.
    pub(crate) fn get(&self, series: &str) -> f64 {
        let name = format!("kube_tls_proxy_{series}");
        let mut families = self.text.lines().filter_map(|line| {
            let of_type = line.strip_prefix("# TYPE ")?;
            of_type.split(' ').next()
        });
        // A misspelt name would always be 0.
        assert!(
            families.any(|family| name.starts_with(family)),
            "no metric {name}"
        );
        self.series.get(&name).copied().unwrap_or_default()
    }

    /// The names of all series.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.series.keys().map(String::as_str)
    }
}

/// One GET to the admin port.
pub(crate) async fn get(admin: SocketAddr, target: &str) -> client::Response {
    let stream = TcpStream::connect(admin).await.unwrap();
    Http1::new(stream).get("admin", target, "").await
}

pub(crate) async fn scrape(admin: SocketAddr) -> Scrape {
    let response = get(admin, "/metrics").await;
    assert_eq!(response.status, 200);
    let text = response.text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let series = lines.map(|line| {
        let (name, number) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), number.parse().unwrap())
    });
    let series = series.collect();
    Scrape { text, series }
}

/// Scrapes until the series have these values: the proxy may count a request shortly after its response.
pub(crate) async fn wait_for_numbers(admin: SocketAddr, wanted: &[(&str, f64)]) -> Scrape {
    let deadline = tokio::time::Instant::now() + standin::WAIT;
    loop {
        let scrape = scrape(admin).await;
        if wanted
            .iter()
            .all(|(series, number)| scrape.get(series) == *number)
        {
            return scrape;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "wanted {wanted:?} of\n{}",
            scrape.text
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn readyz_passes_once_an_apiserver_is_verified() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let admin = proxy.admin();
    assert_eq!(get(admin, "/livez").await.text(), "ok");

    let before = get(admin, "/readyz").await;
    assert_eq!(before.status, 503);
    let reason = format!(
        "[-]upstream failed: test: {} has not been probed yet",
        upstream.address()
    );
    assert!(before.text().contains(&reason), "{}", before.text());

    proxy
        .client()
        .http2()
        .await
        .get("https://kube.test/version")
        .await
        .unwrap();
    let ready = get(admin, "/readyz").await;
    assert_eq!((ready.status, &*ready.text()), (200, "ok"));
    let verbose = get(admin, "/readyz?verbose").await;
    assert_eq!(
        verbose.text(),
        "[+]certificate ok\n[+]listening ok\n[+]upstream ok\n[+]draining ok\nreadyz check passed\n"
    );
    let live = get(admin, "/livez?verbose=true").await;
    assert_eq!(live.text(), "[+]workers ok\nlivez check passed\n");
}

#[tokio::test]
async fn readyz_fails_and_names_an_unverified_apiserver() {
    let world = World::new();
    let foreign = standin::pki::Ca::new("foreign").server(&[crate::proxy::APISERVER]);
    let upstream = standin::upstream::Upstream::builder(foreign).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let admin = proxy.admin();
    let client = proxy.client().http2().await;
    assert_eq!(
        client
            .get("https://kube.test/version")
            .await
            .unwrap()
            .status,
        502
    );
    let text = get(admin, "/readyz").await.text();
    assert!(text.contains("[-]upstream failed: test: "), "{text}");
    assert!(text.contains("is not signed by the cluster CA"), "{text}");
    let scrape = scrape(admin).await;
    assert_eq!(
        scrape.get("upstream_dials_total{cluster=\"test\",result=\"verify\"}"),
        1.0
    );
    assert_eq!(
        scrape.get("errors_total{cluster=\"test\",reason=\"verify\"}"),
        1.0
    );
    let endpoint = format!(
        "endpoint_healthy{{cluster=\"test\",endpoint=\"{}\"}}",
        upstream.address()
    );
    assert!(
        scrape.text.contains(&format!("{endpoint} 0\n")),
        "{}",
        scrape.text
    );
}

/// Probes and scrapes still work while requests finish.
#[tokio::test]
async fn draining_proxy_is_live_but_not_ready() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let mut proxy = world.proxy(upstream.address()).admin().start();
    let admin = proxy.admin();
    let mut exec = proxy.client().http1().await;
    exec.send(crate::upgrades::WEBSOCKET).await;
    exec.head().await.unwrap();
    assert_eq!(get(admin, "/readyz").await.status, 200);

    proxy.begin_shutdown();
    proxy.wait_for_phase(Phase::Draining).await;
    let text = get(admin, "/readyz").await.text();
    assert!(
        text.contains("[-]listening failed: the listening sockets are closed\n"),
        "{text}"
    );
    assert!(
        text.contains("[-]draining failed: the proxy is shutting down\n"),
        "{text}"
    );
    assert_eq!(get(admin, "/livez").await.status, 200);
    let scrape = scrape(admin).await;
    assert_eq!(
        (
            scrape.get("draining"),
            scrape.get("tunnels{cluster=\"test\"}")
        ),
        (1.0, 1.0)
    );
    drop(exec);
    proxy.wait_until_stopped().await;
    let closed = async { while TcpStream::connect(admin).await.is_ok() {} };
    within("the admin port to close", closed).await;
}

#[tokio::test]
async fn only_get_and_head_of_known_paths_are_served() {
    let world = World::new();
    let proxy = world.proxy(tcp::refused().await).admin().start();
    let admin = proxy.admin();
    for (target, status, content_type) in [
        ("/", 200, "text/html; charset=utf-8"),
        ("/livez", 200, "text/plain; charset=utf-8"),
        ("/readyz", 503, "text/plain; charset=utf-8"),
        ("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8"),
        ("/status.json", 200, "application/json"),
        ("/readyz/", 404, "text/plain; charset=utf-8"),
        ("/debug/pprof", 404, "text/plain; charset=utf-8"),
    ] {
        let response = get(admin, target).await;
        assert_eq!(response.status, status, "{target}");
        let header = |name| response.head.header(name).map(ToOwned::to_owned);
        assert_eq!(
            header("content-type").as_deref(),
            Some(content_type),
            "{target}"
        );
        assert_eq!(
            header("cache-control").as_deref(),
            Some("no-store"),
            "{target}"
        );
        assert_eq!(
            header("x-content-type-options").as_deref(),
            Some("nosniff"),
            "{target}"
        );
        if status == 404 {
            assert!(
                response
                    .text()
                    .contains("the paths are / (the status page), /livez")
            );
        }
    }
    let stream = TcpStream::connect(admin).await.unwrap();
    let mut client = Http1::new(stream);
    client
        .send("HEAD /metrics HTTP/1.1\r\nHost: admin\r\n\r\n")
        .await;
    assert_eq!(client.response_to_head().await.status, 200);
    assert_eq!(
        client.get("admin", "/livez", "").await.text(),
        "ok",
        "the HEAD response has no body"
    );
    client
        .send("POST /livez HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\n\r\n")
        .await;
    let response = client.response().await;
    assert_eq!(response.status, 405);
    assert_eq!(response.head.header("allow"), Some("GET, HEAD"));
}

#[tokio::test]
async fn metrics_are_openmetrics_only_if_accept_asks() {
    let world = World::new();
    let proxy = world.proxy(tcp::refused().await).admin().start();
    for (accept, content_type, first) in [
        (
            "",
            "text/plain; version=0.0.4; charset=utf-8",
            "# TYPE kube_tls_proxy_build_info gauge",
        ),
        (
            "Accept: */*\r\n",
            "text/plain; version=0.0.4; charset=utf-8",
            "# TYPE kube_tls_proxy_build_info gauge",
        ),
        (
            "Accept: application/openmetrics-text;version=1.0.0;q=0.5\r\nAccept: text/plain;q=0.3\r\n",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# TYPE kube_tls_proxy_build info",
        ),
    ] {
        let stream = TcpStream::connect(proxy.admin()).await.unwrap();
        let response = Http1::new(stream).get("admin", "/metrics", accept).await;
        assert_eq!(
            response.head.header("content-type"),
            Some(content_type),
            "{accept}"
        );
        let text = response.text();
        assert_eq!(text.lines().nth(1), Some(first), "{accept}");
        assert_eq!(
            text.ends_with("# EOF\n"),
            content_type.contains("openmetrics")
        );
    }
}

/// Clients that send nothing cannot keep a probe out: the connection that has been open for longest is closed. An open
/// connection that is not among the oldest stays.
#[tokio::test]
async fn silent_admin_clients_do_not_keep_a_probe_out() {
    let world = World::new();
    let proxy = world.proxy(tcp::refused().await).admin().start();
    let admin = proxy.admin();
    let mut silent = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(admin).await.unwrap();
        stream.write_all(b"GET /livez HTTP").await.unwrap();
        silent.push(stream);
    }
    let probe = tokio::time::timeout(Duration::from_secs(1), get(admin, "/livez"));
    let response = probe
        .await
        .expect("a response within the second of a probe");
    assert_eq!(response.status, 200);
    for stream in &mut silent[..33] {
        let mut byte = [0];
        // Long before the deadline for its head.
        let read = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut byte));
        let read = read.await.expect("the oldest connections are closed");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
    let mut last = silent.pop().unwrap();
    last.write_all(b"/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut start = [0; 12];
    within("a response", last.read_exact(&mut start))
        .await
        .unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
}

#[tokio::test]
async fn binary_opens_the_admin_port_or_explains_why_not() {
    let world = World::new();
    let refused = tcp::refused().await;
    let flags = ["--admin-listen=127.0.0.1:0"];
    let binary = Binary::start(&world, refused, &flags).await;
    let admin: SocketAddr = binary
        .wait_for("the status page", |line| {
            let (_, url) = line.split_once("http://")?;
            url.trim_end_matches('/').parse().ok()
        })
        .await;
    assert_eq!(get(admin, "/livez").await.text(), "ok");

    let taken = admin.to_string();
    let good = crate::binary::good_flags(&world, refused);
    let mut args = vec!["serve"];
    args.extend(good.iter().map(String::as_str));
    args.extend(["--admin-listen", &taken]);
    let ended = run(&args).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_eq!(
        ended.stderr,
        format!(
            "kube-tls-proxy: cannot open the admin port on {taken}: another process uses this port; \
             stop it or choose another with --admin-listen\n"
        )
    );
}

/// A client that fails in a loop cannot fill the log; suppressed lines are counted.
#[tokio::test]
async fn error_log_lines_are_limited_per_client() {
    let world = World::new();
    let refused = tcp::refused().await;
    let flags = ["--log-format", "json", "--no-access-log"];
    let binary = Binary::start(&world, refused, &flags).await;
    let lines = |binary: &Binary| -> Vec<serde_json::Value> {
        let lines = binary.stderr();
        let events = lines.iter().map(|line| serde_json::from_str(line).unwrap());
        events
            .filter(|event: &serde_json::Value| event["message"] == "request failed")
            .collect()
    };
    let client = binary.client(&world).http2().await;
    let requests = (0..80).map(|_| client.get("https://kube.test/version"));
    for response in futures::future::join_all(requests).await {
        assert_eq!(response.unwrap().status, 502);
    }
    // The first line of a later second has the number of suppressed lines.
    let logged = || {
        let lines = lines(&binary);
        let suppressed = lines
            .iter()
            .filter_map(|line| line["suppressed_lines"].as_u64());
        (lines.len(), suppressed.sum::<u64>())
    };
    let mut sent = 80;
    let deadline = tokio::time::Instant::now() + standin::WAIT;
    while logged().1 == 0 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?}",
            lines(&binary)
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.get("https://kube.test/version").await.unwrap();
        sent += 1;
    }
    let (written, suppressed) = logged();
    assert!(written < 80, "{written} lines");
    assert!(
        written as u64 + suppressed <= sent,
        "{written} and {suppressed} of {sent}"
    );
    assert!(lines(&binary)[0]["client.address"].is_string());
}
