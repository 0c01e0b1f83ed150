//! Certificates, keys and CAs change under load: what is new gets the new ones, what runs lives on, and a
//! bad change changes nothing.

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

/// A mounted Secret: files are links through `..data` into a directory that is swapped as a whole.
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

    /// Makes all files new in one rename, as the kubelet does.
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

/// The proxy with certificate, key and CA from the files of a mount.
fn mounted<'a>(world: &'a World, upstream: &Upstream) -> Setup<'a> {
    let mut setup = world.proxy(upstream.address());
    let file = |name: &str| world.dir.path().join(name);
    setup.config.identities[0].certificate = file("tls.crt");
    setup.config.identities[0].key = file("tls.key");
    setup.cluster(|cluster| {
        cluster.trust = kube_tls_proxy::config::TrustSource::File(file("ca.crt"))
    })
}

fn identity(world: &World) -> Identity {
    world.public_ca.server(&[HOST, "127.0.0.1"])
}

/// A client without sessions to resume, because a resumed one shows the certificate it began with.
fn stranger(proxy: &Proxy) -> Client {
    proxy.client().alpn(&[])
}

async fn presented(proxy: &Proxy) -> CertificateDer<'static> {
    stranger(proxy)
        .connect()
        .await
        .unwrap()
        .server_certificates()[0]
        .clone()
}

/// Waits until new clients are shown this certificate.
async fn wait_for_certificate(proxy: &Proxy, new: &Identity) {
    let shown = async { while presented(proxy).await != new.chain[0] {} };
    within("the new certificate", shown).await;
}

/// Reloads, and waits until that is done: a second certificate that changes with it tells.
async fn reload_with(proxy: &Proxy, world: &World, marker: &Identity) {
    marker.write(&world.dir, "marker");
    proxy.reload();
    let done = async {
        while stranger(proxy)
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

/// Case 55. New connections get the new certificate; a watch and a tunnel that run do not notice.
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
        "nothing about the apiserver has changed"
    );
}

/// Case 55. Without being told, files are read again every `reload`.
#[tokio::test]
async fn a_swapped_certificate_is_noticed_in_time() {
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

/// Case 55. Files that are missing, empty, cut off or do not belong together leave everything as it was,
/// and the next good ones are taken.
#[tokio::test]
async fn a_bad_change_keeps_the_last_good_state() {
    let world = World::new();
    let (old, new) = (identity(&world), identity(&world));
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy_as(upstream.address(), &old)
        .timeouts(|timeouts| timeouts.reload = Duration::from_millis(20))
        .start();
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let expired = world.public_ca.leaf(&[HOST, "127.0.0.1"]).expired().build();
    for (certificate, key, what) in [
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
        // Many turns of the poll.
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(presented(&proxy).await == old.chain[0], "{what}");
    }
    fs::remove_file(world.dir.path().join("public.crt")).unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut client = stranger(&proxy).http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.text(), "ok");

    new.write(&world.dir, "public");
    wait_for_certificate(&proxy, &new).await;
}

/// A proxy with a second certificate, which tells when a reload is done.
fn with_marker<'a>(world: &'a World, upstream: &Upstream) -> Setup<'a> {
    let mut setup = world.proxy(upstream.address());
    let (certificate, key) = world
        .public_ca
        .server(&["marker.test"])
        .write(&world.dir, "marker");
    let files = kube_tls_proxy::config::IdentityFiles { certificate, key };
    setup.config.identities.push(files);
    setup
}

/// Case 55. After a rotation of the cluster's CA a new lease trusts the new one alone, and what runs on an
/// old one goes on.
#[tokio::test]
async fn a_new_cluster_ca_is_for_new_leases() {
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

    // The apiserver still presents a certificate of the old CA: nothing new may go there, neither on the
    // leases of old clients nor on those of new ones.
    assert_eq!(
        http2.get("https://kube.test/version").await.unwrap().status,
        503
    );
    assert_eq!(http1.get(HOST, "/version", "").await.status, 503);
    let mut stranger = proxy.client().http1().await;
    assert_eq!(stranger.get(HOST, "/version", "").await.status, 503);
    assert_eq!(upstream.open_responses(), 1, "the watch is still open");
    assert_eq!(upstream.connections()[0].end, None);

    upstream.present(&new_ca.server(&[APISERVER, "127.0.0.1"]));
    let served = async { while stranger.get(HOST, "/version", "").await.status != 200 {} };
    within("the apiserver with the new certificate", served).await;
    assert_eq!(
        http2.get("https://kube.test/version").await.unwrap().status,
        200
    );
    assert_eq!(upstream.open_responses(), 1, "the watch is still open");
}

/// Case 55. A CA file that cannot be read trusts the CAs it held before, not none and not all.
#[tokio::test]
async fn an_unreadable_cluster_ca_keeps_the_last_good_one() {
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
        // A connection of its own each, so that the apiserver is verified again.
        let mut client = proxy.client().http1().await;
        client.send(crate::upgrades::SPDY).await;
        assert_eq!(client.response().await.status, 200, "{text:?}");
    }
    let ends = upstream
        .connections()
        .iter()
        .filter(|one| matches!(one.end, Some(ConnectionEnd::Handshake(_))))
        .count();
    assert_eq!(ends, 0, "every handshake was good");
}

/// A reload that changes nothing costs no client its upstream connection.
#[tokio::test]
async fn a_reload_without_a_change_keeps_the_leases() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = with_marker(&world, &upstream).start();
    let mut http1 = proxy.client().http1().await;
    http1.get(HOST, "/version", "").await;
    reload_with(&proxy, &world, &world.public_ca.server(&["marker.test"])).await;
    http1.get(HOST, "/version", "").await;
    assert_eq!(upstream.connections().len(), 1);
}

/// Case 55. A tunnel outlives the certificate and the CA it began under.
#[tokio::test]
async fn a_tunnel_outlives_a_rotation() {
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

/// A name has no address until it was looked up, which must not cost the requests of that moment.
#[tokio::test]
async fn a_new_name_of_the_apiserver_is_looked_up_before_it_is_used() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let setup = world.proxy(upstream.address());
    let by_address = setup.config.clone();
    let mut by_name = by_address.clone();
    by_name.clusters[0].upstream_host = "localhost".into();
    let turn = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&turn);
    let proxy = setup.start_from(Box::new(move || {
        let named = now.load(Ordering::Relaxed) % 2 == 1;
        Ok(if named { &by_name } else { &by_address }.clone())
    }));
    let client = proxy.client().http2().await;
    for _ in 0..20 {
        turn.fetch_add(1, Ordering::Relaxed);
        proxy.reload();
        for _ in 0..30 {
            let answer = client.get("https://kube.test/").await.unwrap();
            assert_eq!(answer.text(), "ok");
        }
    }
}
