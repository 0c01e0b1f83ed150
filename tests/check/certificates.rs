//! Certificates that are wrong in one way: the proxy's, and the apiserver's.

use standin::{pki::Identity, tcp::refused};

use crate::world::{APISERVER, Ended, HOST, World, check};

/// Checks a proxy with this certificate; `trusting` the test's public CA or the real ones.
async fn with(world: &World, identity: &Identity, trusting: bool) -> Ended {
    let upstream = world.apiserver().start().await;
    let mut flags = world.flags_as(&format!("https://{}", upstream.address()), identity);
    if trusting {
        flags.extend(world.clients_trust());
    }
    check(&flags, &[]).await
}

/// Checks a proxy before an apiserver with this certificate.
async fn before(world: &World, identity: Identity) -> Ended {
    let upstream = world.apiserver_as(identity).start().await;
    let ended = world.check(upstream.address(), &[]).await;
    assert_eq!(upstream.requests().len(), 0, "nothing is sent to it");
    ended
}

#[tokio::test]
async fn wrong_ca() {
    let world = World::new();
    let other = standin::pki::Ca::new("other");
    let ended = before(&world, other.server(&[APISERVER])).await;
    ended.names(
        1,
        '✗',
        "verify",
        "cluster-ca.crt: it was issued by CN=other",
        "give the CA that issued it with --upstream-ca",
    );
    assert_eq!(
        ended.marked('–'),
        ["alpn", "version", "clock", "readyz", "upgrade"]
    );
    assert!(
        ended
            .stdout
            .ends_with("\nOne thing does not work. The broken leg is proxy → apiserver.\n"),
        "{}",
        ended.stdout
    );
}

/// As old tools make them, with the name in the subject alone.
#[tokio::test]
async fn no_name() {
    let world = World::new();
    let ended = before(&world, world.cluster_ca.server(&[])).await;
    ended.names(
        1,
        '✗',
        "verify",
        "is not for kubernetes.default.svc: it has no name as subjectAltName",
        "issue it again with its name as subjectAltName",
    );
}

#[tokio::test]
async fn wrong_name() {
    let world = World::new();
    let identity = world.cluster_ca.server(&["other.test", "10.0.0.1"]);
    before(&world, identity).await.names(
        1,
        '✗',
        "verify",
        "is not for kubernetes.default.svc, it is for other.test, 10.0.0.1",
        "--upstream-name other.test",
    );
}

#[tokio::test]
async fn expired() {
    let world = World::new();
    let identity = world.public_ca.leaf(&[HOST]).expired().build();
    let ended = with(&world, &identity, true).await;
    ended.names(
        1,
        '✗',
        "certificate",
        "expired on 2021-01-01T00:00:00Z",
        "renew it",
    );
    assert_eq!(ended.marked('–'), ["trust", "hosts"]);

    let identity = world.cluster_ca.leaf(&[APISERVER]).expired().build();
    before(&world, identity).await.names(
        1,
        '✗',
        "verify",
        "has expired on 2021-01-01T00:00:00Z, and the clock here says 20",
        "kubeadm certs renew apiserver",
    );
}

#[tokio::test]
async fn key_mismatch() {
    let world = World::new();
    let identity = world.identity().with_wrong_key();
    with(&world, &identity, true).await.names(
        1,
        '✗',
        "certificate",
        "public.key: does not belong to the certificate",
        "give the key that this certificate was issued for",
    );
    let upstream = world.cluster_ca.server(&[APISERVER]).with_wrong_key();
    before(&world, upstream).await.names(
        1,
        '✗',
        "verify",
        "is not proved",
        "give the apiserver the key that its certificate was issued for",
    );
}

#[tokio::test]
async fn missing_intermediate() {
    let world = World::new();
    let below = world.public_ca.intermediate("issuing CA 1");
    let whole = below.leaf(&[HOST]).publicly_issued().build();
    let bare = whole.without_intermediates();
    // As public CAs issue them, and the public CAs are looked for: an intermediate is missing for sure.
    with(&world, &bare, false).await.names(
        1,
        '✗',
        "trust",
        "the chain is incomplete: its last certificate was issued by CN=issuing CA 1, an intermediate that is missing",
        "append the intermediate certificates of the issuer to the certificate file",
    );
    with(&world, &bare, true).await.names(
        1,
        '✗',
        "trust",
        "public-ca.crt: its last certificate was issued by CN=issuing CA 1, which is missing",
        "append the intermediate certificates of the issuer to the certificate file",
    );
    let ended = with(&world, &whole, true).await;
    assert_eq!(ended.code, 0, "{}", ended.stdout);

    let below = world.cluster_ca.intermediate("issuing CA 2");
    let identity = below.server(&[APISERVER]).without_intermediates();
    before(&world, identity).await.names(
        1,
        '✗',
        "verify",
        "it was issued by CN=issuing CA 2",
        "if CN=issuing CA 2 is an intermediate of the trusted CA, it is missing: let the apiserver send it along",
    );
}

/// A choice of many on purpose, so that it is said and no more.
#[tokio::test]
async fn a_ca_of_ones_own_is_a_warning() {
    let world = World::new();
    with(&world, &world.identity(), false).await.names(
        0,
        '!',
        "trust",
        "no public CA vouches for it: the chain ends at CN=public",
        "give it here with --through-ca",
    );
    let self_signed = Identity::self_signed(&[HOST]);
    with(&world, &self_signed, false).await.names(
        0,
        '!',
        "trust",
        "no public CA vouches for it: the chain ends at CN=standin",
        "else use a public one",
    );
}

#[tokio::test]
async fn a_host_without_a_certificate() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let more = ["--host", "kube.test", "--host", "api.other.test"];
    world.check(upstream.address(), &more).await.names(
        1,
        '✗',
        "hosts",
        "no certificate is for api.other.test",
        "add a certificate with that name",
    );
}

#[tokio::test]
async fn a_certificate_that_soon_expires_is_a_warning() {
    let world = World::new();
    let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(3 * 24 * 3600 + 600);
    let identity = world.public_ca.leaf(&[HOST]).valid_until(soon).build();
    with(&world, &identity, true).await.names(
        0,
        '!',
        "certificate",
        "expires in 3 days",
        "renew it",
    );
    let upstream = world
        .cluster_ca
        .leaf(&[APISERVER])
        .valid_until(soon)
        .build();
    let upstream = world.apiserver_as(upstream).start().await;
    world.check(upstream.address(), &[]).await.names(
        0,
        '!',
        "verify",
        "the certificate is good, and expires soon: on 20",
        "renew it",
    );
}

/// Whatever is wrong here, the other part is looked at too.
#[tokio::test]
async fn two_faults_are_both_found_in_one_run() {
    let world = World::new();
    let identity = world.identity().with_wrong_key();
    let url = format!("https://{}", refused().await);
    let ended = check(&world.flags_as(&url, &identity), &[]).await;
    assert_eq!(ended.code, 1);
    assert_eq!(
        ended.marked('✗'),
        ["certificate", "tcp"],
        "{}",
        ended.stdout
    );
    assert!(
        ended
            .stdout
            .ends_with("\n2 things do not work; begin with the first.\n"),
        "{}",
        ended.stdout
    );
}
