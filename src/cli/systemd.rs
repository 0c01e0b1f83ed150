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
    app::{AppError, Beats},
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

/// Tells the watchdog, if there is one, that the workers live, for as long as all of them do.
pub(super) async fn keep_watchdog_quiet(beats: Beats) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return pending().await;
    };
    let turn = (limit / 3).max(SHORTEST_TURN);
    let mut seen = beats.now();
    loop {
        sleep(turn).await;
        let now = beats.now();
        // systemd decides when that is too long.
        if all_turn(&now, &seen) {
            tell(&[NotifyState::Watchdog]);
        } else {
            error!("a worker does not respond");
        }
        seen = now;
    }
}

/// Whether no worker hangs: each has beaten since it was last `seen`, or not begun to, for names are still
/// looked up.
fn all_turn(now: &[u64], seen: &[u64]) -> bool {
    now.iter()
        .zip(seen)
        .all(|(now, seen)| *now == 0 || now != seen)
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

/// Workers beat once a second; a shorter turn would find none.
const SHORTEST_TURN: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use super::all_turn;

    #[test]
    fn a_worker_hangs_that_has_begun_to_beat_and_does_no_more() {
        assert!(all_turn(&[2, 3], &[1, 2]));
        assert!(!all_turn(&[2, 2], &[1, 2]));
        assert!(all_turn(&[0, 0], &[0, 0]), "not begun");
        assert!(all_turn(&[1, 0], &[0, 0]), "not all begun");
    }
}
