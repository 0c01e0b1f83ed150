//! systemd: sockets of a socket unit, and notifications of readiness, reloads and the watchdog.
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

/// Returns the sockets of a socket unit; none if there is no such unit.
///
/// # Errors
///
/// When one of the sockets does not listen on TCP.
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

/// Notifies systemd that the proxy listens, or that a reload has finished.
pub(super) fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// Notifies systemd that a reload has begun. [`ready`] must follow.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => log_result(Err(error)),
    }
}

/// Notifies systemd that the proxy is stopping.
pub(super) fn stopping() {
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("draining: waiting for open requests"),
    ]);
}

/// Feeds the systemd watchdog, if there is one, while every worker is responsive.
pub(super) async fn feed_watchdog(heartbeats: Heartbeats) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return pending().await;
    };
    let interval = (limit / 3).max(MIN_INTERVAL);
    let mut seen = heartbeats.now();
    loop {
        sleep(interval).await;
        let now = heartbeats.now();
        // systemd decides when the proxy has been silent for too long.
        let stalled = stalled_workers(&now, &seen);
        for worker in &stalled {
            error!(worker, "worker heartbeat stopped");
        }
        if stalled.is_empty() {
            notify(&[NotifyState::Watchdog]);
        }
        seen = now;
    }
}

/// The numbers of the running workers that have recorded no heartbeat since they were last `seen`.
fn stalled_workers(now: &[Heartbeat], seen: &[Heartbeat]) -> Vec<usize> {
    let workers = now.iter().zip(seen).enumerate();
    let stalled =
        workers.filter(|(_, (now, seen))| matches!(now, Heartbeat::Running(_)) && now == seen);
    stalled.map(|(worker, _)| worker).collect()
}

fn notify(states: &[NotifyState<'_>]) {
    log_result(sd_notify::notify(states));
}

fn log_result(result: io::Result<()>) {
    match result {
        Ok(()) => debug!("systemd notified"),
        Err(error) => warn!(error = %error_chain(&error), "systemd notification failed"),
    }
}

/// Longer than the interval between two heartbeats, so that each check sees a new one.
const MIN_INTERVAL: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{Duration, Heartbeat, stalled_workers};

    #[test]
    fn watchdog_detects_stalled_worker() {
        let at = Instant::now();
        let old = Heartbeat::Running(at);
        let new = Heartbeat::Running(at + Duration::from_secs(1));
        let (starting, ended) = (Heartbeat::Starting, Heartbeat::Ended);
        assert!(stalled_workers(&[new, new], &[old, old]).is_empty());
        assert_eq!(stalled_workers(&[new, old], &[old, old]), [1]);
        assert!(stalled_workers(&[starting, starting], &[starting, starting]).is_empty());
        assert!(stalled_workers(&[new, starting], &[starting, starting]).is_empty());
        assert!(stalled_workers(&[new, ended], &[old, ended]).is_empty());
    }
}
