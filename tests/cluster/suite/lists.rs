//! Responses that are large, compressed or split into pages.

use std::time::Duration;

use crate::kubectl::{Kubectl, same_on_both};
use crate::process::Running;
use crate::suite::{Route, on_both, shared};

#[test]
fn large_list_is_equal_compressed_plain_and_chunked() {
    let Some(suite) = shared() else { return };
    let mut fill = suite.fixture.client("fill");
    fill.arg("-kubeconfig")
        .arg(Kubectl::new(&suite, Route::Direct).kubeconfig());
    fill.args(["-into", "many", "-count", "2000", "-bytes", "1024"]);
    let filled = Running::start(fill).json(Duration::from_mins(2));
    let version = filled["resourceVersion"].as_str().unwrap();
    // Both lists use one fixed version, because a list contains its version.
    let path = format!(
        "/api/v1/namespaces/many/configmaps?resourceVersion={version}&resourceVersionMatch=Exact"
    );
    let raw = same_on_both(&suite, &["get", "--raw", &path]).ok();
    assert!(raw.len() > 2000 * 1024, "{} bytes", raw.len());

    // kubectl decompresses the response, so this compares the bytes on the wire.
    for encoding in ["gzip", "identity"] {
        let [direct, proxied] = on_both(|route| {
            let encoding = format!("Accept-Encoding: {encoding}");
            let flags = ["-header", &encoding];
            suite.fetch(&suite.server(route), &suite.credential(), &path, &flags)
        });
        for key in ["status", "bytes", "sha256"] {
            assert_eq!(direct[key], proxied[key], "{encoding} {key}");
        }
        for header in ["Content-Encoding", "Content-Type", "Vary", "Cache-Control"] {
            let (direct, proxied) = (&direct["headers"][header], &proxied["headers"][header]);
            assert_eq!(direct, proxied, "{encoding} {header}");
        }
        let compressed = direct["headers"]["Content-Encoding"][0] == "gzip";
        assert_eq!(compressed, encoding == "gzip");
    }

    let list = ["get", "configmaps", "-n", "many", "-o", "json"];
    let unchunked = same_on_both(&suite, &[&list[..], &["--chunk-size=0"]].concat()).ok();
    let chunks = same_on_both(&suite, &[&list[..], &["--chunk-size=300"]].concat()).ok();
    assert!(
        unchunked == chunks,
        "{} and {} bytes",
        unchunked.len(),
        chunks.len()
    );
}
