//! What is taken from systemd, and what it is told when it asked to be: sockets, readiness, reloads, the
//! watchdog.
//!
//! Without systemd every function here does nothing.

use std::{convert::Infallible, future::pending, io, net::TcpListener, time::Duration};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::sleep;
use tracing::{debug, error, warn};

use crate::{
    app::AppError,
    heartbeat::{Heartbeat, Heartbeats},
    text::error_chain,
};

/// The sockets of a socket unit; none when there is no such unit.
///
/// # Errors
///
/// When one of them does not listen on TCP.
pub(super) fn inherited_sockets() -> Result<Vec<TcpListener>, AppError> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..passed.len() {
        let socket = passed
            .take_tcp_listener(number)
            .map_err(|_only_says_the_same| AppError::Inherited { number })?;
        sockets.extend(socket);
    }
    Ok(sockets)
}

/// It listens, or has reloaded.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// A reload was asked for and has begun; `ready` follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => told(Err(error)),
    }
}

/// It was told to stop.
pub(super) fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping: what runs is finished"),
    ]);
}

/// Feeds the systemd watchdog, if there is one, while every worker is responsive.
pub(super) async fn feed_watchdog(heartbeats: Heartbeats) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return pending().await;
    };
    let turn = (limit / 3).max(SHORTEST_TURN);
    let mut seen = heartbeats.now();
    loop {
        sleep(turn).await;
        let now = heartbeats.now();
        // systemd decides when that is too long.
        if all_responsive(&now, &seen) {
            tell(&[NotifyState::Watchdog]);
        } else {
            error!("a worker does not respond");
        }
        seen = now;
    }
}

/// Whether every running worker has recorded a heartbeat since it was last `seen`.
fn all_responsive(now: &[Heartbeat], seen: &[Heartbeat]) -> bool {
    let mut workers = now.iter().zip(seen);
    workers.all(|(now, seen)| !matches!(now, Heartbeat::Running(_)) || now != seen)
}

fn tell(states: &[NotifyState<'_>]) {
    told(sd_notify::notify(states));
}

fn told(told: io::Result<()>) {
    match told {
        Ok(()) => debug!("systemd was told"),
        Err(error) => warn!(error = %error_chain(&error), "systemd could not be told"),
    }
}

/// Longer than the interval between two heartbeats, so that each turn sees a new one.
const SHORTEST_TURN: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{Duration, Heartbeat, all_responsive};

    #[test]
    fn watchdog_detects_stalled_worker() {
        let at = Instant::now();
        let old = Heartbeat::Running(at);
        let new = Heartbeat::Running(at + Duration::from_secs(1));
        let (starting, ended) = (Heartbeat::Starting, Heartbeat::Ended);
        assert!(all_responsive(&[new, new], &[old, old]));
        assert!(!all_responsive(&[new, old], &[old, old]));
        assert!(all_responsive(&[starting, starting], &[starting, starting]));
        assert!(all_responsive(&[new, starting], &[starting, starting]));
        assert!(all_responsive(&[new, ended], &[old, ended]));
    }
}
