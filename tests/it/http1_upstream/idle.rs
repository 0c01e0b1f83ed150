//! Idle upstream connections of a client that is active on another one: a kubelet watches for days and sends other
//! requests now and then.

use standin::within;

use super::apiserver::{self, NEXT, read_request, write};
use crate::proxy::{World, data};

/// How long the apiserver keeps an idle connection open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeepAlive {
    /// Longer than the proxy does.
    Long,
    /// Not at all: it closes its side immediately, as kube-apiserver does after 90 s, and waits for the proxy.
    None,
}

#[tokio::test]
async fn idle_connection_of_an_active_client_is_closed() {
    for keep_alive in [KeepAlive::Long, KeepAlive::None] {
        let world = World::new();
        let upstream = world
            .apiserver()
            .alpn(&["http/1.1"])
            .raw(move |mut raw| async move {
                while let Some(request) = read_request(&mut raw.stream).await {
                    if request.starts_with("GET /watch") {
                        write(&mut raw.stream, "HTTP/1.1 200 OK\r\n\r\nevent").await;
                    } else {
                        write(&mut raw.stream, NEXT).await;
                        if keep_alive == KeepAlive::None {
                            return apiserver::close(raw.stream).await;
                        }
                    }
                }
            });
        let upstream = upstream.start().await;
        let proxy = world
            .proxy(upstream.address())
            .timeouts(|timeouts| timeouts.upstream_idle = std::time::Duration::from_millis(400))
            .start();
        let client = proxy.client().http2().await;
        let mut watch = client.open("https://kube.test/watch").await.unwrap();
        assert_eq!(data(&mut watch).await.unwrap(), "event");
        let next = client.get("https://kube.test/next").await.unwrap();
        assert_eq!(next.text(), "next");
        let end = upstream.connection_end(1);
        within(
            &format!("the end of the idle connection, {keep_alive:?}"),
            end,
        )
        .await;
        assert!(
            upstream.connections()[0].is_open(),
            "the watch is still open"
        );
    }
}
