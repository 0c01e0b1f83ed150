//! Certificates of the proxy and of the apiserver with one thing wrong.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use standin::{pki::Identity, tcp::refused};

use crate::world::{APISERVER, HOST, RunResult, World, check, flags, path};

/// Checks a proxy with this certificate; `trust_test_ca` trusts the CA of the test instead of the public CAs.
async fn check_proxy(world: &World, identity: &Identity, trust_test_ca: bool) -> RunResult {
    let upstream = world.apiserver().start().await;
    let mut flags = world.flags_as(&format!("https://{}", upstream.address()), identity);
    if trust_test_ca {
        flags.extend(world.clients_trust());
    }
    check(&flags, &[]).await
}

/// Checks a proxy in front of an apiserver with this certificate.
async fn check_apiserver(world: &World, identity: Identity) -> RunResult {
    let upstream = world.apiserver_as(identity).start().await;
    let result = world.check(upstream.address(), &[]).await;
    assert_eq!(upstream.requests().len(), 0, "nothing is sent to it");
    result
}

#[tokio::test]
async fn wrong_ca_fails_verify() {
    let world = World::new();
    let other = standin::pki::Ca::new("other");
    let result = check_apiserver(&world, other.server(&[APISERVER])).await;
    result.assert_finding(
        1,
        '✗',
        "verify",
        "cluster-ca.crt: it was issued by CN=other",
        "pass the CA that issued it with --upstream-ca",
    );
    assert_eq!(
        result.marked('–'),
        ["alpn", "version", "clock", "readyz", "upgrade"]
    );
    assert!(
        result
            .stdout
            .ends_with("\nOne check failed. The broken leg is proxy → apiserver.\n"),
        "{}",
        result.stdout
    );
}

/// Old tools write the name only into the subject.
#[tokio::test]
async fn certificate_without_san_fails_verify() {
    let world = World::new();
    let result = check_apiserver(&world, world.cluster_ca.server(&[])).await;
    result.assert_finding(
        1,
        '✗',
        "verify",
        "is not valid for kubernetes.default.svc: it has no subjectAltName",
        "issue it again with the name as subjectAltName",
    );
}

#[tokio::test]
async fn wrong_name_fails_verify() {
    let world = World::new();
    let identity = world.cluster_ca.server(&["other.test", "10.0.0.1"]);
    check_apiserver(&world, identity).await.assert_finding(
        1,
        '✗',
        "verify",
        "is not valid for kubernetes.default.svc: its names are other.test, 10.0.0.1",
        "--upstream-name other.test",
    );
}

#[tokio::test]
async fn fix_of_a_wrong_name_is_one_that_works() {
    let world = World::new();
    for (names, text, fix) in [
        (
            &["*.mycluster", "*.other.test"][..],
            "its names are *.mycluster, *.other.test",
            "--upstream-name kubernetes.other.test",
        ),
        (
            &["*.mycluster"],
            "its names are *.mycluster",
            "issue it again with the name as subjectAltName",
        ),
    ] {
        let identity = world.cluster_ca.server(names);
        check_apiserver(&world, identity)
            .await
            .assert_finding(1, '✗', "verify", text, fix);
    }
}

#[tokio::test]
async fn other_ca_of_the_same_name_fails_verify() {
    let world = World::new();
    let same_name = standin::pki::Ca::new("cluster");
    check_apiserver(&world, same_name.server(&[APISERVER]))
        .await
        .assert_finding(
            1,
            '✗',
            "verify",
            "cluster-ca.crt: another CA with the same name, CN=cluster, issued it",
            "pass the CA of this cluster with --upstream-ca",
        );
}

/// A leaf is no CA, and pinning is not supported.
#[tokio::test]
async fn certificate_of_the_apiserver_as_its_ca_fails() {
    let world = World::new();
    let identity = world.cluster_ca.server(&[APISERVER]);
    let leaf = identity.chain_pem();
    let upstream = world.apiserver_as(identity).start().await;
    let flags = world.flags(upstream.address());
    world.dir.write("cluster-ca.crt", leaf);
    check(&flags, &[]).await.assert_finding(
        1,
        '✗',
        "ca",
        "is no CA certificate (CA:FALSE), so it can verify no other",
        "give the CA that issued it",
    );
}

#[tokio::test]
async fn expired_certificate_fails() {
    let world = World::new();
    let identity = world.public_ca.leaf(&[HOST]).expired().build();
    let result = check_proxy(&world, &identity, true).await;
    result.assert_finding(
        1,
        '✗',
        "certificate",
        "expired on 2021-01-01T00:00:00Z",
        "renew it",
    );
    assert_eq!(result.marked('–'), ["trust", "hosts"]);

    let identity = world.cluster_ca.leaf(&[APISERVER]).expired().build();
    check_apiserver(&world, identity).await.assert_finding(
        1,
        '✗',
        "verify",
        "expired on 2021-01-01T00:00:00Z; the clock of this machine says 20",
        "kubeadm certs renew apiserver",
    );
}

#[tokio::test]
async fn key_of_another_certificate_fails() {
    let world = World::new();
    let identity = world.identity().with_wrong_key();
    check_proxy(&world, &identity, true).await.assert_finding(
        1,
        '✗',
        "certificate",
        "public.key: does not match the certificate",
        "give the key that this certificate was issued for",
    );
    let upstream = world.cluster_ca.server(&[APISERVER]).with_wrong_key();
    check_apiserver(&world, upstream).await.assert_finding(
        1,
        '✗',
        "verify",
        "does not prove that it has the key of its certificate",
        "give the apiserver the key that its certificate was issued for",
    );
}

#[tokio::test]
async fn missing_intermediate_fails() {
    let world = World::new();
    let intermediate = world.public_ca.intermediate("issuing CA 1");
    let complete = intermediate.leaf(&[HOST]).publicly_issued().build();
    let incomplete = complete.without_intermediates();
    // The certificate follows the rules of public CAs, which always issue from an intermediate.
    check_proxy(&world, &incomplete, false).await.assert_finding(
        1,
        '✗',
        "trust",
        "the chain is incomplete, so clients reject it: CN=issuing CA 1 issued its last certificate, and this intermediate is missing from the file",
        "append the intermediate certificates of the issuer to the certificate file",
    );
    check_proxy(&world, &incomplete, true).await.assert_finding(
        1,
        '✗',
        "trust",
        "public-ca.crt: CN=issuing CA 1 issued the last certificate of the chain, and the certificate of CN=issuing CA 1 is neither in the chain nor in",
        "append the intermediate certificates of the issuer to the certificate file",
    );
    let result = check_proxy(&world, &complete, true).await;
    assert_eq!(result.code, 0, "{}", result.stdout);

    let intermediate = world.cluster_ca.intermediate("issuing CA 2");
    let identity = intermediate.server(&[APISERVER]).without_intermediates();
    check_apiserver(&world, identity).await.assert_finding(
        1,
        '✗',
        "verify",
        "it was issued by CN=issuing CA 2",
        "if CN=issuing CA 2 is an intermediate of the trusted CA, make the apiserver send it",
    );
}

/// Many use a private CA on purpose, so it is only a warning.
#[tokio::test]
async fn private_ca_is_a_warning() {
    let world = World::new();
    check_proxy(&world, &world.identity(), false)
        .await
        .assert_finding(
            0,
            '!',
            "trust",
            "the certificate is not from a public CA: its chain ends at CN=public",
            "pass it here with --through-ca",
        );
    let self_signed = Identity::self_signed(&[HOST]);
    check_proxy(&world, &self_signed, false)
        .await
        .assert_finding(
            0,
            '!',
            "trust",
            "the certificate is self-signed, so only clients that trust this very certificate accept it",
            "use a certificate from a CA",
        );
}

/// `openssl req -x509` makes such a certificate. kubectl accepts it if it trusts the certificate itself.
#[tokio::test]
async fn trusted_self_signed_ca_is_a_warning_on_both_sides() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut params = CertificateParams::new(vec![HOST.to_owned(), "localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let serve = world.flags(upstream.address());
    let key = KeyPair::generate().unwrap();
    let own = params.self_signed(&key).unwrap().pem();
    let own = world.dir.write("public.crt", own);
    world.dir.write("public.key", key.serialize_pem());
    let serving = world.serve(&serve).await;
    let url = format!("https://localhost:{}", serving.address.port());
    let trust = |file: &Path| flags(&[("--through-ca", path(file)), ("--through", &url)]);
    let text = "is self-signed and says that it is a CA (CA:TRUE): kubectl accepts it";
    let result = check(&[serve, trust(&own)].concat(), &[]).await;
    for check in ["trust", "verify"] {
        result.assert_finding(0, '!', check, text, "use a certificate from a CA");
    }
    // A certificate that no client trusts is a fault.
    let result = check(&trust(&world.public_ca_file()), &[]).await;
    let text = "is a CA certificate, and those are not for servers";
    result.assert_finding(1, '✗', "verify", text, "(CA:FALSE)");
}

#[tokio::test]
async fn host_without_certificate_fails() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let more = ["--host", "kube.test", "--host", "api.other.test"];
    world.check(upstream.address(), &more).await.assert_finding(
        1,
        '✗',
        "hosts",
        "no certificate is valid for api.other.test",
        "add a certificate for this name",
    );
}

#[tokio::test]
async fn certificate_that_expires_soon_is_a_warning() {
    let world = World::new();
    let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(3 * 24 * 3600 + 600);
    let identity = world.public_ca.leaf(&[HOST]).valid_until(soon).build();
    check_proxy(&world, &identity, true).await.assert_finding(
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
    world.check(upstream.address(), &[]).await.assert_finding(
        0,
        '!',
        "verify",
        "the certificate is valid but expires soon, on 20",
        "renew it",
    );
}

/// A local failure does not stop the checks of the apiserver.
#[tokio::test]
async fn two_failures_are_found_in_one_run() {
    let world = World::new();
    let identity = world.identity().with_wrong_key();
    let url = format!("https://{}", refused().await);
    let result = check(&world.flags_as(&url, &identity), &[]).await;
    assert_eq!(result.code, 1);
    assert_eq!(
        result.marked('✗'),
        ["certificate", "tcp"],
        "{}",
        result.stdout
    );
    assert!(
        result
            .stdout
            .ends_with("\n2 checks failed; fix the first one first.\n"),
        "{}",
        result.stdout
    );
}
