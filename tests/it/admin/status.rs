//! The status page and its data: open streams, errors, and no secret.

use serde_json::Value;
use standin::tcp;

use super::{api, get, wait_for_numbers};
use crate::proxy::{HOST, World};

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
    let client = watch.stream().tcp().local_addr().unwrap().to_string();
    let path = "/api/v1/namespaces/default/pods";
    watch
        .send(format!(
            "GET {path}?watch=1&token=s3cret HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer s3cret\r\n\
             User-Agent: <script>alert(1)</script>\r\nCookie: s3cret\r\n\r\n"
        ))
        .await;
    watch.head().await.unwrap();
    let mut exec = proxy.client().http1().await;
    exec.send(
        crate::upgrades::WEBSOCKET
            .replace("command=ls", "command=s3cret")
            .replace(
                "v5.channel.k8s.io",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.s3cret",
            ),
    )
    .await;
    exec.head().await.unwrap();
    wait_for_numbers(admin, &[("watches", 1.0), ("tunnels", 1.0)]).await;

    let response = get(admin, "/status.json").await;
    assert!(!response.text().contains("s3cret"), "{}", response.text());
    let status: Value = serde_json::from_slice(&response.body).unwrap();
    let open = status["open"].as_array().unwrap();
    assert_eq!(open.len(), 2);
    for (field, value) in [
        ("kind", "watch"),
        ("client", &*client),
        ("user_agent", "<script>alert(1)</script>"),
        ("resource", "pods"),
        ("namespace", "default"),
        ("name", ""),
    ] {
        assert_eq!(open[0][field], value, "{field} of {}", open[0]);
    }
    for (field, value) in [("kind", "tunnel"), ("resource", "pods/exec"), ("name", "p")] {
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
        (&errors[0]["reason"], &errors[0]["count"]),
        (&"connect".into(), &3.into())
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
