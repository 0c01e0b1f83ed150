//! The end of a certificate: it expires, is revoked, or its CA is replaced while connections are open.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use kube_tls_proxy::{config::ClientCertificatesConfig, drain::Phase};
use rustls::version;
use standin::{
    client::{Client, Http1, Http2},
    pki::{Ca, Identity},
    upstream::Upstream,
    within,
};

use super::{Authorities, apiserver, client, get};
use crate::{
    proxy::{HOST, Proxy, World, data, watch_or_ok},
    responses::{BOTH, Protocol},
    upgrades::{SPDY, echo},
};

/// Waits until a certificate that is valid until then has expired.
const LIFETIME: Duration = Duration::from_secs(3);

fn short_lived(cas: &Authorities) -> Identity {
    let leaf = cas.users.leaf(&[]).client_auth().common_name("jane");
    leaf.valid_until(SystemTime::now() + LIFETIME).build()
}

/// Asserts that this client gets a 401 with this reason.
async fn assert_refused(client: &Client, reason: &str) {
    for protocol in BOTH {
        let refused = get(client, protocol, HOST, &[]).await;
        let message = refused.assert_status(401, "Unauthorized");
        assert!(message.contains(reason), "{message}");
        // kubectl does not print the message of a 401.
        let warnings = refused.lines("warning");
        assert!(warnings[0].contains(reason), "{warnings:?}");
    }
}

/// Opens a tunnel as the owner of the certificate.
pub(super) async fn tunnel(client: &Client) -> Http1<standin::client::TlsConnection> {
    let mut tunnel = client.http1().await;
    tunnel
        .send(SPDY.replace("Authorization: Bearer t\r\n", ""))
        .await;
    assert_eq!(tunnel.head().await.unwrap().status, 101);
    tunnel
}

/// The end of a connection that the proxy has closed, in whatever way.
pub(super) async fn assert_closed(mut tunnel: Http1<standin::client::TlsConnection>) {
    let _reason = within("the end of the tunnel", tunnel.end()).await;
}

/// Case 33. The watch, the tunnel and their connections end, and a new connection is refused.
#[tokio::test]
async fn expiry_ends_streams_and_tunnels_of_the_certificate() {
    let (world, cas) = (World::new(), Authorities::new());
    let watched = world.apiserver().http(watch_or_ok).start().await;
    let tunnelled = world.apiserver().http(echo).start().await;
    let identity = world.public_ca.server(&[HOST, "127.0.0.1", "tunnel.test"]);
    let section = cas.section(&world);
    let proxy = world
        .proxy_as(watched.address(), &identity)
        .cluster(|cluster| cluster.client_certificates = Some(section))
        .second_cluster("tunnels", "tunnel.test", tunnelled.address())
        .start();
    let (jane, joe) = (
        client(&proxy, short_lived(&cas)),
        client(&proxy, cas.jane()),
    );
    let http2 = jane.http2().await;
    let mut watch = http2.open("https://kube.test/watch").await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "first");
    let tunnel_client = jane.clone().sni("tunnel.test");
    let mut tunnel = tunnel_client.http1().await;
    let request = SPDY.replace("kube.test", "tunnel.test");
    tunnel
        .send(request.replace("Authorization: Bearer t\r\n", ""))
        .await;
    assert_eq!(tunnel.head().await.unwrap().status, 101);
    let others = joe.http2().await;
    let mut other = others.open("https://kube.test/watch").await.unwrap();
    assert_eq!(data(&mut other).await.unwrap(), "first");

    let ended = within("the end of the watch", watch.body_mut().data()).await;
    assert!(ended.is_none_or(|data| data.is_err()), "no more data comes");
    assert_closed(tunnel).await;
    assert_refused(&jane, "has expired").await;
    assert_eq!(
        others.get("https://kube.test/ok").await.unwrap().text(),
        "ok"
    );
}

#[tokio::test]
async fn expiry_ends_streams_during_the_drain() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let mut proxy = cas.proxy(&world, &upstream).long_drain().start();
    let jane = client(&proxy, short_lived(&cas));
    let (_http2, mut open) = watch(&jane).await;
    proxy.begin_shutdown();
    proxy.wait_for_phase(Phase::Draining).await;
    let ended = within("the end of the stream", open.body_mut().data()).await;
    assert!(ended.is_none_or(|data| data.is_err()), "no more data comes");
}

/// A proxy with a revocation list without entries.
fn revoking(world: &World, cas: &Authorities, upstream: &Upstream) -> Proxy {
    let list = cas.users.revocation_list(&[], in_a_day());
    let section = ClientCertificatesConfig {
        crl: Some(world.dir.write("users.crl", list)),
        ..cas.section(world)
    };
    cas.proxy(world, upstream)
        .cluster(|cluster| cluster.client_certificates = Some(section))
        .start()
}

pub(super) fn in_a_day() -> SystemTime {
    SystemTime::now() + Duration::from_secs(24 * 60 * 60)
}

/// Opens a watch as the owner of this certificate.
pub(super) async fn watch(client: &Client) -> (Http2, http::Response<h2::RecvStream>) {
    let http2 = client.http2().await;
    let mut watch = http2.open("https://kube.test/watch").await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "first");
    (http2, watch)
}

#[tokio::test]
async fn revocation_ends_streams_of_that_certificate_only() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = revoking(&world, &cas, &upstream);
    let numbered = |number, name| {
        let leaf = cas.users.leaf(&[]).client_auth().common_name(name);
        client(&proxy, leaf.serial(number).build())
    };
    let (jane, joe) = (numbered(7, "jane"), numbered(8, "joe"));
    let (_of_jane, mut revoked) = watch(&jane).await;
    let mut over_http1 = jane.clone().alpn(&["http/1.1"]).http1().await;
    let request = format!("GET /watch HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    over_http1.send(request).await;
    assert_eq!(over_http1.head().await.unwrap().status, 200);
    let (of_joe, _kept) = watch(&joe).await;
    let (of_token, _also_kept) = watch(&proxy.client()).await;

    world
        .dir
        .write("users.crl", cas.users.revocation_list(&[7], in_a_day()));
    proxy.reload();
    let ended = within("the end of the watch", revoked.body_mut().data()).await;
    assert!(ended.is_none_or(|data| data.is_err()), "no more data comes");
    assert_closed(over_http1).await;
    assert_refused(&jane, "is revoked").await;
    for kept in [of_joe, of_token] {
        assert_eq!(kept.get("https://kube.test/ok").await.unwrap().text(), "ok");
    }
    let requests = upstream.requests();
    let of_joe = requests
        .iter()
        .filter(|request| request.lines("x-remote-user") == ["joe"]);
    let connections: Vec<_> = of_joe.map(|request| request.connection).collect();
    let [watch, after_reload] = connections[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(watch, after_reload, "the lease stays");
}

#[tokio::test]
async fn revocation_ends_tunnel_of_that_certificate() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(echo).start().await;
    let proxy = revoking(&world, &cas, &upstream);
    let leaf = cas.users.leaf(&[]).client_auth().common_name("jane");
    let open = tunnel(&client(&proxy, leaf.serial(7).build())).await;
    world
        .dir
        .write("users.crl", cas.users.revocation_list(&[7], in_a_day()));
    proxy.reload();
    assert_closed(open).await;
}

/// Case 34. No session is resumed, so that each connection proves that it has the key, and another CA counts at once.
#[tokio::test]
async fn certificate_is_verified_again_after_its_ca_was_replaced() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let jane = client(&proxy, cas.jane());
    for version in [&version::TLS12, &version::TLS13] {
        let jane = jane.clone().alpn(&["h2"]).tls_versions(&[version]);
        for _ in 0..2 {
            let tls = jane.connect().await.unwrap();
            let http2 = Http2::new(tls).await;
            assert_eq!(
                http2.get("https://kube.test/ok").await.unwrap().text(),
                "ok"
            );
            assert_eq!(
                upstream.next_request().await.lines("x-remote-user"),
                ["jane"]
            );
        }
        assert!(!jane.connect().await.unwrap().is_resumed(), "{version:?}");
    }
    let (_http2, mut open) = watch(&jane).await;
    let next = Ca::new("users");
    world.dir.write("users.crt", next.pem());
    proxy.reload();
    let ended = within("the end of the watch", open.body_mut().data()).await;
    assert!(ended.is_none_or(|data| data.is_err()), "no more data comes");
    assert_refused(&jane, "is not signed by the CA").await;
    let joe = client(&proxy, next.client("joe", &[]));
    assert_eq!(get(&joe, Protocol::Http2, HOST, &[]).await.code, 200);
}

/// Leases with the old certificate are not used any more; those of tokens stay.
#[tokio::test]
async fn renewed_front_proxy_certificate_is_used_at_once() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let jane = client(&proxy, cas.jane()).http2().await;
    let token = proxy.client().http2().await;
    let ask = async |client: &Http2, token: Option<&str>| {
        let mut request = http::Request::get("https://kube.test/api");
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let request = request.body(bytes::Bytes::new()).unwrap();
        assert_eq!(client.request(request).await.unwrap().status, 200);
        upstream.next_request().await.connection
    };
    let before = (
        ask(&jane, None).await,
        ask(&token, Some("Bearer good")).await,
    );
    let presented = |connection: usize| {
        upstream.connections()[connection]
            .client_certificates
            .clone()
    };
    let old = presented(before.0);
    cas.front_proxies
        .client("front-proxy", &[])
        .write(&world.dir, "front-proxy");
    proxy.reload();
    let renewed = async {
        loop {
            let connection = ask(&jane, None).await;
            if presented(connection) != old {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let after = within("the new certificate", renewed).await;
    assert_ne!(before.0, after);
    assert_eq!(ask(&token, Some("Bearer good")).await, before.1);
}

/// An invalid list does not open what the old one closes.
#[tokio::test]
async fn invalid_revocation_list_keeps_the_previous_one() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let list = cas.users.revocation_list(&[7], in_a_day());
    let proxy = revoking(&world, &cas, &upstream);
    let file = world.dir.path().join("users.crl");
    fs::write(&file, list).unwrap();
    proxy.reload();
    let leaf = cas.users.leaf(&[]).client_auth().common_name("jane");
    let jane = Arc::new(client(&proxy, leaf.serial(7).build()));
    let refused = async {
        while get(&jane, Protocol::Http1, HOST, &[]).await.code != 401 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the list to be in use", refused).await;
    for text in [
        "",
        "no list",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    ] {
        fs::write(&file, text).unwrap();
        proxy.fail_to_reload().await;
        assert_refused(&jane, "is revoked").await;
    }
}
