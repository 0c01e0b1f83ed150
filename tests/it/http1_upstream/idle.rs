//! Connections on which nothing runs while their client does: a kubelet watches for days and asks now and
//! then.

use standin::within;

use super::apiserver::{self, NEXT, read_request, write};
use crate::proxy::{World, data};

/// How an apiserver ends what is idle, if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It waits longer than the proxy keeps a connection.
    Long,
    /// It ends its side at once, as it does after 90 s, and waits for the proxy's.
    None,
}

#[tokio::test]
async fn a_connection_that_its_client_asks_nothing_more_on_is_closed() {
    for patience in [Patience::Long, Patience::None] {
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
                        if patience == Patience::None {
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
            &format!("the end of the idle connection, {patience:?}"),
            end,
        )
        .await;
        assert!(upstream.connections()[0].is_open(), "the watch goes on");
    }
}
