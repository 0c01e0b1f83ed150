//! The status page and its data: open streams, errors, and no secret.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use standin::{pki::Ca, tcp};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{api, get, wait_for_numbers};
use crate::{
    certificates::Authorities,
    proxy::{HOST, World},
    upgrades::WEBSOCKET,
};

async fn status(admin: std::net::SocketAddr) -> Value {
    serde_json::from_slice(&get(admin, "/status.json").await.body).unwrap()
}

#[tokio::test]
async fn status_lists_open_streams_without_secrets() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let admin = proxy.admin();
    let mut watch = proxy.client().http1().await;
    let path = "/api/v1/namespaces/default/pods";
    watch
        .send(format!(
            "GET {path}?watch=1&token=s3cret HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer s3cret\r\n\
             User-Agent: <script>alert(1)</script>\r\nCookie: s3cret\r\n\r\n"
        ))
        .await;
    watch.head().await.unwrap();
    let mut exec = proxy.client().http1().await;
    exec.send(WEBSOCKET.replace("command=ls", "command=s3cret").replace(
        "v5.channel.k8s.io",
        "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.s3cret",
    ))
    .await;
    exec.head().await.unwrap();
    wait_for_numbers(
        admin,
        &[
            ("watches{cluster=\"test\"}", 1.0),
            ("tunnels{cluster=\"test\"}", 1.0),
        ],
    )
    .await;

    let response = get(admin, "/status.json").await;
    assert!(!response.text().contains("s3cret"), "{}", response.text());
    let status: Value = serde_json::from_slice(&response.body).unwrap();
    let open = ["open_watches", "open_tunnels"].map(|list| {
        let rows = status[list].as_array().unwrap();
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows[0].clone()
    });
    for (field, value) in [
        ("kind", "watch"),
        ("cluster", "test"),
        ("client", "127.0.0.1"),
        ("user_agent", "<script>alert(1)</script>"),
        ("resource", "pods"),
        ("namespace", "default"),
        ("name", ""),
    ] {
        assert_eq!(open[0][field], value, "{field} of {}", open[0]);
    }
    let client = exec.stream().tcp().local_addr().unwrap().to_string();
    for (field, value) in [
        ("kind", "tunnel"),
        ("client", &*client),
        ("resource", "pods/exec"),
        ("name", "p"),
    ] {
        assert_eq!(open[1][field], value, "{field} of {}", open[1]);
    }
    let since = open[0]["since"].as_f64().unwrap();
    let now = status["now"].as_f64().unwrap();
    assert!((now - since).abs() < 60.0, "{since} and {now}");
    assert_eq!(
        status["certificates"][0]["names"],
        serde_json::json!([HOST, "127.0.0.1"])
    );
    assert_eq!(status["clusters"][0]["endpoints"][0]["state"], "healthy");
    assert_eq!(status["reload"]["failure"], Value::Null);
}

#[tokio::test]
async fn status_explains_failures() {
    let world = World::new();
    let refused = tcp::refused().await;
    let proxy = world.proxy(refused).admin().start();
    let admin = proxy.admin();
    let client = proxy.client().http2().await;
    for _ in 0..3 {
        let response = client.get("https://kube.test/version").await.unwrap();
        assert_eq!(response.status, 502);
    }
    world.dir.write("cluster-ca.crt", "nothing");
    proxy.reload();
    wait_for_numbers(admin, &[("last_reload_successful", 0.0)]).await;
    let status = status(admin).await;
    let errors = status["recent_errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(
        (
            &errors[0]["reason"],
            &errors[0]["cluster"],
            &errors[0]["count"]
        ),
        (&"connect".into(), &"test".into(), &3.into())
    );
    let message = errors[0]["message"].as_str().unwrap();
    assert!(
        message.contains(&format!("connect to {refused}: ")),
        "{message}"
    );
    let endpoint = &status["clusters"][0]["endpoints"][0];
    assert_eq!(endpoint["state"], "unhealthy");
    assert!(
        endpoint["why"].as_str().unwrap().contains("refused"),
        "{endpoint}"
    );
    let reload = status["reload"]["failure"].as_str().unwrap();
    assert!(reload.contains("cluster-ca.crt"), "{reload}");
}

/// An injected script would not run.
#[tokio::test]
async fn status_page_policy_allows_only_its_own_script() {
    let world = World::new();
    let proxy = world.proxy(tcp::refused().await).admin().start();
    let page = get(proxy.admin(), "/").await;
    let policy = page.head.header("content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe-"), "{policy}");
}

/// Waits until this holds for the status.
async fn wait_for_status(
    admin: std::net::SocketAddr,
    what: &str,
    holds: impl Fn(&Value) -> bool,
) -> Value {
    let deadline = tokio::time::Instant::now() + standin::WAIT;
    loop {
        let status = status(admin).await;
        if holds(&status) {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: {status:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn exec_is_listed_beside_500_watches() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let proxy = world.proxy(upstream.address()).admin().workers(2).start();
    let (mut clients, mut open) = (Vec::new(), Vec::new());
    for connection in 0..5 {
        let client = proxy.client().http2().await;
        for number in 0..80 {
            // 400 watches of one resource, and 100 of as many resources.
            let url = format!("https://{HOST}/apis/example.com/v1/widgets?watch=1");
            open.push(client.open(&url).await.unwrap());
            if number % 4 == 0 {
                let number = connection * 100 + number;
                let url = format!("https://{HOST}/apis/example.com/v1/things{number}?watch=1");
                open.push(client.open(&url).await.unwrap());
            }
        }
        clients.push(client);
    }
    let mut exec = proxy.client().http1().await;
    exec.send(WEBSOCKET).await;
    exec.head().await.unwrap();
    let admin = proxy.admin();
    let status = wait_for_status(admin, "all streams", |status| {
        status["watches"] == 500 && status["tunnels"] == 1
    })
    .await;
    let tunnels = status["open_tunnels"].as_array().unwrap();
    assert_eq!(tunnels.len(), 1, "{tunnels:?}");
    assert_eq!(tunnels[0]["resource"], "pods/exec");
    let watches = status["open_watches"].as_array().unwrap();
    assert_eq!(watches.len(), 100, "the rows are bounded");
    assert_eq!(watches[0]["resource"], "widgets");
    assert_eq!(watches[0]["count"], 400);
    drop((open, clients));
}

#[tokio::test]
async fn same_error_of_several_workers_is_one_row() {
    let world = World::new();
    let setup = world.proxy(tcp::refused().await).admin();
    let proxy = setup.workers(4).start();
    // The kernel spreads these connections over the workers.
    for _ in 0..32 {
        let client = proxy.client().http2().await;
        let response = client.get("https://kube.test/ok").await.unwrap();
        assert_eq!(response.status, 503);
    }
    let status = status(proxy.admin()).await;
    let errors = status["recent_errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0]["count"], 32);
}

#[tokio::test]
async fn ready_proxy_names_the_cluster_that_is_down() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let setup = world.proxy(upstream.address()).admin();
    let refused = tcp::refused().await;
    let setup = setup.second_cluster("staging", "staging.test", refused);
    let proxy = setup.start();
    let admin = proxy.admin();
    assert_eq!(status(admin).await["state"], "not_ready");
    let client = proxy.client().http2().await;
    client.get("https://kube.test/version").await.unwrap();
    let ready = status(admin).await;
    assert_eq!(
        (&ready["state"], &ready["problems"]),
        (&"ready".into(), &serde_json::json!([]))
    );
    client.get("https://staging.test/version").await.unwrap();
    let down = status(admin).await;
    assert_eq!(down["state"], "problems");
    let problem = down["problems"][0].as_str().unwrap();
    let words = format!("staging: no apiserver is healthy: cannot connect to {refused}: ");
    assert!(problem.starts_with(&words), "{problem}");
    assert_eq!(get(admin, "/readyz").await.status, 200);
}

/// The proxy stays ready, because no other instance reaches the apiserver either. But an operator has to see it.
#[tokio::test]
async fn outage_of_all_apiservers_is_a_state_of_its_own() {
    let world = World::new();
    let setup = world.proxy(tcp::refused().await).admin();
    let refused = tcp::refused().await;
    let proxy = setup
        .second_cluster("staging", "staging.test", refused)
        .start();
    let client = proxy.client().http2().await;
    for host in ["kube.test", "staging.test"] {
        let response = client
            .get(&format!("https://{host}/api/v1/pods"))
            .await
            .unwrap();
        assert_eq!(response.status, 503);
    }
    assert_eq!(status(proxy.admin()).await["state"], "outage");
    assert_eq!(get(proxy.admin(), "/readyz").await.status, 200);
}

#[tokio::test]
async fn status_lists_what_client_certificates_depend_on() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let plain = world.proxy(upstream.address()).admin().start();
    let plain = status(plain.admin()).await;
    assert_eq!(plain["clusters"][0]["client_certificates"], Value::Null);

    let cas = Authorities::new();
    let mut section = cas.section(&world);
    let (old, without) = (Ca::new("old"), Ca::new("without"));
    let all = [cas.users.pem(), old.pem(), without.pem()].concat();
    section.ca = world.dir.write("all.crt", all);
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let lists = [
        cas.users.revocation_list(&[7, 8], now + hour),
        old.revocation_list(&[], now - hour),
    ];
    section.crl = Some(world.dir.write("all.crl", lists.concat()));
    let setup = world.proxy(upstream.address()).admin();
    let setup = setup.cluster(|cluster| cluster.client_certificates = Some(section));
    let proxy = setup.start();
    let status = status(proxy.admin()).await;
    let found = &status["clusters"][0]["client_certificates"];
    assert_eq!(found["front_proxy"]["subject"], "CN=front-proxy");
    let days = (found["front_proxy"]["not_after"].as_f64().unwrap()
        - status["now"].as_f64().unwrap())
        / 86_400.0;
    assert!(days > 1.0, "{found}");
    let users = found["users"].as_array().unwrap().iter();
    let users: Vec<_> = users.map(|ca| ca["subject"].as_str().unwrap()).collect();
    assert_eq!(users, ["CN=users", "CN=old", "CN=without"]);
    let lists = found["revocation_lists"].as_array().unwrap().iter();
    let lists: Vec<_> = lists
        .map(|list| {
            let text = |field: &str| list[field].as_str().unwrap();
            let has_date = list["next_update"].is_f64();
            (
                text("issuer"),
                text("state"),
                list["revoked"].as_u64().unwrap(),
                has_date,
            )
        })
        .collect();
    let expected = [
        ("CN=users", "current", 2, true),
        ("CN=old", "outdated", 0, true),
        ("CN=without", "missing", 0, false),
    ];
    assert_eq!(lists, expected);
}

#[tokio::test]
async fn burst_of_401_is_a_problem_and_in_the_charts() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let mut client = proxy.client().alpn(&["http/1.1"]).http1().await;
    for _ in 0..200 {
        let response = client.get(HOST, "/api/v1/secrets", "").await;
        assert_eq!(response.status, 401);
    }
    let unauthorized = |status: &Value| -> f64 {
        let points = status["charts"]["requests"].as_array().unwrap();
        points.iter().map(|point| point[1].as_f64().unwrap()).sum()
    };
    // No page was open meanwhile.
    let status = wait_for_status(proxy.admin(), "401 in the charts", |status| {
        unauthorized(status) > 0.0
    })
    .await;
    assert_eq!(status["state"], "problems");
    let problem = status["problems"][0].as_str().unwrap();
    assert!(
        problem.starts_with("test: ") && problem.contains("per second are 401"),
        "{problem}"
    );
    assert!(
        status["clusters"][0]["unauthorized_per_second"]
            .as_f64()
            .unwrap()
            > 1.0
    );
    // Without those of the proxy itself.
    let client = &status["clients"][0];
    assert_eq!(client["client"], "127.0.0.1");
    let answered = upstream.requests();
    let answered = answered
        .iter()
        .filter(|request| request.target == "/api/v1/secrets");
    assert_eq!(client["unauthorized"], answered.count(), "{client}");
    let times = status["clusters"][0]["endpoints"][0]["p99"].as_f64();
    assert!(times.unwrap() > 0.0);
}

#[tokio::test]
async fn failed_handshakes_are_a_problem() {
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let client = proxy.client().http2().await;
    client.get("https://kube.test/version").await.unwrap();
    for _ in 0..40 {
        let mut noise = TcpStream::connect(proxy.address()).await.unwrap();
        noise.write_all(&[0xff; 64]).await.unwrap();
        noise.read_to_end(&mut Vec::new()).await.ok();
    }
    let failed = [("handshakes_total{result=\"failed\"}", 40.0)];
    wait_for_numbers(proxy.admin(), &failed).await;
    let status = status(proxy.admin()).await;
    let problem = status["problems"][0].as_str().unwrap();
    assert!(
        problem.contains("TLS handshakes per second fail"),
        "{problem}"
    );
    let rates = ["handshakes_per_second", "failed_handshakes_per_second"];
    let [all, failed] = rates.map(|rate| status[rate].as_f64().unwrap());
    assert!(all > failed && failed > 0.0, "{all} and {failed}");
}
