//! HTTP/2 responses that end early, in every way. None of them looks complete to the client.

use std::sync::atomic::{AtomicUsize, Ordering};

use standin::{
    client::whole,
    frames::{END_STREAM, FrameConnection, kind},
    tcp,
    upstream::Raw,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::server::TlsStream;

use super::Arc;
use crate::proxy::World;

/// How the apiserver ends a response of which it has sent a part.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// `RST_STREAM` with this code.
    Reset(u32),
    /// GOAWAY with this code and a lower stream, then `close_notify`.
    GoAway(u32),
    /// `close_notify`.
    Close,
    /// The TCP connection is closed without `close_notify`.
    CloseWithoutNotify,
    TcpReset,
    /// `END_STREAM`, with fewer bytes than `content-length` says.
    TooShort,
    /// `END_STREAM`, with more bytes than `content-length` says.
    TooLong,
    /// Trailers with `END_STREAM`, with fewer bytes than `content-length` says.
    TooShortWithTrailers,
    /// A frame that ends the connection: DATA for stream 0.
    ConnectionError,
    /// A frame that is longer than the limit.
    TooLarge,
}

/// How much of the response arrives before.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Head,
    HeadAndHalf,
}

fn endings() -> Vec<(Sent, Ending)> {
    let codes = (0..=13).chain([0xff, u32::MAX]);
    let mut endings: Vec<Ending> = codes.map(Ending::Reset).collect();
    endings.extend([0, 2, 11].map(Ending::GoAway));
    endings.extend([
        Ending::Close,
        Ending::CloseWithoutNotify,
        Ending::TcpReset,
        Ending::TooShort,
        Ending::TooLong,
        Ending::TooShortWithTrailers,
        Ending::ConnectionError,
        Ending::TooLarge,
    ]);
    let both = |ending| [(Sent::Head, ending), (Sent::HeadAndHalf, ending)];
    endings.into_iter().flat_map(both).collect()
}

async fn respond(
    wire: &mut FrameConnection<TlsStream<TcpStream>>,
    stream: u32,
    (sent, ending): (Sent, Ending),
) -> std::io::Result<()> {
    let head = [(":status", "200"), ("content-length", "8")];
    let has_length = matches!(
        ending,
        Ending::TooShort | Ending::TooLong | Ending::TooShortWithTrailers
    );
    // With a length, the client itself could see that the response is too short.
    let head = if has_length { &head[..] } else { &head[..1] };
    wire.headers(stream, head, 0).await?;
    if matches!(sent, Sent::HeadAndHalf) {
        wire.data(stream, "half", 0).await?;
    }
    match ending {
        Ending::Reset(code) => wire.reset(stream, code).await,
        Ending::GoAway(code) => wire.goaway(stream.saturating_sub(2), code).await,
        Ending::Close | Ending::CloseWithoutNotify | Ending::TcpReset => Ok(()),
        Ending::TooShort => wire.data(stream, "x", END_STREAM).await,
        Ending::TooLong => wire.data(stream, "123456789", END_STREAM).await,
        Ending::TooShortWithTrailers => wire.headers(stream, &[("x", "y")], END_STREAM).await,
        Ending::ConnectionError => wire.data(0, "half", 0).await,
        Ending::TooLarge => wire.data(stream, vec![0; (1 << 24) - 1], 0).await,
    }
}

/// Responds to the first request with the first of the endings, and so on.
async fn serve(raw: Raw, endings: &[(Sent, Ending)], next: &AtomicUsize) {
    let mut wire = FrameConnection::server(raw.stream, &[]).await.unwrap();
    while let Ok(head) = wire.expect(kind::HEADERS).await {
        let Some(ending) = endings.get(next.fetch_add(1, Ordering::Relaxed)) else {
            return;
        };
        // The proxy may close the connection before the last byte.
        respond(&mut wire, head.stream, *ending).await.ok();
        match ending.1 {
            Ending::Close | Ending::GoAway(_) => {
                let mut tls = wire.into_inner();
                tls.shutdown().await.ok();
                return;
            }
            Ending::CloseWithoutNotify => return,
            Ending::TcpReset => return tcp::reset(wire.into_inner().into_inner().0),
            Ending::Reset(_)
            | Ending::TooShort
            | Ending::TooLong
            | Ending::TooShortWithTrailers
            | Ending::ConnectionError
            | Ending::TooLarge => {}
        }
    }
}

/// Case 24. Each response has a 200; the client never sees a complete one.
#[tokio::test]
async fn http2_response_that_ends_early_never_looks_complete() {
    let endings: Arc<[_]> = endings().into();
    assert!(endings.len() >= 51, "{} ways", endings.len());
    let next = Arc::new(AtomicUsize::new(0));
    let world = World::new();
    let upstream = {
        let (endings, next) = (Arc::clone(&endings), Arc::clone(&next));
        world.apiserver().raw(move |raw| {
            let (endings, next) = (Arc::clone(&endings), Arc::clone(&next));
            async move { serve(raw, &endings, &next).await }
        })
    };
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    for (number, ending) in endings.iter().enumerate() {
        let client = proxy.client().http2().await;
        let response = match client.open("https://kube.test/").await {
            Ok(response) => whole(response).await,
            Err(error) => Err(error),
        };
        if let Ok(response) = response {
            // The reset overtook the head, so the proxy could still say so.
            assert_eq!(response.status, 502, "{ending:?}: {}", response.text());
        }
        let sent = next.load(Ordering::Relaxed);
        assert_eq!(sent, number + 1, "{ending:?}: the request is sent once");
    }
}
