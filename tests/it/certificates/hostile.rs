//! Clients with a certificate that try to be another user, or to use what is not theirs.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use rcgen::DnValue;
use standin::{
    client::{Client, Http1},
    pki::{Ca, Identity},
    within,
};

use super::{
    Authorities, apiserver, assert_never_mixed, client, get, is_front_proxy, two_clusters,
};
use crate::{
    access::with_rules,
    proxy::{HOST, World},
    responses::{BOTH, Protocol},
    upgrades::WEBSOCKET,
};

/// An apiserver that does not believe the proxy would try the token instead, which no rule has judged.
#[tokio::test]
async fn token_in_subprotocol_never_travels_with_certificate() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(crate::upgrades::echo).start().await;
    let setup = cas.proxy(&world, &upstream);
    let access =
        "  - deny: {credentials: [serviceAccount]}\n  - allow: {credentials: [certificate]}";
    let proxy = with_rules(setup, access).start();
    let account = format!(
        "e30.{}.c2ln",
        URL_SAFE_NO_PAD.encode(r#"{"kubernetes.io":{}}"#)
    );
    let token = format!(
        "base64url.bearer.authorization.k8s.io.{}",
        URL_SAFE_NO_PAD.encode(account)
    );
    let channel = "v5.channel.k8s.io";
    for protocols in [
        format!("{token}, {channel}"),
        format!("{channel},{token}"),
        format!("{channel},\u{a0}{token}"),
        format!("{token}\r\nSec-WebSocket-Protocol: {channel}"),
        format!("{channel}\r\nSec-WebSocket-Protocol: ,{token},"),
        format!("{token}, {token}, {channel}"),
    ] {
        let mut jane = client(&proxy, cas.jane()).http1().await;
        jane.send(WEBSOCKET.replace(channel, &protocols)).await;
        assert_eq!(jane.head().await.unwrap().status, 101, "{protocols}");
        let request = upstream.next_request().await;
        assert_eq!(request.lines("x-remote-user"), ["jane"]);
        assert_eq!(request.lines("authorization"), [""; 0]);
        let lines = request.lines("sec-websocket-protocol").join(",");
        assert_eq!(lines.trim_matches([',', ' ']), channel, "{protocols}");
    }
    assert_never_mixed(&upstream);
}

fn utf16(text: &str) -> DnValue {
    DnValue::BmpString(text.try_into().unwrap())
}

fn teletex(text: &str) -> DnValue {
    DnValue::TeletexString(text.try_into().unwrap())
}

/// Names in encodings, numbers and places that two readers could read differently.
#[tokio::test]
async fn odd_subjects_name_no_user() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let leaf = || cas.users.leaf(&[]).client_auth();
    let (name, group, id) = (
        &[2, 5, 4, 3][..],
        &[2, 5, 4, 10][..],
        &[1, 3, 6, 1, 4, 1, 57683, 2][..],
    );
    let below = cas.users.intermediate("admin");
    let rows: Vec<(&str, u16, Identity)> = vec![
        (
            "no name",
            401,
            leaf().nameless().organizations(&["developers"]).build(),
        ),
        (
            "the name as an organizational unit",
            401,
            leaf().nameless().attribute(&[2, 5, 4, 11], "jane").build(),
        ),
        (
            "UTF-16 name",
            401,
            leaf().attribute(name, utf16("jane")).build(),
        ),
        (
            "UTF-16 group",
            401,
            leaf()
                .common_name("jane")
                .attribute(group, utf16("developers"))
                .build(),
        ),
        (
            "UTF-16 group of system",
            401,
            leaf()
                .common_name("jane")
                .attribute(group, utf16("system:masters"))
                .build(),
        ),
        (
            "Teletex name",
            401,
            leaf().attribute(name, teletex("jane")).build(),
        ),
        (
            "second name of system",
            403,
            leaf()
                .common_name("jane")
                .attribute(name, "system:admin")
                .build(),
        ),
        (
            "second name is empty",
            401,
            leaf().common_name("jane").attribute(name, "").build(),
        ),
        (
            "second name ends in a blank",
            401,
            leaf().common_name("jane").attribute(name, "jane ").build(),
        ),
        (
            "empty group",
            401,
            leaf()
                .common_name("jane")
                .organizations(&["developers", ""])
                .build(),
        ),
        (
            "second group of system",
            403,
            leaf()
                .common_name("jane")
                .organizations(&["a", "system:masters"])
                .build(),
        ),
        (
            "nothing after system:",
            403,
            leaf().common_name("system:").build(),
        ),
        (
            "empty id",
            401,
            leaf().common_name("jane").attribute(id, "").build(),
        ),
        (
            "line break in the id",
            401,
            leaf()
                .common_name("jane")
                .attribute(id, "1\r\nX-Remote-Group: system:masters")
                .build(),
        ),
        (
            "intermediate without its root",
            401,
            below.client("jane", &[]).without_intermediates(),
        ),
        ("of its own", 401, Identity::self_signed(&["jane"])),
    ];
    for (row, code, identity) in rows {
        let client = client(&proxy, identity);
        for protocol in BOTH {
            let refused = get(&client, protocol, HOST, &[]).await;
            assert_eq!(refused.code, code, "{row}: {}", refused.text());
        }
        assert_eq!(upstream.requests().len(), 0, "{row}");
    }
    // Of two names the last one counts, as for kube-apiserver.
    let two = leaf()
        .common_name("system:admin")
        .attribute(name, "jane")
        .build();
    assert_eq!(
        get(&client(&proxy, two), Protocol::Http1, HOST, &[])
            .await
            .code,
        200
    );
    assert_eq!(
        upstream.next_request().await.lines("x-remote-user"),
        ["jane"]
    );
}

/// The connection would hold it to its end. No key is proved, so every client could send one.
#[tokio::test]
async fn chain_that_is_too_long_ends_the_handshake() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let mut issuer = cas.users.intermediate("1");
    for name in ["2", "3", "4"] {
        issuer = issuer.intermediate(name);
    }
    let longest = issuer.client("jane", &[]);
    assert_eq!(
        get(&client(&proxy, longest), Protocol::Http2, HOST, &[])
            .await
            .code,
        200
    );
    let long = issuer.intermediate("5").client("jane", &[]);
    let names: Vec<_> = (0..500).map(|at| format!("{at:0>30}.test")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let large = cas
        .users
        .leaf(&names)
        .client_auth()
        .common_name("jane")
        .build();
    for identity in [long, large] {
        let tls = client(&proxy, identity).connect().await;
        // With TLS 1.3 the client has finished before the proxy reads the chain.
        let is_refused = match tls {
            Err(_) => true,
            Ok(mut tls) => within("the end of the connection", tls.record())
                .await
                .is_err(),
        };
        assert!(is_refused);
    }
    assert_eq!(upstream.requests().len(), 1);
}

/// Certificates are no secret: anyone who has seen one can send it.
#[tokio::test]
async fn certificate_without_its_key_ends_the_handshake() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stolen = cas.jane().with_wrong_key();
        for (identity, is_served) in [(cas.jane(), true), (stolen, false)] {
            let client = client(&proxy, identity).tls_versions(&[version]);
            let tls = client.alpn(&["http/1.1"]).connect().await;
            // With TLS 1.3 the client has finished before the proxy reads the signature.
            let served = match tls {
                Err(_) => false,
                Ok(tls) => {
                    let mut http1 = Http1::new(tls);
                    let request = format!("GET /api HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
                    http1.try_send(request).await.is_ok() && http1.head().await.is_ok()
                }
            };
            assert_eq!(served, is_served, "{version:?}");
        }
    }
    assert_eq!(upstream.requests().len(), 2);
}

/// The rules look at who the proxy says that the client is. A certificate that does not count hides no token, and a
/// token hides no certificate.
#[tokio::test]
async fn rules_judge_the_credential_that_travels() {
    let account = format!(
        "Bearer e30.{}.c2ln",
        URL_SAFE_NO_PAD.encode(r#"{"kubernetes.io":{}}"#)
    );
    let only_certificates = "  - allow: {credentials: [certificate]}";
    let no_certificates = "  - deny: {credentials: [certificate]}\n  - allow: {}";
    let no_accounts = "  - deny: {credentials: [serviceAccount]}\n  - allow: {}";
    let in_a_day = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
    for (access, who, token, code) in [
        (only_certificates, "no certificate", "", 401),
        (only_certificates, "no certificate", "Bearer good", 403),
        (only_certificates, "other CA", "", 401),
        (only_certificates, "other CA", "Bearer good", 403),
        (only_certificates, "revoked", "", 401),
        (only_certificates, "revoked", "Bearer good", 403),
        (only_certificates, "expired", "Bearer good", 403),
        (only_certificates, "system", "Bearer good", 403),
        (no_certificates, "jane", "", 403),
        (no_certificates, "jane", "Bearer good", 403),
        (no_accounts, "revoked", account.as_str(), 403),
        (no_accounts, "other CA", account.as_str(), 403),
        (no_accounts, "no certificate", account.as_str(), 403),
        (no_accounts, "revoked", "Basic eDp5", 401),
        (no_accounts, "revoked", "Bearer", 401),
    ] {
        let (world, cas) = (World::new(), Authorities::new());
        let upstream = apiserver(&world).start().await;
        let list = cas.users.revocation_list(&[7], in_a_day);
        let mut section = cas.section(&world);
        section.crl = Some(world.dir.write("users.crl", list));
        let setup = cas
            .proxy(&world, &upstream)
            .cluster(|cluster| cluster.client_certificates = Some(section));
        let proxy = with_rules(setup, access).start();
        let leaf = cas.users.leaf(&[]).client_auth().common_name("jane");
        let client = match who {
            "jane" => client(&proxy, cas.jane()),
            "other CA" => client(&proxy, Ca::new("users").client("jane", &[])),
            "revoked" => client(&proxy, leaf.serial(7).build()),
            "expired" => client(&proxy, leaf.expired().build()),
            "system" => client(&proxy, cas.users.client("a", &["system:masters"])),
            _ => proxy.client(),
        };
        let fields = [("authorization", token)];
        let fields = if token.is_empty() { &[][..] } else { &fields };
        for protocol in BOTH {
            let refused = get(&client, protocol, HOST, fields).await;
            assert_eq!(
                refused.code,
                code,
                "{access} {who} {token}: {}",
                refused.text()
            );
        }
        assert_eq!(upstream.accepted(), 0, "{access} {who} {token}");
    }
}

const OTHER: &str = "other.test";

/// Whether a connection under this name resumes a session.
async fn visit(client: &Client, name: &str) -> bool {
    let tls = client.clone().sni(name).connect().await.unwrap();
    let is_resumed = tls.is_resumed();
    // The client reads the tickets before the response.
    Http1::new(tls).get(HOST, "/livez", "").await;
    is_resumed
}

/// A ticket of one name must not skip the request for a certificate under another one, or bring the user of another
/// cluster.
#[tokio::test]
async fn session_of_one_name_is_not_resumed_under_another() {
    for second_asks in [false, true] {
        let (world, cas) = (World::new(), Authorities::new());
        let (setup, first, second) = two_clusters(&world, &cas, second_asks).await;
        let proxy = setup.start();
        for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
            for with_certificate in [false, true] {
                let client = proxy.client().tls_versions(versions);
                let client = if with_certificate {
                    client.identity(cas.jane())
                } else {
                    client
                };
                let client = client.alpn(&["http/1.1"]);
                for (from, to) in [
                    (OTHER, HOST),
                    (HOST, OTHER),
                    (OTHER, "127.0.0.1"),
                    ("127.0.0.1", HOST),
                    (HOST, "127.0.0.1"),
                    (HOST, HOST),
                ] {
                    let client = client.clone().sessions_of_any_name();
                    visit(&client, from).await;
                    assert!(!visit(&client, to).await, "{from} {to} {with_certificate}");
                }
                let client = client.clone().sessions_of_any_name();
                visit(&client, OTHER).await;
                assert_eq!(visit(&client, OTHER).await, !second_asks);
            }
        }
        assert_never_mixed(&first);
        assert_eq!(second.requests().len(), 0);
    }
}

/// Also on connections that are open, in the idle pool too: without the section the proxy names no user.
#[tokio::test]
async fn removed_section_ends_the_word_of_the_front_proxy() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let mut setup = cas.proxy(&world, &upstream);
    // A reload reads the configuration again only if a file has changed.
    setup.config.sources = vec![world.dir.write("proxy.yaml", "")];
    let config = Arc::new(Mutex::new(setup.config.clone()));
    let source = Arc::clone(&config);
    let proxy = setup.start_from(Box::new(move || Ok(source.lock().unwrap().clone())));
    let jane = client(&proxy, cas.jane());
    let mut open = jane.clone().alpn(&["http/1.1"]).http1().await;
    assert_eq!(open.get(HOST, "/api", "").await.status, 200);
    assert_eq!(get(&jane, Protocol::Http2, HOST, &[]).await.code, 200);
    config.lock().unwrap().clusters[0].client_certificates = None;
    world.dir.write("proxy.yaml", "changed");
    proxy.reload();
    let removed = async { while get(&jane, Protocol::Http2, HOST, &[]).await.code == 200 {} };
    within("the reload", removed).await;
    let before = upstream.requests().len();
    for protocol in BOTH {
        assert_eq!(get(&jane, protocol, HOST, &[]).await.code, 401);
    }
    // The proxy may have closed this connection already.
    let request = format!("GET /api HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    if open.try_send(request).await.is_ok()
        && let Ok(head) = open.head().await
    {
        assert_eq!(head.status, 401);
    }
    for request in upstream.requests().split_off(before) {
        assert!(!is_front_proxy(&upstream, &request), "{request:?}");
    }
    assert_never_mixed(&upstream);
}
