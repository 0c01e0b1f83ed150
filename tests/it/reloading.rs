//! Certificates, keys and CAs change under load: new connections get the new ones, open connections stay, and an
//! invalid change has no effect.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls_pki_types::CertificateDer;
use standin::{
    client::Client,
    pki::{Ca, Identity},
    upstream::{ConnectionEnd, Upstream},
    within,
};

use crate::{
    drain::slow_or_endless,
    proxy::{APISERVER, HOST, Proxy, Setup, World},
    tunnels,
    upgrades::ManualApiserver,
};

/// A mounted Secret: each file is a link through `..data` into a directory that is replaced as a whole.
struct Mount<'a> {
    root: &'a Path,
    generation: u32,
}

impl<'a> Mount<'a> {
    fn new(world: &'a World, files: &[(&str, &str)]) -> Self {
        let mut mount = Self {
            root: world.dir.path(),
            generation: 0,
        };
        mount.swap(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), mount.root.join(name)).unwrap();
        }
        mount
    }

    /// Replaces all files with one rename, as the kubelet does.
    fn swap(&mut self, files: &[(&str, &str)]) {
        self.generation += 1;
        let generation = format!("..{}", self.generation);
        fs::create_dir(self.root.join(&generation)).unwrap();
        for (name, text) in files {
            fs::write(self.root.join(&generation).join(name), text).unwrap();
        }
        let next = self.root.join("..data_tmp");
        symlink(&generation, &next).unwrap();
        fs::rename(next, self.root.join("..data")).unwrap();
    }
}

/// A proxy that reads its certificate, key and CA from the files of a mount.
fn mounted<'a>(world: &'a World, upstream: &Upstream) -> Setup<'a> {
    let mut setup = world.proxy(upstream.address());
    let file = |name: &str| world.dir.path().join(name);
    let (certificate, key) = (file("tls.crt"), file("tls.key"));
    let files = kube_tls_proxy::config::IdentityFiles { certificate, key };
    setup.config.identities = vec![files.into()];
    setup.cluster(|cluster| {
        cluster.trust = kube_tls_proxy::config::TrustSource::File(file("ca.crt"))
    })
}

fn identity(world: &World) -> Identity {
    world.public_ca.server(&[HOST, "127.0.0.1"])
}

/// A client that has no session to resume: a resumed session shows the certificate of its first handshake.
fn fresh_client(proxy: &Proxy) -> Client {
    proxy.client().alpn(&[])
}

async fn presented(proxy: &Proxy) -> CertificateDer<'static> {
    fresh_client(proxy)
        .connect()
        .await
        .unwrap()
        .server_certificates()[0]
        .clone()
}

/// Waits until new clients receive this certificate.
async fn wait_for_certificate(proxy: &Proxy, new: &Identity) {
    let shown = async { while presented(proxy).await != new.chain[0] {} };
    within("the new certificate", shown).await;
}

/// Reloads, and waits for the end of the reload: a second certificate changes in the same reload and shows it.
async fn reload_with(proxy: &Proxy, world: &World, marker: &Identity) {
    marker.write(&world.dir, "marker");
    proxy.reload();
    let done = async {
        while fresh_client(proxy)
            .sni("marker.test")
            .connect()
            .await
            .unwrap()
            .server_certificates()[0]
            != marker.chain[0]
        {}
    };
    within("the reload", done).await;
}

/// Case 55. New connections get the new certificate; open connections and their watches are not affected.
#[tokio::test]
async fn swapped_certificate_serves_new_connections_only() {
    let world = World::new();
    let (old, new) = (identity(&world), identity(&world));
    let ca = world.cluster_ca.pem();
    let files = |identity: &Identity| {
        [
            ("tls.crt", identity.chain_pem()),
            ("tls.key", identity.key_pem().to_owned()),
            ("ca.crt", ca.clone()),
        ]
    };
    let mut mount = Mount::new(
        &world,
        &files(&old)
            .each_ref()
            .map(|(name, text)| (*name, text.as_str())),
    );
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let proxy = mounted(&world, &upstream).start();
    assert!(presented(&proxy).await == old.chain[0]);
    let http2 = proxy.client().http2().await;
    let mut watch = http2
        .open("https://kube.test/endless")
        .await
        .unwrap()
        .into_body();
    assert_eq!(watch.data().await.unwrap().unwrap(), "event\n");

    mount.swap(
        &files(&new)
            .each_ref()
            .map(|(name, text)| (*name, text.as_str())),
    );
    proxy.reload();
    wait_for_certificate(&proxy, &new).await;

    assert_eq!(
        http2.get("https://kube.test/version").await.unwrap().status,
        200,
        "the old connection"
    );
    assert_eq!(upstream.open_responses(), 1, "the watch is still open");
    assert_eq!(
        upstream.connections().len(),
        1,
        "the settings of the apiserver have not changed"
    );
}

/// Case 55. Without a signal, the proxy reads the files again every `timeouts.reload`.
#[tokio::test]
async fn poll_finds_a_swapped_certificate() {
    let world = World::new();
    let (old, new) = (identity(&world), identity(&world));
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy_as(upstream.address(), &old)
        .timeouts(|timeouts| timeouts.reload = Duration::from_millis(50))
        .start();
    assert!(presented(&proxy).await == old.chain[0]);
    new.write(&world.dir, "public");
    wait_for_certificate(&proxy, &new).await;
}

/// Case 55. Files that are missing, empty, truncated or do not match have no effect. The proxy takes the next
/// valid files.
#[tokio::test]
async fn invalid_change_keeps_the_last_good_state() {
    let world = World::new();
    let (old, new) = (identity(&world), identity(&world));
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy_as(upstream.address(), &old)
        .timeouts(|timeouts| timeouts.reload = Duration::from_millis(20))
        .start();
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let expired = world.public_ca.leaf(&[HOST, "127.0.0.1"]).expired().build();
    for (certificate, key, case) in [
        (
            String::new(),
            new.key_pem().to_owned(),
            "an empty certificate",
        ),
        (
            half(&new.chain_pem()),
            new.key_pem().to_owned(),
            "half a certificate",
        ),
        (new.chain_pem(), half(new.key_pem()), "half a key"),
        (
            new.chain_pem(),
            old.key_pem().to_owned(),
            "the new certificate with the old key",
        ),
        (
            expired.chain_pem(),
            expired.key_pem().to_owned(),
            "an expired certificate",
        ),
    ] {
        world.dir.write("public.crt", certificate);
        world.dir.write("public.key", key);
        proxy.reload();
        // Long enough for many polls.
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(presented(&proxy).await == old.chain[0], "{case}");
    }
    fs::remove_file(world.dir.path().join("public.crt")).unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut client = fresh_client(&proxy).http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");

    new.write(&world.dir, "public");
    wait_for_certificate(&proxy, &new).await;
}

/// A proxy with a second certificate, which shows when a reload is done.
fn with_marker<'a>(world: &'a World, upstream: &Upstream) -> Setup<'a> {
    let mut setup = world.proxy(upstream.address());
    let (certificate, key) = world
        .public_ca
        .server(&["marker.test"])
        .write(&world.dir, "marker");
    let files = kube_tls_proxy::config::IdentityFiles { certificate, key };
    setup.config.identities.push(files.into());
    setup
}

/// Case 55. After a rotation of the cluster CA, a new lease trusts only the new CA. Requests that run on an old
/// lease continue.
#[tokio::test]
async fn new_cluster_ca_applies_to_new_leases_only() {
    let world = World::new();
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let proxy = with_marker(&world, &upstream).start();
    let http2 = proxy.client().http2().await;
    let mut watch = http2
        .open("https://kube.test/endless")
        .await
        .unwrap()
        .into_body();
    assert_eq!(watch.data().await.unwrap().unwrap(), "event\n");
    let mut http1 = proxy.client().http1().await;
    assert_eq!(http1.get(HOST, "/version", "").await.status, 200);

    let new_ca = Ca::new("new cluster");
    world.dir.write("cluster-ca.crt", new_ca.pem());
    reload_with(&proxy, &world, &world.public_ca.server(&["marker.test"])).await;

    // The apiserver still presents a certificate of the old CA, so no new request may reach it, neither on the
    // leases of old clients nor on those of new clients.
    assert_eq!(
        http2.get("https://kube.test/version").await.unwrap().status,
        502
    );
    assert_eq!(http1.get(HOST, "/version", "").await.status, 502);
    let mut new_client = proxy.client().http1().await;
    assert_eq!(new_client.get(HOST, "/version", "").await.status, 502);
    assert_eq!(upstream.open_responses(), 1, "the watch is still open");
    assert_eq!(upstream.connections()[0].end, None);

    upstream.present(&new_ca.server(&[APISERVER, "127.0.0.1"]));
    let served = async { while new_client.get(HOST, "/version", "").await.status != 200 {} };
    within("the apiserver with the new certificate", served).await;
    assert_eq!(
        http2.get("https://kube.test/version").await.unwrap().status,
        200
    );
    assert_eq!(upstream.open_responses(), 1, "the watch is still open");
}

/// Case 55. While the CA file cannot be read, the proxy trusts the CAs that it read last: not none, and not all.
#[tokio::test]
async fn unreadable_cluster_ca_keeps_the_last_good_one() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.reload = Duration::from_millis(20))
        .start();
    let ca = world.dir.path().join("cluster-ca.crt");
    for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA", "hello"] {
        fs::write(&ca, text).unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
        // An upgrade uses a new upstream connection, so the proxy verifies the apiserver again.
        let mut client = proxy.client().http1().await;
        client.send(crate::upgrades::SPDY).await;
        assert_eq!(client.response().await.status, 200, "{text:?}");
    }
    let ends = upstream
        .connections()
        .iter()
        .filter(|one| matches!(one.end, Some(ConnectionEnd::Handshake(_))))
        .count();
    assert_eq!(ends, 0, "every handshake succeeded");
}

/// A reload without changes closes no upstream connection.
#[tokio::test]
async fn reload_without_a_change_keeps_the_leases() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = with_marker(&world, &upstream).start();
    let mut http1 = proxy.client().http1().await;
    http1.get(HOST, "/version", "").await;
    reload_with(&proxy, &world, &world.public_ca.server(&["marker.test"])).await;
    http1.get(HOST, "/version", "").await;
    assert_eq!(upstream.connections().len(), 1);
}

/// Case 55. A tunnel stays open when its certificate and its CA are replaced.
#[tokio::test]
async fn tunnel_stays_open_during_a_rotation() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = with_marker(&world, &apiserver.upstream).start();
    let (mut client, mut server) = tunnels::open(&proxy, &apiserver).await;
    identity(&world).write(&world.dir, "public");
    world
        .dir
        .write("cluster-ca.crt", Ca::new("new cluster").pem());
    reload_with(&proxy, &world, &world.public_ca.server(&["marker.test"])).await;
    client.send("still").await;
    assert_eq!(server.read(5).await, b"still");
    server.send("here").await;
    assert_eq!(client.take(4).await.unwrap(), "here");
}

/// A new host name has no address before its first lookup. Requests during the lookup must not fail.
#[tokio::test]
async fn new_apiserver_name_is_resolved_before_use() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let setup = world.proxy(upstream.address());
    let by_address = setup.config.clone();
    let mut by_name = by_address.clone();
    by_name.clusters[0].upstream_host = "localhost".into();
    let reloads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reloads);
    let proxy = setup.start_from(Box::new(move || {
        let named = count.load(Ordering::Relaxed) % 2 == 1;
        Ok(if named { &by_name } else { &by_address }.clone())
    }));
    let client = proxy.client().http2().await;
    for _ in 0..20 {
        reloads.fetch_add(1, Ordering::Relaxed);
        proxy.reload();
        for _ in 0..30 {
            let response = client.get("https://kube.test/").await.unwrap();
            assert_eq!(response.text(), "ok");
        }
    }
}
