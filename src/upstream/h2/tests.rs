//! What a lost connection tells about the requests on it.

use standin::frames::{FrameConnection, kind};
use tokio::io::{DuplexStream, duplex};

use std::{future::Future, pin::pin};

use http::Request;

use super::{
    super::{RequestBody, UpstreamError, request_body::Upload},
    *,
};
use crate::transport::PlainStream;

fn no_body() -> Upload {
    Upload::without_copy(RequestBody::empty())
}

/// `SETTINGS_MAX_CONCURRENT_STREAMS`.
const MAX_STREAMS: u16 = 3;

type FarEnd = FrameConnection<DuplexStream>;

async fn connect(stream: DuplexStream, drain: &Drain) -> Result<H2Connection, h2::Error> {
    let endpoint = Arc::new(Endpoint::new(UpstreamAddr(([127, 0, 0, 1], 6443).into())));
    let batcher = WriteBatcher::new(PlainStream::new(stream));
    H2Connection::establish(batcher, endpoint, &Timeouts::default(), 100, drain).await
}

async fn connected(drain: &Drain) -> (H2Connection, FarEnd) {
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
        .exchange(&request.into_parts().0, &mut no_body(), drain)
        .await
        .unwrap_err()
}

#[tokio::test]
async fn no_stream_is_opened_before_the_settings_of_the_apiserver() {
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
async fn peer_that_closes_before_its_settings_is_an_error() {
    let drain = Drain::new();
    let (near, far) = duplex(64 * 1024);
    drop(far);
    connect(near, &drain).await.unwrap_err();
}

#[tokio::test]
async fn request_that_was_not_written_is_unprocessed() {
    let drain = Drain::new();
    let (connection, wire) = connected(&drain).await;
    drop(wire);
    // The connection was not polled since, so it has not noticed yet.
    assert!(connection.is_open());
    let error = send(&connection, &drain).await;
    assert!(matches!(error, UpstreamError::Unsent { .. }), "{error:?}");
}

#[tokio::test]
async fn request_that_was_written_may_have_been_processed() {
    let drain = Drain::new();
    let (connection, mut wire) = connected(&drain).await;
    let (error, ()) = tokio::join!(send(&connection, &drain), async {
        wire.expect(kind::HEADERS).await.unwrap();
        drop(wire);
    });
    assert!(matches!(error, UpstreamError::Lost { .. }), "{error:?}");
}

/// The windows alone would allow a hundred times the memory.
#[tokio::test]
async fn unread_one_byte_frames_end_the_connection() {
    let drain = Drain::new();
    let (connection, mut wire) = connected(&drain).await;
    let (head, ()) = Request::get("https://kube.test/")
        .body(())
        .unwrap()
        .into_parts();
    let mut upload = no_body();
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
    panic!("all frames are held in memory");
}
