//! The watches and tunnels that are open, and who holds them.
//!
//! Bounded: beyond so many on one worker they are counted and no longer listed.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::Counters;
use crate::text::escape;

/// A response that goes on for as long as its client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongLived {
    /// A watch.
    Watch,
    /// `logs -f`; counted among the watches.
    Log,
    /// exec, attach or port-forward.
    Tunnel,
}

/// Who holds a watch or tunnel, and on what. Nothing of it is a secret: no header but the user agent, no
/// query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// What is held.
    pub kind: LongLived,
    /// The client.
    pub client: SocketAddr,
    /// What the client calls itself; cut to a sane length.
    pub user_agent: Box<str>,
    /// Such as `pods` or `pods/exec`, as the client wrote it.
    pub resource: Box<str>,
    /// Empty for all of them, or for what is in none.
    pub namespace: Box<str>,
    /// Empty for many at once.
    pub name: Box<str>,
    /// When it began.
    pub since: Instant,
}

impl StreamInfo {
    /// Text of a client for a person to read: without what a terminal acts on, and not endless.
    #[must_use]
    pub fn text(of_client: &str) -> Box<str> {
        escape(of_client, MOST_CHARS).to_string().into()
    }
}

/// All that are open on one worker.
#[derive(Debug, Default)]
pub(super) struct OpenStreams {
    watches: AtomicU64,
    tunnels: AtomicU64,
    next: AtomicU64,
    held: Mutex<HashMap<u64, StreamInfo>>,
}

/// One that is open, until dropped.
#[derive(Debug)]
pub struct OpenStream {
    counts: Arc<Counters>,
    number: u64,
    kind: LongLived,
}

impl OpenStream {
    /// Counts one in and notes who holds it.
    #[must_use]
    pub fn new(counts: &Arc<Counters>, holder: StreamInfo) -> Self {
        let open = &counts.open;
        let kind = holder.kind;
        let number = open.next.fetch_add(1, Ordering::Relaxed);
        open.gauge(kind).fetch_add(1, Ordering::Relaxed);
        let mut held = open.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() < MOST_HELD {
            held.insert(number, holder);
        }
        drop(held);
        Self {
            counts: Arc::clone(counts),
            number,
            kind,
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let open = &self.counts.open;
        open.gauge(self.kind).fetch_sub(1, Ordering::Relaxed);
        let mut held = open.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.number);
        // A burst of watches does not keep its room for ever.
        if held.capacity() > 64 && held.len() * 4 < held.capacity() {
            held.shrink_to_fit();
        }
    }
}

impl OpenStreams {
    pub(super) fn watches(&self) -> u64 {
        self.watches.load(Ordering::Relaxed)
    }

    pub(super) fn tunnels(&self) -> u64 {
        self.tunnels.load(Ordering::Relaxed)
    }

    pub(super) fn list(&self, into: &mut Vec<StreamInfo>) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        into.extend(held.values().cloned());
    }

    fn gauge(&self, kind: LongLived) -> &AtomicU64 {
        match kind {
            LongLived::Watch | LongLived::Log => &self.watches,
            LongLived::Tunnel => &self.tunnels,
        }
    }
}

/// Characters of a client's text that are kept.
pub(super) const MOST_CHARS: usize = 160;
/// Watches and tunnels of one worker that are listed; about a kilobyte each at the very most.
const MOST_HELD: usize = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(kind: LongLived) -> StreamInfo {
        StreamInfo {
            kind,
            client: "192.0.2.1:1".parse().unwrap(),
            user_agent: StreamInfo::text("kubectl/v1.36"),
            resource: "pods".into(),
            namespace: "default".into(),
            name: "".into(),
            since: Instant::now(),
        }
    }

    #[test]
    fn what_is_open_is_listed_until_it_ends() {
        let counts = Arc::new(Counters::default());
        let list = || {
            let mut list = Vec::new();
            counts.open.list(&mut list);
            list.len()
        };
        let watch = OpenStream::new(&counts, holder(LongLived::Watch));
        let log = OpenStream::new(&counts, holder(LongLived::Log));
        let tunnel = OpenStream::new(&counts, holder(LongLived::Tunnel));
        assert_eq!((counts.open.watches(), counts.open.tunnels()), (2, 1));
        assert_eq!(list(), 3);
        drop((watch, tunnel));
        assert_eq!((counts.open.watches(), counts.open.tunnels()), (1, 0));
        assert_eq!(list(), 1);
        drop(log);
        assert_eq!(list(), 0);
    }

    #[test]
    fn beyond_the_bound_they_are_counted_and_not_listed() {
        let counts = Arc::new(Counters::default());
        let many: Vec<_> = (0..MOST_HELD + 10)
            .map(|_| OpenStream::new(&counts, holder(LongLived::Watch)))
            .collect();
        let mut list = Vec::new();
        counts.open.list(&mut list);
        assert_eq!(list.len(), MOST_HELD);
        assert_eq!(counts.open.watches(), (MOST_HELD + 10) as u64);
        drop(many);
        assert_eq!(counts.open.watches(), 0);
    }

    #[test]
    fn text_of_a_client_is_plain_and_short() {
        let text = StreamInfo::text(&format!("a\u{1b}[2J\nb{}", "x".repeat(10_000)));
        assert!(text.starts_with("a\\u{1b}[2J\\nbxxx"), "{text}");
        assert_eq!(text.chars().count(), MOST_CHARS + 1);
    }
}
