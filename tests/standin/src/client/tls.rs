//! A TLS connection that passes rustls one record at a time, so that a test sees the plaintext of each record.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, Read as _, Write as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::within;

/// A decrypted stream that a test can also read record by record.
#[derive(Debug)]
pub struct TlsConnection {
    tcp: TcpStream,
    tls: Box<ClientConnection>,
    incoming: BytesMut,
    records: VecDeque<Bytes>,
    outgoing: BytesMut,
    closed: bool,
}

const RECORD_HEADER_BYTES: usize = 5;

impl TlsConnection {
    pub(super) async fn handshake(
        tcp: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut this = Self {
            tcp,
            tls: Box::new(tls),
            incoming: BytesMut::new(),
            records: VecDeque::new(),
            outgoing: BytesMut::new(),
            closed: false,
        };
        while this.tls.is_handshaking() {
            poll_fn(|cx| this.poll_drain(cx)).await?;
            if this.tls.is_handshaking() {
                poll_fn(|cx| this.poll_one_record(cx)).await?;
            }
        }
        poll_fn(|cx| this.poll_drain(cx)).await?;
        Ok(this)
    }

    /// The plaintext of the next application record, or `None` after the server's `close_notify`.
    ///
    /// # Errors
    ///
    /// When the connection fails. `UnexpectedEof` means that it ended without `close_notify`.
    ///
    /// # Panics
    ///
    /// When no record arrives in time.
    pub async fn record(&mut self) -> io::Result<Option<Bytes>> {
        within("a TLS record", poll_fn(|cx| self.poll_record(cx))).await
    }

    /// The negotiated protocol.
    #[must_use]
    pub fn alpn(&self) -> Option<&str> {
        self.tls
            .alpn_protocol()
            .and_then(|name| std::str::from_utf8(name).ok())
    }

    /// The negotiated TLS version.
    #[must_use]
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.tls.protocol_version()
    }

    /// Whether the handshake resumed an earlier session.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The group of the key exchange, such as `X25519MLKEM768`.
    #[must_use]
    pub fn key_exchange(&self) -> Option<rustls::NamedGroup> {
        self.tls
            .negotiated_key_exchange_group()
            .map(rustls::crypto::SupportedKxGroup::name)
    }

    /// The server's chain, leaf first.
    #[must_use]
    pub fn server_certificates(&self) -> &[CertificateDer<'static>] {
        self.tls.peer_certificates().unwrap_or_default()
    }

    /// The underlying socket, for its addresses and options.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Closes the connection with a TCP reset and without `close_notify`.
    ///
    /// # Panics
    ///
    /// When the socket option cannot be set.
    pub fn reset(self) {
        crate::tcp::reset(self.tcp);
    }

    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if let Some(record) = self.records.pop_front() {
                return Poll::Ready(Ok(Some(record)));
            }
            if self.closed {
                return Poll::Ready(Ok(None));
            }
            ready!(self.poll_one_record(cx))?;
        }
    }

    /// Reads exactly one record from the socket and decrypts it.
    fn poll_one_record(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(length) = record_length(&self.incoming) {
                let record = self.incoming.split_to(length);
                let mut rest = &record[..];
                let state = loop {
                    // rustls reads at most 4 KiB per call.
                    self.tls.read_tls(&mut rest)?;
                    match self.tls.process_new_packets() {
                        Ok(state) if rest.is_empty() => break state,
                        Ok(_) => {}
                        Err(err) => {
                            // Sending the alert is best effort.
                            let _sent = self.poll_drain(cx);
                            return Poll::Ready(Err(io::Error::new(
                                io::ErrorKind::InvalidData,
                                err,
                            )));
                        }
                    }
                };
                self.closed |= state.peer_has_closed();
                let mut plaintext = vec![0; state.plaintext_bytes_to_read()];
                self.tls.reader().read_exact(&mut plaintext)?;
                if !plaintext.is_empty() {
                    self.records.push_back(plaintext.into());
                }
                // A key update or a ticket may need a reply; the next write sends it at the latest.
                let _sent = self.poll_drain(cx)?;
                return Poll::Ready(Ok(()));
            }
            let mut space = [0; 16 << 10];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.incoming.extend_from_slice(read.filled());
        }
    }

    /// Writes all pending output of rustls to the socket.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.tls.wants_write() {
                let mut bytes = Vec::new();
                self.tls.write_tls(&mut bytes)?;
                self.outgoing.extend_from_slice(&bytes);
            }
            if self.outgoing.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.outgoing))?;
            self.outgoing.advance(written);
        }
    }
}

/// The length of the first record, header included, if the record is complete.
fn record_length(bytes: &[u8]) -> Option<usize> {
    let [kind, _, _, high, low, ..] = bytes else {
        return None;
    };
    if !(20..=24).contains(kind) {
        // This is not TLS. rustls has the best error for it.
        return Some(bytes.len());
    }
    let length = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
    (bytes.len() >= length).then_some(length)
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut record) = ready!(self.poll_record(cx))? {
            let some = record.len().min(buf.remaining());
            buf.put_slice(&record.split_to(some));
            if !record.is_empty() {
                self.records.push_front(record);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let accepted = self.tls.writer().write(buf)?;
        // The next write or flush sends the rest.
        let _sent = self.poll_drain(cx)?;
        Poll::Ready(Ok(accepted))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    /// Sends `close_notify` and shuts down the write half of TCP.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tls.send_close_notify();
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
