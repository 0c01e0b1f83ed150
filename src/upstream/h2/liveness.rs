//! Keeps a connection running, and ends it when its peer falls silent.

use std::{future::poll_fn, pin::Pin, time::Duration};

use bytes::Bytes;
use h2::{Ping, PingPong, client::Connection};
use tokio::time::{sleep_until, timeout};

use super::{Heard, Overheard};
use crate::transport::{Cork, Seal};

/// How a connection came to an end that nobody asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    #[error("HTTP/2 failed")]
    Failed(#[from] h2::Error),
    #[error("a ping stayed unanswered for {0:?}")]
    Silent(Duration),
}

/// Runs the connection until it ends or leaves a ping unanswered; its streams then fail at once.
pub(super) async fn drive<S>(
    connection: Box<Connection<Overheard<Cork<S>>, Bytes>>,
    cork: &Cork<S>,
    mut ping: PingPong,
    heard: &Heard,
    interval: Duration,
    limit: Duration,
) -> Result<(), ConnectionEnd>
where
    S: Seal,
{
    let liveness = async {
        loop {
            // Whatever comes in proves the peer alive, so a busy connection is never pinged.
            while heard.last_read().elapsed() < interval {
                sleep_until(heard.last_read() + interval).await;
            }
            match timeout(limit, ping.ping(Ping::opaque())).await {
                Ok(Ok(_pong)) => {}
                Ok(Err(error)) => return ConnectionEnd::from(error),
                Err(_elapsed) => return ConnectionEnd::Silent(limit),
            }
        }
    };
    let mut connection = Pin::new(connection);
    tokio::select! {
        ended = poll_fn(|cx| cork.drive(connection.as_mut(), cx)) => Ok(ended?),
        end = liveness => Err(end),
    }
}
