//! Which cluster a request reaches: the host of the request decides, and never the SNI, unless the host is an address.

use bytes::Bytes;
use http::Request;
use standin::upstream::Upstream;

use crate::{
    proxy::{Proxy, World},
    responses::{BOTH, ClientResponse, Protocol},
};

/// The two clusters of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cluster {
    A,
    B,
}

/// What becomes of a request: the cluster that receives it, or the status of the refusal.
type Outcome = Result<Cluster, u16>;

/// Hosts, and the outcome, whatever the SNI is.
const BY_HOST: &[(&str, Outcome)] = &[
    ("a.test", Ok(Cluster::A)),
    ("A.TEST", Ok(Cluster::A)),
    ("a.test.", Ok(Cluster::A)),
    ("a.test:443", Ok(Cluster::A)),
    ("a.test:6443", Ok(Cluster::A)),
    ("b.test", Ok(Cluster::B)),
    ("B.test.:1", Ok(Cluster::B)),
    ("c.test", Err(421)),
    ("test", Err(421)),
    ("x.a.test", Err(421)),
    ("a.test.b.test", Err(421)),
    ("a.test..", Err(421)),
    ("a.test@b.test", Err(400)),
    ("a.test:", Ok(Cluster::A)),
    ("a.test:0x50", Err(400)),
    ("a.test:65536", Err(400)),
    ("a.test:443:443", Err(400)),
    ("[::1", Err(400)),
    ("", Err(400)),
];

/// Names that a client may send as SNI.
const SNIS: &[&str] = &["a.test", "b.test", "127.0.0.1"];

/// Addresses go to the cluster that the SNI names; without one, only an address of the certificate is served, and here
/// no cluster claims it.
const BY_SNI: &[(&str, &str, Outcome)] = &[
    ("a.test", "192.0.2.1", Ok(Cluster::A)),
    ("a.test", "192.0.2.1:6443", Ok(Cluster::A)),
    ("b.test", "192.0.2.1", Ok(Cluster::B)),
    ("b.test", "[2001:db8::1]:443", Ok(Cluster::B)),
    ("127.0.0.1", "192.0.2.1", Err(421)),
];

async fn outcome(
    proxy: &Proxy,
    apiservers: [&Upstream; 2],
    protocol: Protocol,
    sni: &str,
    host: &str,
) -> Outcome {
    let before = apiservers.map(|apiserver| apiserver.requests().len());
    let client = proxy.client().sni(sni);
    let response: ClientResponse = match protocol {
        Protocol::Http1 => client.http1().await.get(host, "/", "").await.into(),
        Protocol::Http2 => {
            // `http::Uri` could not carry all of these hosts.
            let request = Request::get("/").header("host", host);
            let request = request.body(Bytes::new()).unwrap();
            client.http2().await.request(request).await.unwrap().into()
        }
    };
    let after = apiservers.map(|apiserver| apiserver.requests().len());
    match (response.code, after[0] - before[0], after[1] - before[1]) {
        (200, 1, 0) => Ok(Cluster::A),
        (200, 0, 1) => Ok(Cluster::B),
        (code, 0, 0) => Err(code),
        other => panic!("{sni} {host}: {other:?}"),
    }
}

/// Case 42.
#[tokio::test]
async fn host_and_not_sni_decides_the_cluster() {
    let world = World::new();
    let (a, b) = (
        world.apiserver().start().await,
        world.apiserver().start().await,
    );
    let identity = world.public_ca.server(&["a.test", "b.test", "127.0.0.1"]);
    let mut setup = world.proxy_as(a.address(), &identity);
    setup.config.clusters[0].hosts = vec!["a.test".parse().unwrap()];
    let mut other = setup.config.clusters[0].clone();
    other.name = "other".into();
    other.hosts = vec!["b.test".parse().unwrap()];
    other.upstream_port = b.address().port();
    setup.config.clusters.push(other);
    let proxy = setup.start();
    for protocol in BOTH {
        for sni in SNIS {
            for (host, expected) in BY_HOST {
                let found = outcome(&proxy, [&a, &b], protocol, sni, host).await;
                assert_eq!(found, *expected, "{protocol:?}, SNI {sni}, host {host:?}");
            }
        }
        for (sni, host, expected) in BY_SNI {
            let found = outcome(&proxy, [&a, &b], protocol, sni, host).await;
            assert_eq!(found, *expected, "{protocol:?}, SNI {sni}, host {host:?}");
        }
    }
}
