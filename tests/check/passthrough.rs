//! Clusters whose connections are passed through: no request is sent, and the apiserver is verified as its clients do
//! it.

use std::net::SocketAddr;

use standin::tcp::refused;

use crate::world::{RunResult, World, check, flags, path};

/// A file with the terminated cluster `prod` and the passthrough cluster `direct`, both at `upstream`.
fn config(world: &World, upstream: SocketAddr, ca: &str) -> Vec<String> {
    // Writes the files that the configuration names.
    world.flags(upstream);
    let text = format!(
        "listen: [\"127.0.0.1:0\"]
certificates: [{{ certificate: public.crt, key: public.key }}]
clusters:
- {{ name: prod, hosts: [localhost], upstream: {{ url: \"https://{upstream}\", ca: cluster-ca.crt, name: kubernetes }} }}
- {{ name: direct, hosts: [kubernetes], passthrough: true, upstream: {{ url: \"https://{upstream}\"{ca} }} }}
"
    );
    let file = world.dir.write("config.yaml", text);
    flags(&[("--config", path(&file))])
}

/// The findings of a section, from its title to the next one.
fn section<'a>(result: &'a RunResult, title: &str) -> &'a str {
    let start = result
        .stdout
        .find(title)
        .unwrap_or_else(|| panic!("{}", result.stdout));
    let rest = &result.stdout[start..];
    rest.split("\n\n").next().unwrap()
}

#[tokio::test]
async fn passthrough_is_verified_with_its_ca_direct_and_through() {
    let world = World::new();
    let identity = world.cluster_ca.server(&["kubernetes"]);
    let upstream = world.apiserver_as(identity).start().await;
    let flags = config(&world, upstream.address(), ", ca: cluster-ca.crt");
    let serving = world.serve(&flags).await;
    let url = format!("https://localhost:{}", serving.address.port());
    let more = [flags, world.clients_trust()].concat();
    let result = check(&more, &["--through", &url]).await;
    assert_eq!(result.code, 0, "{}", result.stdout);
    assert!(
        result
            .stdout
            .contains("clients reach the apiserver itself under kubernetes")
    );
    for title in ["Apiserver of cluster direct", ", passed on as kubernetes"] {
        let found = section(&result, title);
        assert!(
            found.contains("valid for kubernetes and signed by the CA in"),
            "{found}"
        );
        assert!(
            !found.contains("Kubernetes v"),
            "no request was sent: {found}"
        );
    }
}

#[tokio::test]
async fn passthrough_without_a_ca_leaves_verification_to_clients() {
    let world = World::new();
    let identity = world.cluster_ca.server(&["kubernetes"]);
    let upstream = world.apiserver_as(identity).start().await;
    let flags = [
        config(&world, upstream.address(), ""),
        world.clients_trust(),
    ]
    .concat();
    let result = check(&flags, &[]).await;
    assert_eq!(result.code, 0, "{}", result.stdout);
    let found = section(&result, "Apiserver of cluster direct");
    assert!(found.contains("the server speaks TLS"), "{found}");
    assert!(
        found.contains("each client verifies the apiserver"),
        "{found}"
    );
}

/// A proxy that runs with an older configuration still terminates the host: its own certificate arrives.
#[tokio::test]
async fn proxy_that_does_not_pass_the_host_yet_fails_the_check() {
    let world = World::new();
    let identity = world.cluster_ca.server(&["kubernetes"]);
    let upstream = world.apiserver_as(identity).start().await;
    let serving = world.serve(&world.flags(upstream.address())).await;
    let url = format!("https://localhost:{}", serving.address.port());
    let flags = config(&world, upstream.address(), ", ca: cluster-ca.crt");
    let more = [flags, world.clients_trust()].concat();
    let result = check(&more, &["--through", &url]).await;
    let found = section(&result, ", passed on as kubernetes");
    assert!(found.contains("is not signed by the CA in"), "{found}");
    assert_eq!(result.code, 1, "{}", result.stdout);
}

/// The fix for a passthrough host names the flag that has the wrong address, too.
#[tokio::test]
async fn passthrough_host_is_asked_for_at_connect_to() {
    let world = World::new();
    let flags = [config(&world, refused().await, ""), world.clients_trust()].concat();
    let (url, closed) = ("https://kube.test", refused().await.to_string());
    let result = check(&flags, &["--through", url, "--connect-to", &closed]).await;
    let found = section(&result, ", passed on as kubernetes");
    assert!(found.contains(&closed), "{found}");
    assert!(found.contains("in --connect-to"), "{found}");
}

#[tokio::test]
async fn unreachable_apiserver_of_passthrough_fails() {
    let world = World::new();
    let flags = [config(&world, refused().await, ""), world.clients_trust()].concat();
    let result = check(&flags, &[]).await;
    let found = section(&result, "Apiserver of cluster direct");
    assert!(found.contains("refuses connections"), "{found}");
    assert_eq!(result.code, 1);
}

/// No `config` says that the host is passed on. The apiserver has no response that only the proxy gives.
#[tokio::test]
async fn through_a_passthrough_host_upgrades_are_no_fault() {
    let world = World::new();
    let names = ["kubernetes", "kubernetes.default.svc"];
    let upstream = world.apiserver_as(world.cluster_ca.server(&names));
    let upstream = upstream.start().await;
    let config = config(&world, upstream.address(), "");
    let serving = world.serve(&config).await;
    let (url, ca) = (
        "https://kubernetes",
        world.dir.path().join("cluster-ca.crt"),
    );
    let address = serving.address.to_string();
    let through = [
        ("--through", url),
        ("--connect-to", &*address),
        ("--through-ca", path(&ca)),
    ];
    let result = check(&flags(&through), &[]).await;
    assert_eq!(result.code, 0, "{}", result.stdout);
    let upgrade = &result.of("upgrade")[0];
    assert_eq!(upgrade.mark, '✓', "{upgrade:?}");
    let text = "the proxy passes connections for this host on";
    assert!(upgrade.message.starts_with(text), "{upgrade:?}");
}
