//! TLS on both legs, on the interface of rustls that leaves the buffers to its user.
//!
//! The other interface keeps 4 KiB per connection, however long the connection is silent. A [`TlsStream`] holds memory only
//! while it holds bytes: it reads ahead while the peer sends much, opens the records where they are, and seals into the
//! buffer that the socket then takes.

mod handshake;

use std::{
    cell::RefCell,
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use rustls::{
    CommonState,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{
        ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
        UnbufferedStatus, WriteTraffic,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

pub(crate) use handshake::ClientHelloReader;

use super::{PacedSocket, Readable, TlsWriter, turn::MAX_BYTES_PER_TURN};

thread_local! {
    /// Where this thread seals records. A buffer of each connection would have to be cleared for each write.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One side of a TLS connection, without buffers.
pub(crate) trait TlsSession: Send + Unpin {
    /// What rustls keeps for this side.
    type Data;

    /// Handles the next of these records.
    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8])
    -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// What both sides agreed on.
    fn state(&self) -> &CommonState;
}

impl TlsSession for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn state(&self) -> &CommonState {
        self
    }
}

impl TlsSession for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn state(&self) -> &CommonState {
        self
    }
}

/// A TLS connection on a socket. A client or an apiserver is at its other end.
pub(crate) struct TlsStream<C> {
    socket: PacedSocket,
    session: C,
    /// Bytes of the peer that were not opened yet.
    incoming: BytesMut,
    /// The first bytes of `incoming` that rustls has looked at: the beginning of a record, or of a message in several
    /// records. It expects to see them again, at the same place.
    looked_at: usize,
    /// Whether the last read filled all the room that it was given.
    is_bulk: bool,
    /// Bytes that were opened, and for which a read had no room.
    opened: BytesMut,
    /// Sealed bytes that wait for the socket.
    outgoing: BytesMut,
    /// Bytes of `outgoing` from which on nothing more is sealed.
    max_outgoing: usize,
    end: Option<TlsEnd>,
    /// The peer has broken TLS, and got an alert. Nothing may follow it.
    is_broken: bool,
    has_said_goodbye: bool,
}

/// Why nothing more can be read.
#[derive(Debug)]
enum TlsEnd {
    /// The peer said so, so that nothing is missing.
    CloseNotify,
    /// The error, until it was returned.
    Failed(Option<io::Error>),
}

/// What one step of a session led to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is something to send, or the state has changed.
    Moved,
    /// The peer has sent data.
    Data,
    /// rustls needs more bytes.
    NeedsMore,
    /// The peer sends no more data.
    Closed,
}

impl<C> TlsStream<C> {
    /// The socket, for its settings.
    pub(crate) fn socket(&self) -> &PacedSocket {
        &self.socket
    }
}

impl<C: TlsSession> TlsStream<C> {
    fn new(socket: PacedSocket, session: C, incoming: BytesMut) -> Self {
        Self {
            socket,
            session,
            incoming,
            looked_at: 0,
            is_bulk: false,
            opened: BytesMut::new(),
            outgoing: BytesMut::new(),
            max_outgoing: MAX_OUTGOING,
            end: None,
            is_broken: false,
            has_said_goodbye: false,
        }
    }

    /// What both sides agreed on.
    pub(crate) fn state(&self) -> &CommonState {
        self.session.state()
    }

    /// Handles the next record that has arrived. Data goes to `buf`, and to `opened` what `buf` has no room for.
    fn step(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<Step> {
        let UnbufferedStatus { mut discard, state } = self.session.process(&mut self.incoming);
        let step = match state.map_err(invalid)? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(invalid)?;
                    discard += record.discard;
                    let (now, later) = record
                        .payload
                        .split_at(record.payload.len().min(buf.remaining()));
                    buf.put_slice(now);
                    self.opened.extend_from_slice(later);
                }
                Step::Data
            }
            ConnectionState::EncodeTlsData(message) => {
                encode(message, &mut self.outgoing)?;
                Step::Moved
            }
            ConnectionState::TransmitTlsData(message) => {
                // Sent before the next wait for the peer.
                message.done();
                Step::Moved
            }
            ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Step::NeedsMore,
            ConnectionState::PeerClosed | ConnectionState::Closed => Step::Closed,
            // No config allows early data.
            ConnectionState::ReadEarlyData(_) | _ => {
                return Err(invalid(rustls::Error::General(
                    "unexpected state".to_owned(),
                )));
            }
        };
        self.incoming.advance(discard.min(self.incoming.len()));
        self.looked_at = match step {
            Step::NeedsMore => self.incoming.len(),
            // rustls lets no data and no alert come between two records of one message.
            Step::Moved | Step::Data | Step::Closed => 0,
        };
        Ok(step)
    }

    /// Opens records until there is data, and none is left of those that have arrived.
    fn open(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<Step> {
        loop {
            match self.step(buf)? {
                Step::Moved => {}
                step @ (Step::Data | Step::NeedsMore | Step::Closed) => return Ok(step),
            }
        }
    }

    /// Notes that nothing more can be read, and tells the peer why.
    fn fail(&mut self, error: io::Error, cx: &mut Context<'_>) {
        self.send_alert(cx);
        self.incoming = BytesMut::new();
        self.end = Some(TlsEnd::Failed(Some(error)));
        self.is_broken = true;
    }

    /// Sends the alert that rustls has for the peer after an error, if the socket takes it now.
    fn send_alert(&mut self, cx: &mut Context<'_>) {
        while self.session.state().wants_write() {
            let state = self.session.process(&mut self.incoming).state;
            let Ok(ConnectionState::EncodeTlsData(alert)) = state else {
                break;
            };
            if encode(alert, &mut self.outgoing).is_err() {
                break;
            }
        }
        let _sent = self.poll_send(cx);
    }

    /// Reads what the socket has, up to 64 KiB if that is much. Returns how many bytes; 0 after the peer has closed the
    /// connection.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.incoming.len() >= MAX_INCOMING {
            return Poll::Ready(Err(invalid(rustls::Error::General(
                "a message is too long".to_owned(),
            ))));
        }
        let room = if self.is_bulk {
            MAX_BYTES_PER_TURN
        } else {
            MIN_READ
        };
        let (read, is_bulk) = ready!(self.socket.poll_read(cx, &mut self.incoming, room))?;
        self.is_bulk = is_bulk;
        Poll::Ready(Ok(read))
    }

    /// Seals these bytes, and hands the records to `take`.
    fn seal<T>(
        &mut self,
        plaintext: &[u8],
        take: impl FnOnce(&mut Self, &[u8]) -> io::Result<T>,
    ) -> io::Result<T> {
        SEALED.with_borrow_mut(|room| {
            let records = plaintext.len().div_ceil(MAX_RECORD);
            let length = plaintext.len() + records * MAX_RECORD_OVERHEAD;
            if room.len() < length {
                room.resize(length, 0);
            }
            let sealed = self.write_traffic(|traffic| traffic.encrypt(plaintext, room))?;
            take(self, room.get(..sealed).unwrap_or_default())
        })
    }

    /// Lets `write` put records into a buffer. Returns how many bytes it has written.
    fn write_traffic(
        &mut self,
        write: impl FnOnce(&mut WriteTraffic<'_, C::Data>) -> Result<usize, EncryptError>,
    ) -> io::Result<usize> {
        if self.is_broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        loop {
            // Only what rustls knows already: these bytes hold no data, which a write has no place for.
            let known = self.incoming.get_mut(..self.looked_at);
            match self.session.process(known.unwrap_or_default()).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    return write(&mut traffic).map_err(io::Error::other);
                }
                Ok(ConnectionState::EncodeTlsData(message)) => encode(message, &mut self.outgoing)?,
                Ok(ConnectionState::TransmitTlsData(message)) => message.done(),
                Ok(ConnectionState::PeerClosed) => self.end = Some(TlsEnd::CloseNotify),
                Ok(_) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => return Err(invalid(error)),
            }
        }
    }

    /// Sends the sealed bytes. Ready when none is left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let sent = ready!(self.socket.poll_write(cx, &self.outgoing))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(sent);
        }
        // An empty buffer would keep its memory.
        self.outgoing = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// How many bytes may be sealed now. Pending while too many wait for the socket.
    fn poll_write_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.outgoing.len() >= self.max_outgoing {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(self.max_outgoing - self.outgoing.len()))
    }

    /// Seals these bytes, and sends what the socket takes. The rest waits in `outgoing`.
    fn write(&mut self, plaintext: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        self.seal(plaintext, |this, mut sealed| {
            if this.poll_send(cx)?.is_ready()
                && let Poll::Ready(sent) = this.socket.poll_write(cx, sealed)?
            {
                sealed = sealed.get(sent..).unwrap_or_default();
            }
            if !sealed.is_empty() {
                this.outgoing.extend_from_slice(sealed);
                // Until the socket is full, or has taken it.
                let _sent = this.poll_send(cx)?;
            }
            Ok(())
        })
    }
}

/// Puts a message of the handshake, or an alert, at the end of `outgoing`.
fn encode<D>(mut message: EncodeTlsData<'_, D>, outgoing: &mut BytesMut) -> io::Result<()> {
    let (before, mut room) = (outgoing.len(), MIN_READ);
    loop {
        outgoing.resize(before + room, 0);
        let encoded = message.encode(outgoing.get_mut(before..).unwrap_or_default());
        outgoing.truncate(before + *encoded.as_ref().unwrap_or(&0));
        match encoded {
            Ok(_) => return Ok(()),
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size }))
                if required_size > room =>
            {
                room = required_size;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// The error of a peer that breaks TLS.
fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<C> fmt::Debug for TlsStream<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl<C: TlsSession> AsyncRead for TlsStream<C> {
    /// Fills `buf` with what has arrived. An end without `close_notify` is an error: the peer may have more to say.
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if !this.opened.is_empty() {
                let now = this.opened.len().min(buf.remaining());
                buf.put_slice(this.opened.get(..now).unwrap_or_default());
                this.opened.advance(now);
            }
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            // An empty buffer would keep its memory.
            this.opened = BytesMut::new();
            let has_data = buf.filled().len() > before;
            if let Some(end) = &mut this.end {
                return Poll::Ready(match end {
                    TlsEnd::Failed(error) if !has_data => Err(error
                        .take()
                        .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
                    TlsEnd::CloseNotify | TlsEnd::Failed(_) => Ok(()),
                });
            }
            if this.incoming.len() > this.looked_at {
                match this.open(buf) {
                    Ok(Step::Closed) => {
                        this.end = Some(TlsEnd::CloseNotify);
                        this.incoming = BytesMut::new();
                    }
                    Ok(_) => {}
                    Err(error) => this.fail(error, cx),
                }
                continue;
            }
            if !this.is_bulk {
                this.free_room();
                if has_data {
                    return Poll::Ready(Ok(()));
                }
            }
            match this.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    let truncated = "the peer closed the connection without a TLS close_notify";
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, truncated);
                    this.end = Some(TlsEnd::Failed(Some(error)));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => this.end = Some(TlsEnd::Failed(Some(error))),
                Poll::Pending if has_data => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    this.free_room();
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<C> TlsStream<C> {
    /// Frees the room for reads of a peer that has sent nothing more.
    fn free_room(&mut self) {
        if self.incoming.is_empty() {
            self.incoming = BytesMut::new();
        }
    }
}

impl<C: TlsSession> AsyncWrite for TlsStream<C> {
    /// Takes as much as there is room for. Bytes that were taken may wait for a flush.
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let this = self.get_mut();
        let room = ready!(this.poll_write_room(cx))?;
        let taken = buf.get(..room).unwrap_or(buf);
        this.write(taken, cx)?;
        Poll::Ready(Ok(taken.len()))
    }

    /// The pieces share records, for which they are copied.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_write_room(cx))?.min(length);
        let mut taken = Vec::with_capacity(room);
        for buf in bufs {
            let left = room - taken.len();
            taken.extend_from_slice(buf.get(..left).unwrap_or(buf));
        }
        this.write(&taken, cx)?;
        Poll::Ready(Ok(taken.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    /// Says `close_notify`, and ends the stream to the peer.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.has_said_goodbye {
            this.has_said_goodbye = true;
            // After a failure, the peer has got the alert that says why.
            let mut alert = [0; MAX_RECORD_OVERHEAD];
            let written = this.write_traffic(|traffic| traffic.queue_close_notify(&mut alert));
            if let Some(alert) = written.ok().and_then(|length| alert.get(..length)) {
                this.outgoing.extend_from_slice(alert);
            }
        }
        ready!(this.poll_send(cx))?;
        this.socket.poll_shutdown(cx)
    }
}

impl<C: TlsSession> Readable for TlsStream<C> {
    /// TLS needs the socket only when no byte is left to open or to hand over.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.opened.is_empty() || self.end.is_some() || self.incoming.len() > self.looked_at {
            return Poll::Ready(());
        }
        let ready = self.socket.poll_readable(cx);
        if ready.is_pending() {
            self.free_room();
        }
        ready
    }

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.socket.tcp())
    }

    fn begin_turn(&mut self) {
        self.socket.begin_turn();
    }
}

impl<C: TlsSession> TlsWriter for TlsStream<C> {
    fn write_record(&mut self, plaintext: &[u8]) -> io::Result<()> {
        if self.outgoing.len() >= self.max_outgoing {
            return Err(io::Error::other("the TLS buffer is full"));
        }
        self.seal(plaintext, |this, sealed| {
            this.outgoing.extend_from_slice(sealed);
            Ok(())
        })
    }

    fn set_buffer_limit(&mut self, bytes: usize) {
        self.max_outgoing = bytes;
    }
}

/// Plaintext bytes that one TLS record carries (RFC 8446 §5.1).
const MAX_RECORD: usize = 16 * 1024;
/// What a record adds to its plaintext: 22 bytes in TLS 1.3, 29 in TLS 1.2 with AES-GCM.
const MAX_RECORD_OVERHEAD: usize = 64;
/// Room for most records while the peer sends little. Not 4 KiB: the allocator would then hand the memory of such a short-lived
/// buffer to the header buffers of h2, of which most are never written to and otherwise need no memory.
const MIN_READ: usize = 5 * 1024;
/// Bytes that may wait to be opened: a read ahead, and the 64 KiB to which rustls limits one message.
const MAX_INCOMING: usize = 2 * MAX_BYTES_PER_TURN;
/// Sealed bytes that may wait for the socket before nothing more is sealed, except below a `WriteBatcher`.
const MAX_OUTGOING: usize = 32 * 1024;

#[cfg(test)]
mod tests;
