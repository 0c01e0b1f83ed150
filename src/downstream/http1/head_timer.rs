//! How long a connection waits for the head of its next request.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::Service;
use crate::config::Timeouts;

/// The deadline of the current wait. One timer serves all waits, and it is set only when a wait needs it.
#[derive(Debug)]
pub(super) struct HeadTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// `None` until the connection has to wait for the client.
    wait: Option<HeadWait>,
    deadline: Instant,
    is_first: bool,
    /// Whether `deadline` is the deadline that the drain sets.
    drains: bool,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadWait {
    /// The rest of a head that has begun, or the first head.
    Head,
    /// The first byte of another request.
    Idle,
}

impl HeadTimer {
    /// Begins with the wait for the first head, whose time runs from the handshake and not from its first byte.
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        Self {
            sleep: None,
            wait: Some(HeadWait::Head),
            deadline: Instant::now() + timeouts.request_head,
            is_first: true,
            drains: false,
        }
    }

    /// Begins the wait for one more head.
    pub(super) fn restart(&mut self) {
        if !std::mem::take(&mut self.is_first) {
            self.wait = None;
            self.drains = false;
        }
    }

    /// Ready when the client took too long. Returns what the connection waited for. `has_begun` says whether a part of
    /// the head has arrived.
    pub(super) fn poll(
        &mut self,
        has_begun: bool,
        service: &Service,
        cx: &mut Context<'_>,
    ) -> Poll<HeadWait> {
        if !has_begun && service.downstream.connected.place().is_closing() {
            return Poll::Ready(HeadWait::Idle);
        }
        let timeouts = &service.downstream.settings.timeouts;
        let wait = match self.wait {
            Some(HeadWait::Head) => HeadWait::Head,
            None | Some(HeadWait::Idle) if has_begun => {
                self.begin(HeadWait::Head, timeouts.request_head)
            }
            Some(HeadWait::Idle) => HeadWait::Idle,
            None => self.begin(HeadWait::Idle, timeouts.client_idle),
        };
        if wait == HeadWait::Idle && !self.drains && service.downstream.drain.has_begun() {
            self.drains = true;
            self.begin(HeadWait::Idle, QUIET);
        }
        let deadline = self.deadline;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // A timer that is set too early is set again when it fires: most requests come long before it does.
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(wait);
            }
            sleep.as_mut().reset(deadline);
        }
    }

    fn begin(&mut self, wait: HeadWait, limit: Duration) -> HeadWait {
        self.wait = Some(wait);
        self.deadline = Instant::now() + limit;
        wait
    }
}

/// After the drain has begun, how long a client may take to send its next request. The head of the last response
/// did not say `close`, so a client such as a reflector may send a request just as it receives the last byte.
/// More than a round trip.
const QUIET: Duration = Duration::from_millis(250);
