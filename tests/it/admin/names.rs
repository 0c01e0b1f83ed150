//! The host names of the status page: with DNS rebinding, a page of an attacker cannot read it through the
//! browser of a visitor who reaches the admin port.

use standin::{client::Http1, tcp};
use tokio::net::TcpStream;

use super::get;
use crate::proxy::{HOST, World};

#[tokio::test]
async fn status_page_is_refused_under_a_foreign_host_name() {
    let world = World::new();
    let refused = tcp::refused().await;
    let setup = world.proxy(refused).cluster(|cluster| {
        cluster.upstream_host = "api.prod.test".to_owned();
        cluster.addresses = vec![refused];
    });
    let proxy = setup.admin().start();
    let admin = proxy.admin();
    let get_as = async |host: &str, target: &str| {
        let stream = TcpStream::connect(admin).await.unwrap();
        Http1::new(stream).get(host, target, "").await
    };
    for host in [
        &*admin.to_string(),
        "[::1]:9090",
        "localhost:9090",
        "LocalHost",
        "bastion:9090",
        "kube-tls-proxy-metrics.kube-tls-proxy.svc:9090",
        "kube-tls-proxy-metrics.kube-tls-proxy.svc.cluster.local.",
        HOST,
        "api.prod.test:6443",
    ] {
        for target in ["/", "/status.json"] {
            assert_eq!(get_as(host, target).await.status, 200, "{host} {target}");
        }
    }
    for host in [
        "attacker.example:9090",
        "localhost.attacker.example",
        "127.0.0.1.attacker.example",
        "kube.test.attacker.example",
        "",
    ] {
        for target in ["/", "/status.json"] {
            let refused = get_as(host, target).await;
            assert_eq!(refused.status, 421, "{host} {target}");
            let name = host.split(':').next().unwrap();
            assert_eq!(
                refused.text(),
                format!(
                    "the status page is not served under the host name \"{name}\", which an attacker could own; open it by \
                     IP address, as localhost (kubectl port-forward), or by a name of the certificate\n"
                )
            );
        }
        // Prometheus and probes may use any name.
        for (target, status) in [("/metrics", 200), ("/livez", 200), ("/readyz", 503)] {
            assert_eq!(get_as(host, target).await.status, status, "{host} {target}");
        }
    }
    // A host in the target overrides the header.
    let absolute = "http://attacker.example/status.json";
    assert_eq!(get_as("localhost", absolute).await.status, 421);
    assert_eq!(get(admin, "/").await.status, 200);
}
