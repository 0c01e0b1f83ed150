//! A certificate by ACME, from Pebble, the test CA of Let's Encrypt.
//!
//! Needs `pebble`: `.ci/run` builds it with Go from the versions in `tests/acme/go.mod`. If it is not installed,
//! the tests print a line and pass; with `REQUIRE_PEBBLE=1` they fail.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and has no Drain"
)]

mod pebble;
#[expect(dead_code, reason = "shared with tests/it, which uses all of it")]
#[path = "../it/proxy.rs"]
mod proxy;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kube_tls_proxy::config::{AcmeConfig, CertificateSource, ExternalAccount};
use serde_json::{Value, json};
use standin::{
    client::{Client, Http1},
    upstream::Upstream,
    within,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::Command,
};

use pebble::{Pebble, free_port};
use proxy::{APISERVER, HOST, Proxy, Setup, World};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A proxy with this certificate, on this port.
fn setup<'a>(world: &'a World, upstream: &Upstream, port: u16, acme: AcmeConfig) -> Setup<'a> {
    let mut setup = world.proxy(upstream.address()).admin();
    setup.config.identities = vec![CertificateSource::Acme(acme)];
    setup.config.listen = vec![local(port).into()];
    setup
}

async fn admin(address: SocketAddr, path: &str) -> String {
    let mut http = Http1::new(TcpStream::connect(address).await.unwrap());
    http.get("127.0.0.1", path, "").await.text()
}

/// The value of a metric of the first certificate.
async fn metric(address: SocketAddr, name: &str) -> f64 {
    let text = admin(address, "/metrics").await;
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0.0)
}

async fn wait_for_metric(proxy: &Proxy, name: &str, wanted: f64) {
    let reached = async {
        while metric(proxy.admin(), name).await < wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(name, reached).await;
}

const ISSUED: &str = "kube_tls_proxy_acme_orders_total{name=\"kube.test\",result=\"ok\"}";
const FAILED: &str = "kube_tls_proxy_acme_orders_total{name=\"kube.test\",result=\"failed\"}";

/// A CA that validates names on one port, and what a proxy on that port needs.
struct Scene {
    world: World,
    port: u16,
    pebble: Pebble,
    /// The root that its certificates lead to, in PEM.
    root: String,
    upstream: Upstream,
}

impl Scene {
    /// `None` if Pebble is not installed.
    async fn new() -> Option<Self> {
        Self::with(json!({}), VALIDATE_AT_ONCE).await
    }

    /// The same, with these settings and variables of Pebble.
    async fn with(settings: Value, variables: &[(&str, &str)]) -> Option<Self> {
        let (world, port) = (World::new(), free_port());
        let pebble = Pebble::start(port, settings, variables).await?;
        Some(Self {
            root: pebble.root().await,
            upstream: world.apiserver().start().await,
            world,
            port,
            pebble,
        })
    }

    fn store(&self) -> PathBuf {
        self.world.dir.path().join("state/store")
    }

    /// A proxy in this process, with a certificate for these names.
    fn proxy(&self, names: &[&str]) -> Proxy {
        let acme = self.pebble.config(names, &self.store());
        setup(&self.world, &self.upstream, self.port, acme).start()
    }

    /// Waits until a client that trusts the CA gets a response under this name.
    async fn wait_for_get(&self, name: &str) -> Client {
        let client = Client::new(local(self.port))
            .trust_pem(&self.root)
            .sni(name);
        let served = async {
            while client.connect().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("a verified handshake", served).await;
        let response = client.http1().await.get(name, "/version", "").await;
        assert_eq!(response.status, 200);
        client
    }

    /// The command for a proxy of the binary, on this port.
    fn serve(&self, port: u16) -> Command {
        let ca = self
            .world
            .dir
            .write("cluster-ca.crt", self.world.cluster_ca.pem());
        let kubeconfig = json!({
            "current-context": "a",
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": {
                "server": format!("https://{}", self.upstream.address()),
                "certificate-authority": ca,
                "tls-server-name": APISERVER,
            }}],
            "users": [{"name": "a", "user": {}}],
        });
        let kubeconfig = self.world.dir.write("cluster.conf", kubeconfig.to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-tls-proxy"));
        command
            .args(["serve", "--acme", HOST, "--acme-email", "ops@example.com"])
            .args(["--acme-directory", &self.pebble.directory()])
            .arg("--acme-directory-ca")
            .arg(self.pebble.directory_ca())
            .arg("--acme-store")
            .arg(self.store())
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--listen", &local(port).to_string(), "--workers", "2"])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

const VALIDATE_AT_ONCE: &[(&str, &str)] = &[("PEBBLE_VA_NOSLEEP", "1")];

#[tokio::test(flavor = "multi_thread")]
async fn one_command_on_an_empty_machine_serves_kubectl() {
    let Some(scene) = Scene::new().await else {
        return;
    };
    let began = Instant::now();
    let _child = scene.serve(scene.port).spawn().unwrap();
    scene.wait_for_get(HOST).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    eprintln!("from nothing to a verified GET: {took:?}");
    let names: Vec<_> = fs::read_dir(scene.store())
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "account, certificate and lock: {names:?}");
    // kubectl, as a user has it.
    let ca = scene.world.dir.write("public-ca.crt", &scene.root);
    let kubectl = Command::new("kubectl")
        .args([
            "--server",
            &format!("https://{}", local(scene.port)),
            "--tls-server-name",
            HOST,
        ])
        .arg("--certificate-authority")
        .arg(ca)
        .args(["--token", "a-token", "get", "--raw", "/version"])
        .env("HOME", scene.world.dir.path())
        .output()
        .await;
    match kubectl {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(_missing) => eprintln!("kubectl: NOT TRIED, it is not installed"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_under_load_lose_no_request() {
    let profiles = json!({"profiles": {"default": {"description": "", "validityPeriod": 6}}});
    let Some(scene) = Scene::with(profiles, VALIDATE_AT_ONCE).await else {
        return;
    };
    let proxy = scene.proxy(&[HOST]);
    let client = scene.wait_for_get(HOST).await;
    let (stop, requests) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut load = Vec::new();
    for is_new_each_time in [true, true, false] {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        let requests = Arc::clone(&requests);
        load.push(tokio::spawn(async move {
            let mut http = client.http1().await;
            while !stop.load(Ordering::Relaxed) {
                if is_new_each_time {
                    // It panics when the certificate is not valid now.
                    http = client.http1().await;
                }
                let response = http.get(HOST, "/version", "").await;
                assert_eq!(response.status, 200);
                requests.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }));
    }
    for renewals in 1..=24 {
        wait_for_metric(&proxy, ISSUED, f64::from(renewals + 1)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for one in load {
        one.await.unwrap();
    }
    assert!(requests.load(Ordering::Relaxed) > 500);
    assert_eq!(metric(proxy.admin(), FAILED).await, 0.0);
    // One account for all of them.
    assert_eq!(scene.pebble.count("accounts in memory"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn order_of_a_killed_process_is_completed_at_the_next_start() {
    let Some(scene) = Scene::new().await else {
        return;
    };
    let store = scene.store();
    let mut child = scene.serve(scene.port).spawn().unwrap();
    // The CA has issued, and the proxy has not asked for the certificate yet.
    scene.pebble.wait_for("Issued certificate", 1).await;
    child.kill().await.unwrap();
    assert!(store.join("order.json").exists());
    assert!(!store.join("certificate.pem").exists());
    let _child = scene.serve(scene.port).spawn().unwrap();
    scene.wait_for_get(HOST).await;
    assert_eq!(scene.pebble.count("Issued certificate"), 1);
    assert!(!store.join("order.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn second_process_on_the_same_store_is_refused() {
    let Some(scene) = Scene::new().await else {
        return;
    };
    let _child = scene.serve(scene.port).spawn().unwrap();
    scene.wait_for_get(HOST).await;
    let mut second = scene.serve(free_port());
    let output = within("the second process", second.output()).await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("is in use by another process; stop that one"),
        "{stderr}"
    );
}

/// As at an upgrade: the new process starts while the old one has the store.
#[tokio::test(flavor = "multi_thread")]
async fn new_process_takes_the_store_over_with_reuse_port() {
    let Some(scene) = Scene::new().await else {
        return;
    };
    let serve = || scene.serve(scene.port).arg("--reuse-port").spawn().unwrap();
    let mut old = serve();
    scene.wait_for_get(HOST).await;
    let mut new = serve();
    let mut lines = BufReader::new(new.stderr.take().unwrap()).lines();
    let waits = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("cannot open the ACME store; retrying") {
                return;
            }
        }
        panic!("the new process has ended");
    };
    within("the new process", waits).await;
    // Only the owner of the store orders another one.
    fs::remove_file(scene.store().join("certificate.pem")).unwrap();
    old.kill().await.unwrap();
    scene.pebble.wait_for("Issued certificate", 2).await;
    scene.wait_for_get(HOST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn address_and_name_in_one_certificate() {
    let Some(scene) = Scene::new().await else {
        return;
    };
    let _proxy = scene.proxy(&[HOST, "127.0.0.1"]);
    scene.wait_for_get(HOST).await;
    scene.wait_for_get("127.0.0.1").await;
}

/// The CA can reach the proxy over HTTP only, and takes a moment before it does.
#[tokio::test(flavor = "multi_thread")]
async fn http_challenge_is_answered_while_an_order_runs() {
    let http_port = free_port();
    let settings = json!({"httpPort": http_port, "tlsPort": 1});
    let Some(scene) = Scene::with(settings, &[("PEBBLE_VA_SLEEPTIME", "2")]).await else {
        return;
    };
    let mut serve = scene.serve(scene.port);
    serve.args(["--acme-http01-listen", &local(http_port).to_string()]);
    let _child = serve.spawn().unwrap();
    let exchange = async |request: &[u8]| {
        let mut stream = TcpStream::connect(local(http_port)).await?;
        stream.write_all(request).await?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await?;
        std::io::Result::Ok(String::from_utf8(received).unwrap())
    };
    let answered = async {
        loop {
            if let Ok(response) = exchange(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n").await {
                return response;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let response = within("the port to open", answered).await;
    assert!(
        response.starts_with("HTTP/1.1 404 Not Found\r\n"),
        "{response}"
    );
    // None of these keeps the CA out.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(local(http_port)).await.unwrap());
    }
    let long = [b"GET /".to_vec(), vec![b'x'; 100_000]].concat();
    exchange(&long).await.ok();
    exchange(b"\x16\x03\x01\x00\xa5\x01 a ClientHello \r\n\r\n")
        .await
        .ok();
    scene.wait_for_get(HOST).await;
    assert!(TcpStream::connect(local(http_port)).await.is_err());
    let requests = scene.upstream.requests();
    let sent = requests.iter().filter(|it| it.target == "/version");
    // The one of `wait_for_get`.
    assert_eq!(sent.count(), 1, "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_share_the_port_of_their_challenges() {
    let http_port = free_port();
    let settings = json!({"httpPort": http_port, "tlsPort": 1});
    let Some(scene) = Scene::with(settings, VALIDATE_AT_ONCE).await else {
        return;
    };
    let acme = |name: &str| {
        let store = scene.world.dir.path().join(name);
        let mut acme = scene.pebble.config(&[name], &store);
        acme.http01_listen = Some(local(http_port));
        CertificateSource::Acme(acme)
    };
    let mut setup = scene.world.proxy(scene.upstream.address()).admin();
    setup.config.identities = [HOST, "a.kube.test", "b.kube.test"].map(acme).into();
    setup.config.listen = vec![local(scene.port).into()];
    let proxy = setup.start();
    scene.wait_for_get(HOST).await;
    scene.wait_for_get("a.kube.test").await;
    scene.wait_for_get("b.kube.test").await;
    let metrics = admin(proxy.admin(), "/metrics").await;
    let failed = metrics.lines().filter(|line| {
        line.starts_with("kube_tls_proxy_acme_orders_total") && line.contains("result=\"failed\"")
    });
    let failed: Vec<_> = failed.collect();
    assert_eq!(failed.len(), 3, "{metrics}");
    assert!(failed.iter().all(|line| line.ends_with(" 0")), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_http_port_is_named_in_readyz() {
    let Some(scene) = Scene::new().await else {
        return;
    };
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let mut acme = scene.pebble.config(&[HOST], &scene.store());
    acme.http01_listen = Some(address);
    let proxy = setup(&scene.world, &scene.upstream, scene.port, acme).start();
    wait_for_metric(&proxy, FAILED, 1.0).await;
    let ready = admin(proxy.admin(), "/readyz?verbose").await;
    let why = format!(
        "no certificate yet: cannot open {address} for the challenge http-01: another process uses this port"
    );
    assert!(ready.contains(&why), "{ready}");
    // The other challenge would work, and the operator has not chosen it.
    assert_eq!(scene.pebble.count("Issued certificate"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn external_account_is_bound_and_a_wrong_key_is_named() {
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let settings = json!({
        "externalAccountBindingRequired": true,
        "externalAccountMACKeys": {"kid-1": key},
    });
    let Some(scene) = Scene::with(settings, VALIDATE_AT_ONCE).await else {
        return;
    };
    let mut acme = scene
        .pebble
        .config(&[HOST], &scene.world.dir.path().join("refused"));
    let wrong = scene
        .world
        .dir
        .write("wrong.key", "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3I");
    acme.external_account = Some(ExternalAccount {
        key_id: "kid-1".into(),
        key_file: wrong,
    });
    let refused = setup(&scene.world, &scene.upstream, free_port(), acme.clone()).start();
    wait_for_metric(&refused, FAILED, 1.0).await;
    let ready = admin(refused.admin(), "/readyz?verbose").await;
    let why = "[-]certificate failed: kube.test: no certificate yet: the CA refuses: ";
    assert!(ready.contains(why), "{ready}");
    let key_file = scene.world.dir.write("right.key", format!("{key}\n"));
    acme.store = scene.world.dir.path().join("bound");
    acme.external_account = Some(ExternalAccount {
        key_id: "kid-1".into(),
        key_file,
    });
    let _proxy = setup(&scene.world, &scene.upstream, scene.port, acme).start();
    scene.wait_for_get(HOST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unissued_certificate_means_an_alert_and_readyz_says_why() {
    let (world, port) = (World::new(), free_port());
    let upstream = world.apiserver().start().await;
    let acme = AcmeConfig {
        names: vec![HOST.into()],
        email: None,
        directory: format!("https://127.0.0.1:{}/dir", free_port()),
        directory_ca: None,
        external_account: None,
        http01_listen: None,
        profile: None,
        store: world.dir.path().join("store"),
    };
    let proxy = setup(&world, &upstream, port, acme).start();
    wait_for_metric(&proxy, FAILED, 1.0).await;
    for name in [HOST, "other.test"] {
        let client = Client::new(local(port)).trust(&world.public_ca).sni(name);
        let mut tcp = TcpStream::connect(local(port)).await.unwrap();
        tcp.write_all(&client.hello()).await.unwrap();
        let mut received = Vec::new();
        within("the alert", tcp.read_to_end(&mut received))
            .await
            .unwrap();
        // A fatal alert: unrecognized_name.
        assert_eq!(received, [21, 3, 3, 0, 2, 2, 112], "{name}");
    }
    let ready = admin(proxy.admin(), "/readyz?verbose").await;
    let why = "[-]certificate failed: kube.test: no certificate yet: cannot connect to 127.0.0.1:";
    assert!(ready.contains(why), "{ready}");
    assert!(ready.contains("[+]listening ok"), "{ready}");
    let live = admin(proxy.admin(), "/livez").await;
    assert_eq!(live, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn challenge_handshake_never_reaches_http() {
    // The CA waits before it validates.
    let Some(scene) = Scene::with(json!({}), &[("PEBBLE_VA_SLEEPTIME", "3")]).await else {
        return;
    };
    let proxy = scene.proxy(&[HOST]);
    let answered = async {
        loop {
            if let Some(stream) = challenge(scene.port, HOST).await {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut stream = within("the challenge", answered).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"acme-tls/1"[..]));
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let identifier = [6, 8, 0x2b, 6, 1, 5, 5, 7, 1, 31, 1, 1, 0xff];
    assert!(
        certificate
            .windows(identifier.len())
            .any(|part| part == identifier)
    );
    let request = format!("GET /version HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok();
    let mut received = Vec::new();
    within("the end", stream.read_to_end(&mut received))
        .await
        .ok();
    assert_eq!(received, b"");
    assert!(scene.upstream.requests().is_empty());
    // A name without a challenge, and the same name without that protocol.
    assert!(challenge(scene.port, "other.test").await.is_none());
    scene.wait_for_get(HOST).await;
    assert!(challenge(scene.port, HOST).await.is_none());
    let label = "kube_tls_proxy_handshakes_total{result=\"challenge\"}";
    assert!(metric(proxy.admin(), label).await >= 2.0);
}

/// Runs the handshake of a CA. `None` if the proxy refuses it.
async fn challenge(port: u16, name: &str) -> Option<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = standin::pki::provider();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let tcp = TcpStream::connect(local(port)).await.ok()?;
    let name = name.to_owned().try_into().unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.ok()
}

/// Accepts every certificate, as a CA does: the proof is in an extension.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The CA must not issue a certificate for this name.
#[tokio::test(flavor = "multi_thread")]
async fn words_of_the_ca_reach_readyz() {
    let settings = json!({"domainBlocklist": [HOST]});
    let Some(scene) = Scene::with(settings, VALIDATE_AT_ONCE).await else {
        return;
    };
    let proxy = scene.proxy(&[HOST]);
    wait_for_metric(&proxy, FAILED, 1.0).await;
    let ready = admin(proxy.admin(), "/readyz?verbose").await;
    assert!(ready.contains("policy"), "{ready}");
    assert!(ready.contains("(rejectedIdentifier)"), "{ready}");
}
