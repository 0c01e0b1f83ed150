//! The record of everything that reached the stand-in, with functions that wait for an entry.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Version};
use rustls::ProtocolVersion;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::{
    frames::{Frame, kind},
    within,
};

/// One TCP connection, from accept to its end.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Its index in order of arrival, from 0.
    pub id: usize,
    /// The address of the peer.
    pub peer: SocketAddr,
    /// The server name that the client sent.
    pub sni: Option<String>,
    /// The protocols that the client offered, in its order; `None` without the extension.
    pub alpn_offered: Option<Vec<String>>,
    /// The negotiated protocol.
    pub alpn: Option<String>,
    /// The TLS version; `None` until the handshake completes.
    pub tls_version: Option<ProtocolVersion>,
    /// Whether the handshake resumed an earlier session.
    pub resumed: bool,
    /// The client's certificate chain; empty if the client sent none.
    pub client_certificates: Vec<CertificateDer<'static>>,
    /// The number of decrypted bytes received, requests and everything else.
    pub bytes_received: usize,
    /// The number of requests on it.
    pub requests: usize,
    /// HTTP/2 frames received that are neither DATA nor HEADERS, in order, at most [`MAX_FRAMES`].
    pub frames: Vec<Frame>,
    /// How it ended; `None` while it is open.
    pub end: Option<ConnectionEnd>,
    /// Requests on it whose response has not ended.
    open_responses: usize,
}

/// The record keeps at most this many HTTP/2 frames of a connection.
pub const MAX_FRAMES: usize = 10_000;
/// The record keeps at most this many bytes of a body.
pub const MAX_BODY: usize = 8 << 20;

impl Connection {
    /// The number of pings that the client sent, without acknowledgements.
    #[must_use]
    pub fn pings(&self) -> usize {
        self.frames
            .iter()
            .filter(|frame| frame.kind == kind::PING && !frame.has(crate::frames::ACK))
            .count()
    }

    /// The streams that the client reset, with their codes.
    #[must_use]
    pub fn resets(&self) -> Vec<(u32, u32)> {
        let resets = self
            .frames
            .iter()
            .filter(|frame| frame.kind == kind::RST_STREAM);
        resets
            .filter_map(|frame| Some((frame.stream, frame.error_code()?)))
            .collect()
    }

    /// Whether it is open and its handshake is complete.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.end.is_none() && self.tls_version.is_some()
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The handshake failed with this error of rustls, for instance the alert that arrived.
    Handshake(String),
    /// HTTP ended without an error, or the script returned.
    Clean,
    /// HTTP ended with this error.
    Broken(String),
}

/// How a request body ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyEnd {
    /// With its last byte.
    Complete,
    /// Before its last byte: the client reset the stream or closed the connection.
    Incomplete(String),
    /// The handler did not read the body to its end.
    Unread,
}

/// How a response body ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseEnd {
    /// The last byte was passed to HTTP.
    Complete,
    /// The handler aborted it.
    Aborted,
    /// The client cancelled the request or was gone.
    Cancelled,
}

/// One request as it arrived.
#[derive(Clone)]
pub struct Received {
    /// The index of its connection.
    pub connection: usize,
    /// The method.
    pub method: Method,
    /// The request target byte for byte; with HTTP/2 the field `:path`.
    pub target: String,
    /// The field `:authority`, or the authority of an absolute-form target.
    pub authority: Option<String>,
    /// The HTTP version.
    pub version: Version,
    /// The header lines. With HTTP/1.1 in wire order and spelling. With HTTP/2 the lines with the same name
    /// are together, at the position of the first of them.
    pub headers: Vec<(String, Vec<u8>)>,
    /// With HTTP/1.1: the whole head, from the method to the empty line.
    pub head: Option<Bytes>,
    index: usize,
    log: Arc<Log>,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {:?} on connection {}",
            self.method, self.target, self.version, self.connection
        )
    }
}

impl Received {
    /// Every line of this header, in order.
    #[must_use]
    pub fn lines(&self, name: &str) -> Vec<&str> {
        let same = self
            .headers
            .iter()
            .filter(|(line, _)| line.eq_ignore_ascii_case(name));
        same.map(|(_, value)| std::str::from_utf8(value).unwrap_or("(not UTF-8)"))
            .collect()
    }

    /// The first line of this header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.lines(name).first().copied()
    }

    /// Waits for the end of the body and returns how it ended.
    pub async fn body_end(&self) -> BodyEnd {
        let end = |state: &State| state.requests.get(self.index)?.body_end.clone();
        self.log.wait("the end of a request body", end).await
    }

    /// Waits for the body and returns it.
    ///
    /// # Panics
    ///
    /// When the body was not complete.
    pub async fn body(&self) -> Vec<u8> {
        assert_eq!(
            self.body_end().await,
            BodyEnd::Complete,
            "the body of {self:?}"
        );
        self.body_so_far()
    }

    /// The part of the body that has arrived so far.
    #[must_use]
    pub fn body_so_far(&self) -> Vec<u8> {
        self.log
            .read(|state| {
                state
                    .requests
                    .get(self.index)
                    .map(|request| request.body.clone())
            })
            .unwrap_or_default()
    }

    /// Waits until the response has ended and returns how.
    pub async fn response_end(&self) -> ResponseEnd {
        let end = |state: &State| state.requests.get(self.index)?.response_end.clone();
        self.log.wait("the end of a response", end).await
    }
}

#[derive(Debug, Default)]
struct Progress {
    received: Option<Received>,
    body: Vec<u8>,
    body_end: Option<BodyEnd>,
    response_end: Option<ResponseEnd>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) connections: Vec<Connection>,
    requests: Vec<Progress>,
    returned: usize,
}

/// The record itself. Every change wakes all tasks that wait for it.
#[derive(Debug)]
pub(super) struct Log {
    state: watch::Sender<State>,
    /// Whether requests and frames are kept, or only counted.
    keeps_requests: bool,
}

impl Log {
    pub(super) fn new(keeps_requests: bool) -> Self {
        Self {
            state: watch::Sender::default(),
            keeps_requests,
        }
    }

    pub(super) fn keeps_requests(&self) -> bool {
        self.keeps_requests
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.borrow())
    }

    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(change(state)));
        result.expect("send_modify calls its closure")
    }

    /// Waits until `find` returns a value, at most [`WAIT`](crate::WAIT).
    pub(super) async fn wait<T>(&self, what: &str, mut find: impl FnMut(&State) -> Option<T>) -> T {
        let mut changes = self.state.subscribe();
        let mut found = None;
        let done = changes.wait_for(|state| {
            found = find(state);
            found.is_some()
        });
        drop(
            within(what, done)
                .await
                .expect("the log outlives its readers"),
        );
        found.expect("the wait ends only after a match")
    }

    /// Waits, without a limit, until `is` returns true.
    pub(super) async fn changed_until(&self, mut is: impl FnMut(&State) -> bool) {
        drop(self.state.subscribe().wait_for(|state| is(state)).await);
    }

    pub(super) fn connected(&self, peer: SocketAddr) -> usize {
        self.update(|state| {
            let id = state.connections.len();
            state.connections.push(Connection {
                id,
                peer,
                sni: None,
                alpn_offered: None,
                alpn: None,
                tls_version: None,
                resumed: false,
                client_certificates: Vec::new(),
                bytes_received: 0,
                requests: 0,
                frames: Vec::new(),
                end: None,
                open_responses: 0,
            });
            id
        })
    }

    pub(super) fn connection(&self, id: usize, change: impl FnOnce(&mut Connection)) {
        self.update(|state| change(&mut state.connections[id]));
    }

    pub(super) fn received(self: &Arc<Self>, new: NewRequest) -> Entry {
        let connection = new.connection;
        let index = self.update(|state| {
            let index = state.requests.len();
            state.connections[connection].requests += 1;
            state.connections[connection].open_responses += 1;
            if !self.keeps_requests {
                return None;
            }
            let received = Received {
                connection,
                method: new.method,
                target: new.target,
                authority: new.authority,
                version: new.version,
                headers: new.headers,
                head: new.head,
                index,
                log: Arc::clone(self),
            };
            state.requests.push(Progress {
                received: Some(received),
                ..Progress::default()
            });
            Some(index)
        });
        Entry {
            log: Arc::clone(self),
            connection,
            index,
            is_open: Arc::new(AtomicBool::new(true)),
        }
    }

    pub(super) async fn next_request(&self) -> Received {
        let next = self.wait("a request", |state| {
            Some(state.requests.get(state.returned)?.received.clone())
        });
        let received = next.await.expect("every request was received");
        self.update(|state| state.returned += 1);
        received
    }

    pub(super) fn requests(&self) -> Vec<Received> {
        self.read(|state| {
            state
                .requests
                .iter()
                .filter_map(|request| request.received.clone())
                .collect()
        })
    }

    pub(super) fn open_responses(&self) -> usize {
        self.read(|state| open_responses(state, None))
    }
}

/// The number of requests whose response has not ended, on one connection or on all.
pub(super) fn open_responses(state: &State, connection: Option<usize>) -> usize {
    match connection {
        Some(id) => state.connections[id].open_responses,
        None => state.connections.iter().map(|one| one.open_responses).sum(),
    }
}

/// The facts of a request that is about to enter the log.
#[derive(Debug)]
pub(super) struct NewRequest {
    pub(super) connection: usize,
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) authority: Option<String>,
    pub(super) version: Version,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) head: Option<Bytes>,
}

/// The entry of one request in the log.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    log: Arc<Log>,
    connection: usize,
    /// `None` if the log only counts.
    index: Option<usize>,
    is_open: Arc<AtomicBool>,
}

impl Entry {
    pub(super) fn body(&self, data: &[u8]) {
        self.change(|request| {
            let room = MAX_BODY.saturating_sub(request.body.len()).min(data.len());
            request.body.extend_from_slice(&data[..room]);
        });
    }

    /// Records how it ended. Only the first call has an effect.
    pub(super) fn body_end(&self, end: BodyEnd) {
        self.change(|request| {
            request.body_end.get_or_insert(end);
        });
    }

    /// Records how it ended. Only the first call has an effect.
    pub(super) fn response_end(&self, end: ResponseEnd) {
        if !self.is_open.swap(false, Ordering::Relaxed) {
            return;
        }
        self.log.update(|state| {
            state.connections[self.connection].open_responses -= 1;
            if let Some(index) = self.index {
                state.requests[index].response_end = Some(end);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        if let Some(index) = self.index {
            self.log.update(|state| change(&mut state.requests[index]));
        }
    }
}
