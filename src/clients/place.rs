//! The place of one connection: what the connection does at this moment, and the signal that asks it to end.

use std::{
    cmp::Reverse,
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{StatusCode, request::Parts};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};

use super::{BudgetCheck, Client, ClientTable, Refusal, Throttled, budget::ConnectionCredentials};
use crate::hosts::PeerAddr;

/// The place of one connection in the [`ClientTable`], until dropped.
#[derive(Debug)]
pub struct Place {
    state: Arc<PlaceState>,
    /// Counts the connection against `limits.connections`. `None` while the connection waits.
    permit: Option<OwnedSemaphorePermit>,
}

/// What the table sees of a connection.
#[derive(Debug)]
pub(super) struct PlaceState {
    table: Arc<ClientTable>,
    pub(super) client: Arc<Client>,
    pub(super) id: u64,
    accepted: Instant,
    has_permit: AtomicBool,
    /// Requests that have begun and not ended. Only the worker of the connection changes it.
    requests: AtomicU32,
    /// Microseconds from `accepted` to the end of the last request, or to the end of the wait for a place.
    idle_since: AtomicU64,
    /// Requests that have ended. Only the worker of the connection changes it.
    finished: AtomicU64,
    is_tunnel: AtomicBool,
    /// Whether the apiserver has accepted the credential of a request.
    is_authenticated: AtomicBool,
    credentials: ConnectionCredentials,
    is_closing: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// How little is lost when a connection closes; the least comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// No request runs since this time, or since the connection was accepted.
    Idle(Instant),
    /// The first request of the connection runs. The newest connection comes first.
    FirstRequest(Reverse<Instant>),
    /// A later request runs, such as a watch. The newest connection comes first.
    LaterRequest(Reverse<Instant>),
    /// A tunnel, which no client can resume. The newest comes first.
    Tunnel(Reverse<Instant>),
}

impl Place {
    /// A place with this state. Without a permit the connection has to wait for one.
    pub(super) fn new(state: Arc<PlaceState>, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { state, permit }
    }

    /// Whether the client of the connection is not known yet, so that [`Place::rebind`] has to name it.
    #[must_use]
    pub fn is_unnamed(&self) -> bool {
        self.state.table.is_unnamed(&self.state)
    }

    /// Makes this the place of a connection of `client`, whom the PROXY header names.
    ///
    /// # Errors
    ///
    /// As [`ClientTable::enter`], and when newer connections without a header have displaced this one.
    pub fn rebind(&mut self, client: PeerAddr) -> Result<(), Refusal> {
        let permit = self.permit.take();
        *self = self.state.table.name(&self.state, permit, client)?;
        Ok(())
    }

    /// Another client, for whom a request of this connection was sent.
    #[must_use]
    pub fn other_client(&self, address: IpAddr) -> Arc<Client> {
        self.state.table.client(address)
    }

    /// Whether the connection still waits because as many connections as `limits.connections` are open.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.permit.is_none()
    }

    /// Waits for a permit, so that the connection counts against `limits.connections`. Nearly every connection has its
    /// permit from the start. Returns `false` after `limit`, and when a client with fewer waiting connections takes its
    /// room to wait.
    pub async fn wait_for_permit(&mut self, limit: Duration) -> bool {
        if self.is_waiting() {
            // On the heap, because it is rare.
            let (table, prefix) = (&self.state.table, self.state.client.prefix);
            let permit = Box::pin(timeout(limit, async {
                tokio::select! {
                    permit = table.wait(prefix) => Some(permit),
                    () = self.closing() => None,
                }
            }));
            let Ok(Some(permit)) = permit.await else {
                return false;
            };
            if !table.stop_waiting(self.state.id) {
                return false;
            }
            self.permit = Some(permit);
            self.state.becomes_idle(Instant::now());
            self.state.has_permit.store(true, Ordering::Relaxed);
        }
        true
    }

    /// The client of the connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.state.client
    }

    /// Completes once another client needs this place. The connection then has to end in order and soon: nothing
    /// new may begin on it. Only one task at a time may wait.
    #[must_use]
    pub fn closing(&self) -> Closing<'_> {
        Closing {
            state: &self.state,
            registered: None,
        }
    }

    /// Whether [`Place::closing`] has completed or would complete now.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.state.is_closing.load(Ordering::Acquire)
    }

    /// Decides whether the budgets of the client let a request pass. `other` is the client if it is not that of the
    /// connection. `certificate` is the fingerprint of the client certificate that the request goes to the apiserver
    /// with; its other credentials do not count then.
    ///
    /// # Errors
    ///
    /// When a budget is used up.
    pub fn check_budget(
        &self,
        other: Option<&Client>,
        cluster: &str,
        request: &Parts,
        certificate: Option<&str>,
    ) -> Result<BudgetCheck, Throttled> {
        let state = &self.state;
        let sizes = &state.table.budgets;
        let budget = &other.unwrap_or(&state.client).budget;
        budget.check(sizes, &state.credentials, cluster, (request, certificate))
    }

    /// Notes the status code with which the apiserver has answered a request of the same client.
    pub fn answered(&self, other: Option<&Client>, check: BudgetCheck, status: StatusCode) {
        let sizes = &self.state.table.budgets;
        let credentials = &self.state.credentials;
        let budget = &other.unwrap_or(&self.state.client).budget;
        budget.answered(sizes, credentials, check, status);
        if check.is_accepted(status) {
            self.state.is_authenticated.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that a request begins.
    pub fn begin_request(&self) {
        self.state.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a request has ended at `now`.
    pub fn end_request(&self, now: Instant) {
        self.state.becomes_idle(now);
        let finished = self.state.finished();
        self.state.finished.store(finished + 1, Ordering::Relaxed);
        // Set after the time, so that no other thread treats the connection as idle since an earlier request.
        self.state.requests.fetch_sub(1, Ordering::Release);
    }

    /// Notes that the connection is a tunnel from now on.
    pub fn become_tunnel(&self) {
        self.state.is_tunnel.store(true, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Release the permit before the table entry is removed. In the other order, a waiting connection could find no
        // free permit and no connection that is about to end, and would close another connection to get a place.
        drop(self.permit.take());
        self.state.table.leave(&self.state);
    }
}

impl PlaceState {
    /// The state of a connection that was just accepted.
    pub(super) fn new(
        table: &Arc<ClientTable>,
        client: &Arc<Client>,
        id: u64,
        has_permit: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            table: Arc::clone(table),
            client: Arc::clone(client),
            id,
            accepted: Instant::now(),
            has_permit: has_permit.into(),
            requests: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            is_tunnel: AtomicBool::new(false),
            is_authenticated: AtomicBool::new(false),
            credentials: ConnectionCredentials::default(),
            is_closing: AtomicBool::new(false),
            waker: Mutex::default(),
        })
    }

    /// Requests that have ended.
    pub(super) fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    fn becomes_idle(&self, now: Instant) {
        let since_accept = now.duration_since(self.accepted).as_micros();
        let since_accept = u64::try_from(since_accept).unwrap_or(u64::MAX);
        self.idle_since.store(since_accept, Ordering::Relaxed);
    }

    /// What closing the connection would cost. `None` if it is already ending, or has no place yet.
    pub(super) fn rank(&self) -> Option<Rank> {
        if self.is_closing.load(Ordering::Relaxed) || !self.has_permit.load(Ordering::Relaxed) {
            return None;
        }
        let accepted = Reverse(self.accepted);
        let is_running = self.requests.load(Ordering::Acquire) > 0;
        let is_tunnel = self.is_tunnel.load(Ordering::Relaxed);
        if (is_running || is_tunnel) && self.is_authenticated.load(Ordering::Relaxed) {
            return None;
        }
        Some(if is_tunnel {
            Rank::Tunnel(accepted)
        } else if !is_running {
            let idle_since = self.idle_since.load(Ordering::Relaxed);
            Rank::Idle(self.accepted + Duration::from_micros(idle_since))
        } else if self.finished() == 0 {
            Rank::FirstRequest(accepted)
        } else {
            Rank::LaterRequest(accepted)
        })
    }

    /// Notes that the connection has ended. Returns whether it was asked to give up its place.
    pub(super) fn end(&self) -> bool {
        let was_asked = self.is_closing.swap(true, Ordering::Relaxed);
        was_asked && self.has_permit.load(Ordering::Relaxed)
    }

    /// Asks the connection to end.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }
}

/// See [`Place::closing`]. A connection polls it each time it wakes up, so that a poll takes no lock.
#[derive(Debug)]
pub struct Closing<'a> {
    state: &'a PlaceState,
    registered: Option<Waker>,
}

impl Future for Closing<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let is_registered = self.registered.as_ref();
        if !is_registered.is_some_and(|waker| waker.will_wake(cx.waker())) {
            let waker = cx.waker().clone();
            let mut place = self
                .state
                .waker
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *place = Some(waker.clone());
            drop(place);
            self.registered = Some(waker);
        }
        // Checked after the waker is set, so that no signal is missed.
        if self.state.is_closing.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
