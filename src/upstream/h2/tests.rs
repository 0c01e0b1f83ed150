//! What a lost connection says about the requests on it.

use standin::frames::{FrameConnection, kind};
use tokio::io::{DuplexStream, duplex};

use std::{future::Future, pin::pin};

use http::Request;

use super::{
    super::{UpstreamError, upload::Upload},
    *,
};
use crate::transport::PlainStream;

/// `SETTINGS_MAX_CONCURRENT_STREAMS`.
const MAX_STREAMS: u16 = 3;

type Wire = FrameConnection<DuplexStream>;

async fn connect(stream: DuplexStream, drain: &Drain) -> Result<H2Connection, h2::Error> {
    let endpoint = UpstreamAddr(([127, 0, 0, 1], 6443).into());
    let batcher = WriteBatcher::new(PlainStream::new(stream));
    H2Connection::establish(batcher, endpoint, &Timeouts::default(), drain).await
}

async fn connected(drain: &Drain) -> (H2Connection, Wire) {
    let (near, far) = duplex(64 * 1024);
    let (near, far) = tokio::join!(
        connect(near, drain),
        FrameConnection::server(far, &[(MAX_STREAMS, 100)])
    );
    (near.unwrap(), far.unwrap())
}

async fn send(connection: &H2Connection, drain: &Drain) -> UpstreamError {
    let request = Request::get("https://kube.test/").body(()).unwrap();
    let stream = connection.take_stream().unwrap();
    stream
        .exchange(&request.into_parts().0, &mut Upload::empty(), drain)
        .await
        .unwrap_err()
}

#[tokio::test]
async fn opens_no_stream_before_the_apiserver_said_how_many_it_allows() {
    let drain = Drain::new();
    let (near, far) = duplex(64 * 1024);
    let mut connecting = pin!(connect(near, &drain));
    let waits = poll_fn(|cx| Poll::Ready(connecting.as_mut().poll(cx).is_pending())).await;
    assert!(waits);
    let _wire = FrameConnection::server(far, &[(MAX_STREAMS, 2)])
        .await
        .unwrap();
    let connection = connecting.await.unwrap();
    let streams = [(); 3].map(|()| connection.take_stream());
    assert_eq!(streams.map(|stream| stream.is_some()), [true, true, false]);
}

#[tokio::test]
async fn a_peer_that_ends_before_its_settings_is_no_connection() {
    let drain = Drain::new();
    let (near, far) = duplex(64 * 1024);
    drop(far);
    connect(near, &drain).await.unwrap_err();
}

#[tokio::test]
async fn a_request_that_never_left_counts_as_unprocessed() {
    let drain = Drain::new();
    let (connection, wire) = connected(&drain).await;
    drop(wire);
    // The connection has had no chance yet to notice.
    assert!(connection.is_open());
    let error = send(&connection, &drain).await;
    assert!(matches!(error, UpstreamError::Unsent { .. }), "{error:?}");
}

#[tokio::test]
async fn a_request_that_left_may_have_been_processed() {
    let drain = Drain::new();
    let (connection, mut wire) = connected(&drain).await;
    let (error, ()) = tokio::join!(send(&connection, &drain), async {
        wire.expect(kind::HEADERS).await.unwrap();
        drop(wire);
    });
    assert!(matches!(error, UpstreamError::Lost { .. }), "{error:?}");
}

/// Stream and connection window would let a hundred times the memory through.
#[tokio::test]
async fn unread_frames_of_one_byte_are_not_collected_for_ever() {
    let drain = Drain::new();
    let (connection, mut wire) = connected(&drain).await;
    let (head, ()) = Request::get("https://kube.test/")
        .body(())
        .unwrap()
        .into_parts();
    let mut upload = Upload::empty();
    let stream = connection.take_stream().unwrap();
    let (response, ()) = tokio::join!(stream.exchange(&head, &mut upload, &drain), async {
        let asked = wire.expect(kind::HEADERS).await.unwrap().stream;
        let fields = [(":status", "200")];
        wire.headers(asked, &fields, 0).await.unwrap();
    });
    let _unread = response.unwrap();
    for sent in 0..100_000 {
        if wire.data(1, "x", 0).await.is_err() {
            assert!(sent > 60_000, "{sent}");
            assert!(!connection.is_open());
            return;
        }
    }
    panic!("all of it is held");
}
