//! Finds out that the peer of an HTTP/2 connection is no longer there: only the response to a ping shows that it is.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, sleep_until, timeout};

/// When a peer is pinged that sends nothing.
#[derive(Debug, Clone)]
pub(crate) struct PingTimer {
    pub(crate) interval: Duration,
    /// The time that the peer has to respond.
    pub(crate) timeout: Duration,
    pub(crate) last_read: LastRead,
}

impl PingTimer {
    /// Returns once the peer has not responded to a ping, or the connection has failed.
    pub(crate) async fn run(self, mut ping: PingPong) -> Http2Error {
        loop {
            // Any byte received proves the peer alive, so a busy connection is never pinged.
            while self.last_read.instant().elapsed() < self.interval {
                sleep_until(self.last_read.instant() + self.interval).await;
            }
            match timeout(self.timeout, ping.ping(Ping::opaque())).await {
                Ok(Ok(_pong)) => {}
                Ok(Err(error)) => return Http2Error::from(error),
                Err(_elapsed) => return Http2Error::PingTimeout(self.timeout),
            }
        }
    }
}

/// When the peer last sent bytes.
#[derive(Debug, Clone)]
pub(crate) struct LastRead(Arc<Mutex<Instant>>);

impl LastRead {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn set(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn instant(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an HTTP/2 connection did not end in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Http2Error {
    #[error("HTTP/2 failed")]
    Failed(#[from] h2::Error),
    #[error("no response to a ping within {0:?}")]
    PingTimeout(Duration),
}
