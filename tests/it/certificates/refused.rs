//! Certificates that do not count: each is ignored beside a token, and without one the client learns why.

use std::time::{Duration, SystemTime};

use kube_tls_proxy::config::{ClientCertificatesConfig, IdentityFiles, NamingConfig};
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use standin::{
    pki::{Ca, Identity},
    upstream::Upstream,
};

use super::{Authorities, apiserver, assert_never_mixed, client, get, is_front_proxy};
use crate::{
    admin,
    proxy::{HOST, Proxy, World},
    responses::{BOTH, Protocol},
};

/// Asserts that the proxy refuses this certificate with this status and reason, and that it changes nothing for a
/// client with a token.
async fn assert_refused(
    proxy: &Proxy,
    upstream: &Upstream,
    make: impl Fn() -> Identity,
    code: u16,
    reason: &str,
) {
    for protocol in BOTH {
        let before = upstream.requests().len();
        let client = client(proxy, make());
        let refused = get(&client, protocol, HOST, &[]).await;
        let status = if code == 403 {
            "Forbidden"
        } else {
            "Unauthorized"
        };
        let message = refused.assert_status(code, status);
        assert!(message.contains(reason), "{reason}: {message}");
        assert_eq!(upstream.requests().len(), before, "{reason}");

        let token = [("authorization", "Bearer good")];
        let served = get(&client, protocol, HOST, &token).await;
        assert_eq!(served.code, 200, "{reason}: {}", served.text());
        let requests = upstream.requests();
        assert_eq!(requests.len(), before + 1, "{reason}");
        let request = &requests[before];
        assert_eq!(request.lines("authorization"), ["Bearer good"]);
        assert!(!is_front_proxy(upstream, request), "{reason}");
    }
}

#[tokio::test]
async fn certificate_that_does_not_verify_is_401_without_token() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let leaf = || cas.users.leaf(&[]).client_auth().common_name("jane");
    let (namesake, other) = (Ca::new("users"), Ca::new("other"));
    let under = cas.users.intermediate("intermediate");
    let untrusted = "is not signed by the CA that this proxy trusts for clients";
    let masters = || other.client("kubernetes-admin", &["system:masters"]);
    assert_refused(&proxy, &upstream, masters, 401, untrusted).await;
    let same_name = || namesake.client("jane", &[]);
    assert_refused(&proxy, &upstream, same_name, 401, untrusted).await;
    let expired = || leaf().expired().build();
    assert_refused(&proxy, &upstream, expired, 401, "certificate has expired").await;
    let early = || leaf().not_yet_valid().build();
    assert_refused(&proxy, &upstream, early, 401, "is not valid yet").await;
    let server = || leaf().usages(&[ServerAuth]).build();
    assert_refused(&proxy, &upstream, server, 401, "is not for clients").await;
    let incomplete = || under.client("jane", &[]).without_intermediates();
    assert_refused(&proxy, &upstream, incomplete, 401, untrusted).await;
    assert_never_mixed(&upstream);

    for (name, identity) in [
        (
            "both usages",
            leaf().usages(&[ServerAuth, ClientAuth]).build(),
        ),
        ("no usage", leaf().usages(&[]).build()),
        ("with its issuer", under.client("jane", &[])),
        ("RSA", leaf().rsa().build()),
    ] {
        let response = get(&client(&proxy, identity), Protocol::Http2, HOST, &[]).await;
        assert_eq!(response.code, 200, "{name}: {}", response.text());
    }
}

/// Case 35. A parser on the way could read another name.
#[tokio::test]
async fn certificate_with_unsafe_name_is_401_without_token() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let reason = "is empty, begins or ends with a blank, or has a control character";
    for name in [
        "admin ",
        " admin",
        "\u{a0}admin",
        "admin\t",
        "a\nb",
        "a\r\nX-Remote-User: b",
        "a\0",
        "a\u{7f}",
        "\u{85}a",
        " ",
        "",
    ] {
        let user = || cas.users.client(name, &["developers"]);
        assert_refused(&proxy, &upstream, user, 401, reason).await;
        let group = || cas.users.client("jane", &[name]);
        assert_refused(&proxy, &upstream, group, 401, reason).await;
    }
    let id = |id: &'static str| {
        let leaf = cas.users.leaf(&[]).client_auth().common_name("jane");
        leaf.attribute(&[1, 3, 6, 1, 4, 1, 57683, 2], id).build()
    };
    assert_refused(&proxy, &upstream, || id("7 "), 401, reason).await;
    // These are no blanks at an end.
    for name in [
        "jane doe",
        "jane@example.com",
        "émile",
        "a:b",
        "CN=x,O=y",
        "%41",
    ] {
        let user = cas.users.client(name, &[name]);
        let response = get(&client(&proxy, user), Protocol::Http1, HOST, &[]).await;
        assert_eq!(response.code, 200, "{name}: {}", response.text());
        let request = upstream.requests().pop().unwrap();
        assert_eq!(request.lines("x-remote-user"), [name]);
        assert_eq!(request.lines("x-remote-group"), [name]);
    }
    assert_never_mixed(&upstream);
}

/// Case 35. A CA that issues such a certificate rules the cluster.
#[tokio::test]
async fn names_of_system_are_403_unless_allowed() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let setup = cas.proxy(&world, &upstream);
    let mut allowing = setup.config.clone();
    let proxy = setup.start();
    for (user, groups) in [
        ("kubernetes-admin", &["system:masters"][..]),
        ("jane", &["developers", "system:nodes"]),
        ("system:kube-scheduler", &[]),
    ] {
        let make = || cas.users.client(user, groups);
        assert_refused(&proxy, &upstream, make, 403, "begins with `system:`").await;
    }
    let section = allowing.clusters[0].client_certificates.as_mut().unwrap();
    section.allow_system = true;
    let mut setup = cas.proxy(&world, &upstream);
    setup.config = allowing;
    let proxy = setup.start();
    let admin = cas.users.client("kubernetes-admin", &["system:masters"]);
    assert_eq!(
        get(&client(&proxy, admin), Protocol::Http2, HOST, &[])
            .await
            .code,
        200
    );
    let request = upstream.requests().pop().unwrap();
    assert_eq!(request.lines("x-remote-group"), ["system:masters"]);
}

/// A section with a revocation list of these certificates.
fn with_list(world: &World, cas: &Authorities, list: &str) -> ClientCertificatesConfig {
    ClientCertificatesConfig {
        crl: Some(world.dir.write("users.crl", list)),
        ..cas.section(world)
    }
}

fn in_a_day() -> SystemTime {
    SystemTime::now() + Duration::from_secs(24 * 60 * 60)
}

#[tokio::test]
async fn revoked_certificate_is_401_without_token() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let section = with_list(
        &world,
        &cas,
        &cas.users.revocation_list(&[7, 9], in_a_day()),
    );
    let proxy = cas
        .proxy(&world, &upstream)
        .cluster(|cluster| cluster.client_certificates = Some(section))
        .admin()
        .start();
    let numbered = |number| {
        let leaf = cas.users.leaf(&[]).client_auth().common_name("jane");
        leaf.serial(number).build()
    };
    assert_refused(&proxy, &upstream, || numbered(7), 401, "is revoked").await;
    let good = client(&proxy, numbered(8));
    assert_eq!(get(&good, Protocol::Http2, HOST, &[]).await.code, 200);
    // Nothing is known about certificates of an issuer without a list.
    let under = cas.users.intermediate("intermediate");
    let unknown = || under.client("jane", &[]);
    let reason = "no revocation list is from its issuer";
    assert_refused(&proxy, &upstream, unknown, 401, reason).await;
    assert_never_mixed(&upstream);
}

#[tokio::test]
async fn certificate_below_a_revoked_issuer_is_401() {
    for is_revoked in [false, true] {
        let (world, cas) = (World::new(), Authorities::new());
        let upstream = apiserver(&world).start().await;
        let under = cas.users.numbered_intermediate("intermediate", 9);
        let revoked: &[u64] = if is_revoked { &[9] } else { &[7] };
        let lists = [
            cas.users.revocation_list(revoked, in_a_day()),
            under.revocation_list(&[], in_a_day()),
        ];
        let section = with_list(&world, &cas, &lists.concat());
        let proxy = cas
            .proxy(&world, &upstream)
            .cluster(|cluster| cluster.client_certificates = Some(section))
            .start();
        if is_revoked {
            let jane = || under.client("jane", &[]);
            assert_refused(&proxy, &upstream, jane, 401, "is revoked").await;
        } else {
            let jane = client(&proxy, under.client("jane", &[]));
            assert_eq!(get(&jane, Protocol::Http2, HOST, &[]).await.code, 200);
        }
    }
}

/// A list of another CA with the same name says nothing, either.
#[tokio::test]
async fn list_that_is_old_or_of_another_ca_refuses_certificates() {
    for (is_old, reason) in [
        (true, "the revocation list is out of date"),
        (false, "no revocation list is from its issuer"),
    ] {
        let (world, cas) = (World::new(), Authorities::new());
        let upstream = apiserver(&world).start().await;
        let list = if is_old {
            let past = SystemTime::now() - Duration::from_secs(60);
            cas.users.revocation_list(&[], past)
        } else {
            Ca::new("users").revocation_list(&[], in_a_day())
        };
        let section = with_list(&world, &cas, &list);
        let proxy = cas
            .proxy(&world, &upstream)
            .cluster(|cluster| cluster.client_certificates = Some(section))
            .admin()
            .start();
        assert_refused(&proxy, &upstream, || cas.jane(), 401, reason).await;
        let verbose = admin::get(proxy.admin(), "/readyz?verbose").await;
        assert_eq!(verbose.status, 200, "{}", verbose.text());
        let warns = verbose
            .text()
            .contains("the revocation list is out of date since");
        assert_eq!(warns, is_old, "{}", verbose.text());
    }
}

/// Only the users of certificates have to wait for a new one.
#[tokio::test]
async fn expired_front_proxy_certificate_is_503_for_its_users_only() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let mut section = cas.section(&world);
    let expired = cas.front_proxies.leaf(&[]).client_auth().expired().build();
    let (certificate, key) = expired.write(&world.dir, "expired");
    section.naming = NamingConfig::FrontProxy(IdentityFiles { certificate, key });
    let proxy = cas
        .proxy(&world, &upstream)
        .cluster(|cluster| cluster.client_certificates = Some(section))
        .admin()
        .start();
    for protocol in BOTH {
        let refused = get(&client(&proxy, cas.jane()), protocol, HOST, &[]).await;
        let message = refused.assert_status(503, "ServiceUnavailable");
        assert!(message.contains("its operator must renew it"), "{message}");
        assert_eq!(refused.lines("retry-after"), [""; 0]);
        let token = [("authorization", "Bearer good")];
        assert_eq!(get(&proxy.client(), protocol, HOST, &token).await.code, 200);
        assert_eq!(proxy.get(protocol, "/livez").await.code, 200);
    }
    let verbose = admin::get(proxy.admin(), "/readyz?verbose").await;
    assert!(
        verbose.text().contains("the front-proxy certificate"),
        "{}",
        verbose.text()
    );
    assert_never_mixed(&upstream);
}

/// The proxy has verified the user, so the apiserver does not believe the proxy.
#[tokio::test]
async fn apiserver_that_refuses_front_proxy_is_named() {
    let (world, cas) = (World::new(), Authorities::new());
    let refuse = async |_| {
        let mut response = http::Response::new(standin::upstream::full("no"));
        *response.status_mut() = http::StatusCode::UNAUTHORIZED;
        response
    };
    let upstream = world.apiserver().http(refuse).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    for protocol in BOTH {
        let response = get(&client(&proxy, cas.jane()), protocol, HOST, &[]).await;
        assert_eq!(response.code, 401);
        let [warning] = response.lines("warning")[..] else {
            panic!("{response:?}");
        };
        assert!(
            warning.contains("does not accept the front-proxy certificate"),
            "{warning}"
        );
    }
}
