//! How a proxy that was told to stop is made to do so faster.

use tokio_util::sync::CancellationToken;

/// Clones tell the same proxy.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    no_delay: CancellationToken,
    now: CancellationToken,
}

impl Stop {
    /// Closes the sockets at once, without `timeouts.drainDelay`. Before the proxy was told to stop it
    /// only takes note of this.
    pub fn without_delay(&self) {
        self.no_delay.cancel();
    }

    /// Ends everything now, whatever runs. Before the proxy was told to stop it only takes note of this.
    pub fn now(&self) {
        self.no_delay.cancel();
        self.now.cancel();
    }

    pub(super) async fn wants_no_delay(&self) {
        self.no_delay.cancelled().await;
    }

    pub(super) async fn wants_the_end(&self) {
        self.now.cancelled().await;
    }
}
