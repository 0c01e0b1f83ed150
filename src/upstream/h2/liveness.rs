//! Keeps a connection running, and ends it when its peer falls silent.

use std::{future::poll_fn, pin::Pin, time::Duration};

use bytes::Bytes;
use h2::{Ping, PingPong, client::Connection};
use tokio::time::{sleep_until, timeout};

use super::{FrameMonitor, PeerState};
use crate::transport::{TlsWriter, WriteBatcher};

/// How a connection came to an end that nobody asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("HTTP/2 failed")]
    FailedExchange(#[from] h2::Error),
    #[error("a ping was not answered within for {0:?}")]
    Silent(Duration),
}

/// Runs the connection until it ends or leaves a ping unanswered; its streams then fail at once.
pub(super) async fn drive<S>(
    connection: Box<Connection<FrameMonitor<WriteBatcher<S>>, Bytes>>,
    batcher: &WriteBatcher<S>,
    mut ping: PingPong,
    peer: &PeerState,
    interval: Duration,
    limit: Duration,
) -> Result<(), ConnectionError>
where
    S: TlsWriter,
{
    let liveness = async {
        loop {
            // Whatever comes in proves the peer alive, so a busy connection is never pinged.
            while peer.last_read().elapsed() < interval {
                sleep_until(peer.last_read() + interval).await;
            }
            match timeout(limit, ping.ping(Ping::opaque())).await {
                Ok(Ok(_pong)) => {}
                Ok(Err(error)) => return ConnectionError::from(error),
                Err(_elapsed) => return ConnectionError::Silent(limit),
            }
        }
    };
    let mut connection = Pin::new(connection);
    tokio::select! {
        ended = poll_fn(|cx| batcher.drive(connection.as_mut(), cx)) => Ok(ended?),
        end = liveness => Err(end),
    }
}
