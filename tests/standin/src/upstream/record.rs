//! What reached the stand-in, kept for assertions that can wait for it.

use std::{fmt, net::SocketAddr, sync::Arc};

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
    /// Its place in the order of arrival, from 0.
    pub id: usize,
    /// The address it came from.
    pub peer: SocketAddr,
    /// The server name that the client asked for.
    pub sni: Option<String>,
    /// The protocols that the client offered, in its order; none when the extension was absent.
    pub alpn_offered: Option<Vec<String>>,
    /// The protocol that was agreed.
    pub alpn: Option<String>,
    /// The TLS version; none until the handshake is done.
    pub tls_version: Option<ProtocolVersion>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// The client's certificate chain; empty when it offered none.
    pub client_certificates: Vec<CertificateDer<'static>>,
    /// Decrypted bytes received, of requests and of everything else.
    pub bytes_received: usize,
    /// Requests that began on it.
    pub requests: usize,
    /// HTTP/2 frames received that are neither DATA nor HEADERS, in order, at most [`MAX_FRAMES`].
    pub frames: Vec<Frame>,
    /// How it ended; none while it is open.
    pub end: Option<ConnectionEnd>,
}

/// More HTTP/2 frames than this are not kept.
pub const MAX_FRAMES: usize = 10_000;
/// More bytes than this of one body are not kept.
pub const MAX_BODY: usize = 8 << 20;

impl Connection {
    /// How many pings the client sent, acknowledgements not counted.
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

    /// Whether it is open and its handshake done.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.end.is_none() && self.tls_version.is_some()
    }
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The handshake did not succeed; what rustls said, such as the alert that came.
    Handshake(String),
    /// HTTP ended without an error, or the script returned.
    Clean,
    /// HTTP ended with this error.
    Broken(String),
}

/// How a request's body ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyEnd {
    /// With its last byte.
    Complete,
    /// Before its last byte: the client reset the stream or closed the connection.
    Cut(String),
    /// The closure that answers did not read to the end.
    Unread,
}

/// How a response's body ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseEnd {
    /// The last byte was handed to HTTP.
    Complete,
    /// The closure that answers broke it off.
    Aborted,
    /// The client did not want the rest, or was gone.
    Cancelled,
}

/// One request as it arrived.
#[derive(Clone)]
pub struct Received {
    /// The connection it came on.
    pub connection: usize,
    /// The method.
    pub method: Method,
    /// The request target byte for byte; with HTTP/2 the field `:path`.
    pub target: String,
    /// The field `:authority`, or the authority of an absolute-form target.
    pub authority: Option<String>,
    /// The version it came with.
    pub version: Version,
    /// The header lines. With HTTP/1.1 in wire order and spelling; with HTTP/2 the lines of one name
    /// stand together, where the first of them stood.
    pub headers: Vec<(String, Vec<u8>)>,
    /// With HTTP/1.1 the whole head, from the method to the empty line.
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
        self.log.wait("the end of a request's body", end).await
    }

    /// Waits for the body and returns it.
    ///
    /// # Panics
    ///
    /// When it did not come whole.
    pub async fn body(&self) -> Vec<u8> {
        assert_eq!(
            self.body_end().await,
            BodyEnd::Complete,
            "the body of {self:?}"
        );
        self.body_so_far()
    }

    /// What has come of the body until now.
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
    connection: usize,
    received: Option<Received>,
    body: Vec<u8>,
    body_end: Option<BodyEnd>,
    response_end: Option<ResponseEnd>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) connections: Vec<Connection>,
    requests: Vec<Progress>,
    taken: usize,
}

/// The record itself; every change wakes all tasks that wait on it.
#[derive(Debug, Default)]
pub(super) struct Log(watch::Sender<State>);

impl Log {
    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.0.borrow())
    }

    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.0.send_modify(|state| result = Some(change(state)));
        result.expect("send_modify calls its closure")
    }

    /// Waits until `find` finds something.
    pub(super) async fn wait<T>(&self, what: &str, mut find: impl FnMut(&State) -> Option<T>) -> T {
        let mut changes = self.0.subscribe();
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
        found.expect("the wait ends when something was found")
    }

    /// Waits for as long as it takes until `is` holds.
    pub(super) async fn changed_until(&self, mut is: impl FnMut(&State) -> bool) {
        drop(self.0.subscribe().wait_for(|state| is(state)).await);
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
            });
            id
        })
    }

    pub(super) fn connection(&self, id: usize, change: impl FnOnce(&mut Connection)) {
        self.update(|state| change(&mut state.connections[id]));
    }

    pub(super) fn received(self: &Arc<Self>, new: NewRequest) -> Entry {
        let index = self.update(|state| {
            let index = state.requests.len();
            state.connections[new.connection].requests += 1;
            let received = Received {
                connection: new.connection,
                method: new.method,
                target: new.target,
                authority: new.authority,
                version: new.version,
                headers: new.headers,
                head: new.head,
                index,
                log: Arc::clone(self),
            };
            let connection = new.connection;
            state.requests.push(Progress {
                connection,
                received: Some(received),
                ..Progress::default()
            });
            index
        });
        Entry {
            log: Arc::clone(self),
            index,
        }
    }

    pub(super) async fn next_request(&self) -> Received {
        let next = self.wait("a request", |state| {
            Some(state.requests.get(state.taken)?.received.clone())
        });
        let received = next.await.expect("every request was received");
        self.update(|state| state.taken += 1);
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

/// How many requests have a response that has not ended, on one connection or on all.
pub(super) fn open_responses(state: &State, connection: Option<usize>) -> usize {
    let here = |request: &&Progress| connection.is_none_or(|id| id == request.connection);
    state
        .requests
        .iter()
        .filter(here)
        .filter(|request| request.response_end.is_none())
        .count()
}

/// A request before it is in the log.
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

/// The place of one request in the log.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    log: Arc<Log>,
    index: usize,
}

impl Entry {
    pub(super) fn body(&self, data: &[u8]) {
        self.change(|request| {
            let room = MAX_BODY.saturating_sub(request.body.len()).min(data.len());
            request.body.extend_from_slice(&data[..room]);
        });
    }

    /// The first end counts.
    pub(super) fn body_end(&self, end: BodyEnd) {
        self.change(|request| {
            request.body_end.get_or_insert(end);
        });
    }

    /// The first end counts.
    pub(super) fn response_end(&self, end: ResponseEnd) {
        self.change(|request| {
            request.response_end.get_or_insert(end);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        self.log
            .update(|state| change(&mut state.requests[self.index]));
    }
}
