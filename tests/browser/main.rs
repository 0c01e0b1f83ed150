//! The status page in a real browser: it loads, updates itself, shows what is broken, and logs no error.
//!
//! Needs `chromium`. If it is not installed, the tests print a line and pass; with
//! `REQUIRE_BROWSER=1` they fail. The tests write pictures to `target`; `UPDATE=1` also writes the
//! picture of the README.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and has no Drain"
)]

mod chromium;
#[expect(dead_code, reason = "shared with tests/it, which uses all of it")]
#[path = "../it/proxy.rs"]
mod proxy;

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Request, Response};
use kube_tls_proxy::config::{ClientCertificatesConfig, IdentityFiles, LoggedUser, NamingConfig};
use standin::{client::Http2, pki::Ca, upstream::api};

use chromium::Chromium;
use proxy::{HOST, World};

/// The widths and colour schemes in which the page is drawn.
const LOOKS: [(u32, &str); 4] = [
    (1280, "light"),
    (1280, "dark"),
    (400, "light"),
    (400, "dark"),
];

/// Opens a watch with this user agent.
async fn watch(client: &Http2, path: &str, user_agent: &str) -> Response<h2::RecvStream> {
    let request = Request::get(format!("https://{HOST}{path}?watch=1&token=s3cret"));
    let request = request.header("user-agent", user_agent).body(()).unwrap();
    let (response, _) = client.begin(request, true).await.unwrap();
    standin::within("a watch", response).await.unwrap()
}

async fn browser() -> Option<Chromium> {
    let browser = Chromium::start().await;
    if browser.is_none() {
        assert!(
            env::var_os("REQUIRE_BROWSER").is_none(),
            "chromium is not installed; install it with \"apt-get install chromium\""
        );
        eprintln!("browser: NOT TESTED, chromium is not installed");
    }
    browser
}

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[tokio::test]
async fn page_updates_itself_and_shows_faults() {
    let Some(mut browser) = browser().await else {
        return;
    };
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let mut proxy = world.proxy(upstream.address()).admin().start();
    let client = proxy.client().http2().await;
    browser.look(1100, "light").await;
    browser.open(&format!("http://{}/", proxy.admin())).await;
    browser
        .wait_until("document.title === 'Not ready · kube-tls-proxy'")
        .await;
    let icon = "document.getElementById('icon').dataset.kind";
    assert_eq!(browser.evaluate(icon).await, "bad");
    let checks = browser
        .evaluate("document.getElementById('checks').innerText")
        .await;
    assert!(checks.as_str().unwrap().contains("upstream: "), "{checks}");
    client.get("https://kube.test/version").await.unwrap();
    browser
        .wait_until("document.title.startsWith('Ready')")
        .await;
    browser.wait_for_text("names", "kube.test").await;
    let hidden = "document.getElementById('client-certificates-section').hidden";
    assert_eq!(browser.evaluate(hidden).await, true);
    browser.wait_for_text("upstreams", "healthy since").await;
    browser
        .wait_until("document.getElementById('watches').textContent === '0'")
        .await;

    // The numbers follow the events, and the page escapes text of a client.
    let markup = "<script>document.title='no'</script><img src=x onerror=alert(1)>";
    let open_watch = watch(&client, "/api/v1/namespaces/default/pods", markup).await;
    browser
        .wait_until("document.getElementById('watches').textContent === '1'")
        .await;
    for text in ["<script>document.title", "pods in default"] {
        browser.wait_for_text("open-watches", text).await;
    }
    let made = "document.querySelectorAll('main script, main img').length";
    assert_eq!(browser.evaluate(made).await, 0);
    let text = browser.evaluate("document.documentElement.outerHTML").await;
    assert!(!text.as_str().unwrap().contains("s3cret"));
    for _ in 0..20 {
        client.get("https://kube.test/api/v1/nodes").await.unwrap();
    }
    browser
        .wait_until("parseFloat(document.getElementById('rate').textContent) > 0")
        .await;
    browser
        .wait_until("document.getElementById('rate-line').getAttribute('d').length > 0")
        .await;
    browser
        .wait_until("document.getElementById('time-words').textContent.includes('p99')")
        .await;
    // The process keeps the history, so a fresh page has its charts at once.
    browser.open("about:blank").await;
    browser.open(&format!("http://{}/", proxy.admin())).await;
    browser
        .wait_until("document.body?.dataset.turns === '1' && document.getElementById('rate-line').getAttribute('d').length > 0")
        .await;
    for link in ["metrics", "readyz?verbose", "status.json"] {
        let found = format!("document.querySelector('nav a[href=\"{link}\"]') !== null");
        assert_eq!(browser.evaluate(&found).await, true, "{link}");
    }
    assert_eq!(browser.evaluate(icon).await, "good");
    drop(open_watch);
    browser
        .wait_until("document.getElementById('watches').textContent === '0'")
        .await;

    // The dark scheme differs from the light one, and the page fits a phone.
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.evaluate(ground).await;
    browser.look(400, "dark").await;
    assert_ne!(browser.evaluate(ground).await, light);
    let width = browser
        .evaluate("document.documentElement.scrollWidth")
        .await;
    assert!(width.as_u64().unwrap() <= 400, "{width}");

    // The page shows that the apiserver is gone.
    drop(upstream);
    let broken = proxy.client().http2().await;
    while broken
        .get("https://kube.test/version")
        .await
        .unwrap()
        .status
        == 200
    {}
    browser.wait_for_text("upstreams", "unhealthy since").await;
    browser
        .wait_until("document.getElementById('state').textContent === 'Ready, but no apiserver can be reached'")
        .await;
    browser
        .wait_for_text("problems", "test: no apiserver is healthy")
        .await;
    browser.wait_for_text("errors", "connect").await;
    assert_eq!(browser.evaluate(icon).await, "bad");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);

    // The page shows that the proxy is gone.
    drop((client, broken));
    proxy.begin_shutdown();
    proxy.wait_until_stopped().await;
    browser
        .wait_until("!document.getElementById('silent').hidden")
        .await;
}

/// A bad night: one of two clusters is down, a client repeats a token that is not valid, and 500 watches are open.
#[tokio::test]
async fn page_shows_exec_and_problems_among_500_watches() {
    let Some(mut browser) = browser().await else {
        return;
    };
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let setup = world.proxy(upstream.address()).admin().workers(2);
    let refused = standin::tcp::refused().await;
    let mut setup = setup.second_cluster("staging", "staging.test", refused);
    setup.config.log.user = LoggedUser::Subject;
    let proxy = setup.start();
    let mut open = Vec::new();
    for number in 0..500 {
        if number % 80 == 0 {
            open.push((proxy.client().http2().await, Vec::new()));
        }
        let (client, watches) = open.last_mut().unwrap();
        let path = match number % 25 {
            0 => format!("/apis/example.com/v1/widgets{number}"),
            other => format!("/api/v1/namespaces/team-{other}/configmaps"),
        };
        watches.push(watch(client, &path, "controller/v1.2.3 (linux/amd64)").await);
    }
    let client = &open[0].0;
    for _ in 0..40 {
        client.get("https://staging.test/version").await.unwrap();
        client
            .get("https://kube.test/api/v1/secrets")
            .await
            .unwrap();
    }
    let exec = exec(&proxy).await;

    browser.look(1280, "light").await;
    browser.open(&format!("http://{}/", proxy.admin())).await;
    browser
        .wait_until("document.title === 'Ready, with problems · kube-tls-proxy'")
        .await;
    browser
        .wait_for_text("problems", "staging: no apiserver is healthy")
        .await;
    browser
        .wait_for_text("problems", "per second are 401")
        .await;
    browser
        .wait_for_text("open-watches", "configmaps in several namespaces ×480")
        .await;
    browser
        .wait_until("Number(document.body.dataset.turns) >= 4")
        .await;
    let bottom = "document.querySelector('#open-tunnels li').getBoundingClientRect().bottom";
    for (width, scheme) in LOOKS {
        browser.look(width, scheme).await;
        let text = browser
            .evaluate("document.getElementById('open-tunnels').innerText")
            .await;
        assert!(
            text.as_str()
                .unwrap()
                .contains("pods/exec in payments: web-0"),
            "{text}"
        );
        // As text, and not wider than the page.
        assert!(text.as_str().unwrap().contains("<b>jane</b>xxx"), "{text}");
        let bottom = browser.evaluate(bottom).await.as_f64().unwrap();
        assert!(
            bottom < 900.0 || width < 1280,
            "the exec is at {bottom} of 900 pixels"
        );
        let height = browser
            .evaluate("document.documentElement.scrollHeight")
            .await;
        assert!(height.as_u64().unwrap() < 4_000, "{width}: {height} pixels");
        let overflow = browser
            .evaluate("document.documentElement.scrollWidth")
            .await;
        assert!(overflow.as_u64().unwrap() <= u64::from(width), "{overflow}");
        save(
            &format!("status-broken-{width}-{scheme}.png"),
            &browser.picture().await,
        );
    }
    // All rows can be opened.
    browser
        .evaluate("document.querySelector('#open-watches button').click()")
        .await;
    browser
        .wait_until("document.querySelectorAll('#open-watches li').length === 21")
        .await;
    assert_eq!(
        browser
            .evaluate("document.getElementById('icon').dataset.kind")
            .await,
        "wait"
    );
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    drop((open, exec));
}

/// An open exec of a user with a long name.
async fn exec(proxy: &proxy::Proxy) -> impl Sized + use<> {
    let mut exec = proxy.client().http1().await;
    let name = format!("<b>jane</b>{}", "x".repeat(1_000));
    let claims = format!(r#"{{"iss":"https://login.test","sub":"{name}"}}"#);
    let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
    exec.send(format!(
        "GET /api/v1/namespaces/payments/pods/web-0/exec?command=sh HTTP/1.1\r\nHost: {HOST}\r\n\
         User-Agent: kubectl/v1.36.1 (darwin/arm64)\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    ))
    .await;
    exec.head().await.unwrap();
    exec
}

/// Two CAs of users, of which one has a revocation list.
fn client_certificates(world: &World) -> ClientCertificatesConfig {
    let (users, contractors) = (Ca::new("users"), Ca::new("contractors"));
    let identity = Ca::new("front-proxy-ca").client("front-proxy", &[]);
    let (certificate, key) = identity.write(&world.dir, "front-proxy");
    let next_update = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
    let list = users.revocation_list(&[7, 8], next_update);
    ClientCertificatesConfig {
        ca: world
            .dir
            .write("users.crt", users.pem() + &contractors.pem()),
        crl: Some(world.dir.write("users.crl", list)),
        naming: NamingConfig::FrontProxy(IdentityFiles { certificate, key }),
        allow_system: false,
    }
}

/// Writes a picture, to look at.
fn save(name: &str, picture: &[u8]) {
    assert!(picture.starts_with(b"\x89PNG"));
    // Cargo may use another target directory.
    fs::create_dir_all(repository("target")).unwrap();
    fs::write(repository("target").join(name), picture).unwrap();
}

/// Tests only that the page can be drawn with all its parts.
#[tokio::test]
async fn page_can_be_drawn_with_all_parts() {
    let Some(mut browser) = browser().await else {
        return;
    };
    let world = World::new();
    let upstream = world.apiserver().http(api).start().await;
    let expires = SystemTime::now() + Duration::from_secs(61 * 24 * 60 * 60 + 3600);
    let certificate = world.public_ca.leaf(&[HOST]).valid_until(expires).build();
    let setup = world.proxy_as(upstream.address(), &certificate);
    let setup = setup.cluster(|cluster| {
        cluster.client_certificates = Some(client_certificates(&world));
    });
    let proxy = setup.admin().start();
    let client = proxy.client().http2().await;
    let mut open_watches = Vec::new();
    for (path, user_agent) in [
        (
            "/api/v1/namespaces/payments/pods",
            "kubectl/v1.36.1 (linux/amd64) kubernetes/8adc0f0",
        ),
        (
            "/apis/apps/v1/deployments",
            "argocd-application-controller/v3.2.0",
        ),
        ("/api/v1/nodes", "headlamp/0.38.0"),
    ] {
        open_watches.push(watch(&client, path, user_agent).await);
    }
    let exec = exec(&proxy).await;
    let wrong = Request::get("https://old.example.com/").body(bytes::Bytes::new());
    client.request(wrong.unwrap()).await.unwrap();

    browser.look(1280, "light").await;
    browser.open(&format!("http://{}/", proxy.admin())).await;
    browser
        .wait_until("document.title.startsWith('Ready')")
        .await;
    // Waits for enough updates for a visible chart.
    let for_readme = env::var_os("UPDATE").is_some();
    let turns = if for_readme { 40 } else { 3 };
    let drawn = format!("Number(document.body.dataset.turns) >= {turns}");
    let mut number = 0_u32;
    while browser.evaluate(&drawn).await != true {
        number += 1;
        for _ in 0..(3 + number / 9 % 5 + number % 3) {
            client
                .get("https://kube.test/api/v1/namespaces/payments/pods")
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    for text in [
        "front-proxy certificate",
        "CN=users",
        "2 certificates revoked",
        "missing: certificates of this CA are refused",
    ] {
        browser.wait_for_text("client-certificates", text).await;
    }
    browser.wait_for_text("upstreams", "TLS in").await;
    for (width, scheme) in LOOKS {
        browser.look(width, scheme).await;
        let overflow = browser
            .evaluate("document.documentElement.scrollWidth")
            .await;
        assert!(overflow.as_u64().unwrap() <= u64::from(width), "{overflow}");
        let picture = browser.picture().await;
        save(&format!("status-{width}-{scheme}.png"), &picture);
        if for_readme && (width, scheme) == (1280, "light") {
            fs::write(repository("docs/status.png"), &picture).unwrap();
        }
    }
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    drop((open_watches, exec));
}
