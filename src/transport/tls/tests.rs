//! What passes between our side and a session of rustls with buffers, and how much memory stays in use.

use std::{
    future::Future,
    io::{Read as _, Write as _},
    pin::pin,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use rustls_pki_types::ServerName;
use standin::pki::{Ca, provider};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

const NAME: &str = "kube.test";

/// The settings of both sides.
struct Settings {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Settings {
    /// The server sends records with at most this many bytes.
    fn new(version: &'static SupportedProtocolVersion, record: Option<usize>) -> Self {
        let ca = Ca::new("ca");
        let identity = ca.server(&[NAME]);
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain.clone(), identity.key())
            .unwrap();
        server.max_fragment_size = record;
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(ca.roots())
            .with_no_client_auth();
        Self {
            server: Arc::new(server),
            client: Arc::new(client),
        }
    }

    fn client(&self) -> ClientConnection {
        ClientConnection::new(Arc::clone(&self.client), name()).unwrap()
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).unwrap()
}

async fn sockets() -> (PacedSocket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let far = far.unwrap().0;
    far.set_nodelay(true).unwrap();
    (PacedSocket::new(near.unwrap()), far)
}

/// The other end: a session of rustls with buffers, whose bytes the test moves.
struct Peer<C> {
    tcp: TcpStream,
    session: C,
    /// Bytes per write to the socket.
    cut: usize,
    received: Vec<u8>,
}

impl<C, D> Peer<C>
where
    C: std::ops::DerefMut<Target = rustls::ConnectionCommon<D>>,
{
    fn new(tcp: TcpStream, session: C) -> Self {
        Self {
            tcp,
            session,
            cut: usize::MAX,
            received: Vec::new(),
        }
    }

    /// What this side has to send.
    fn pending(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    async fn send_pending(&mut self) {
        let bytes = self.pending();
        for piece in bytes.chunks(self.cut) {
            self.tcp.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    }

    /// Reads once, and replies. `false` at the end of the stream.
    async fn turn(&mut self) -> bool {
        self.send_pending().await;
        let mut bytes = vec![0; 64 * 1024];
        let length = self.tcp.read(&mut bytes).await.unwrap();
        let mut bytes = &bytes[..length];
        while !bytes.is_empty() {
            self.session.read_tls(&mut bytes).unwrap();
            self.session.process_new_packets().unwrap();
            // An error means that nothing has come.
            self.session.reader().read_to_end(&mut self.received).ok();
        }
        self.send_pending().await;
        length > 0
    }

    async fn handshake(&mut self) {
        while self.session.is_handshaking() {
            assert!(self.turn().await, "the peer left");
        }
        self.send_pending().await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(16 * 1024) {
            self.session.writer().write_all(piece).unwrap();
            self.send_pending().await;
        }
    }

    async fn read(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            assert!(self.turn().await, "the peer left");
        }
        let rest = self.received.split_off(length);
        std::mem::replace(&mut self.received, rest)
    }
}

/// A server of ours and a client of rustls.
async fn server_of(settings: &Settings, cut: usize) -> (ClientStream, Peer<ClientConnection>) {
    let (near, far) = sockets().await;
    let mut far = Peer::new(far, settings.client());
    far.cut = cut;
    let accepting = async {
        let mut hello = ClientHelloReader::new(near);
        hello.read().await.unwrap();
        hello.accept(Arc::clone(&settings.server)).await.unwrap()
    };
    let (near, ()) = tokio::join!(accepting, far.handshake());
    (near, far)
}

/// A client of ours and a server of rustls.
async fn client_of(settings: &Settings, cut: usize) -> (ServerStream, Peer<ServerConnection>) {
    let (near, far) = sockets().await;
    let session = ServerConnection::new(Arc::clone(&settings.server)).unwrap();
    let mut far = Peer::new(far, session);
    far.cut = cut;
    let connecting = TlsStream::connect(near, Arc::clone(&settings.client), name());
    let (near, ()) = tokio::join!(connecting, far.handshake());
    (near.unwrap(), far)
}

type ClientStream = TlsStream<UnbufferedServerConnection>;
type ServerStream = TlsStream<UnbufferedClientConnection>;

/// Bytes that differ from their neighbours.
fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| at.to_le_bytes()[at % 3]).collect()
}

/// Bytes of memory that the buffers of a stream hold.
fn held<C>(stream: &TlsStream<C>) -> usize {
    stream.incoming.capacity() + stream.opened.capacity() + stream.outgoing.capacity()
}

fn resumes(state: &CommonState) -> bool {
    state.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
}

/// Whether a read waits.
async fn waits<C: TlsSession>(stream: &mut TlsStream<C>) -> bool {
    let mut byte = [0; 1];
    let mut reading = pin!(stream.read(&mut byte));
    std::future::poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx).is_pending())).await
}

async fn exchange<C, D, E>(near: &mut TlsStream<C>, far: &mut Peer<D>)
where
    C: TlsSession,
    D: std::ops::DerefMut<Target = rustls::ConnectionCommon<E>>,
{
    for length in [1, 5_000, 16 * 1024, 16 * 1024 + 1, 300_000] {
        let sent = text(length);
        let mut received = vec![0; length];
        let (read, ()) = tokio::join!(near.read_exact(&mut received), far.write(&sent));
        read.unwrap();
        assert!(received == sent, "{length} bytes came as others");
        let writing = async {
            near.write_all(&sent).await.unwrap();
            near.flush().await.unwrap();
        };
        let ((), received) = tokio::join!(writing, far.read(length));
        assert!(received == sent, "{length} bytes went as others");
        assert!(waits(near).await);
        assert_eq!(held(near), 0, "a silent stream holds no buffer");
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_and_leave_no_buffer() {
    for version in [&TLS12, &TLS13] {
        let settings = Settings::new(version, None);
        // The later ones resume the session of the first one.
        for is_resumed in [false, true] {
            let (mut near, mut far) = server_of(&settings, usize::MAX).await;
            exchange(&mut near, &mut far).await;
            assert_eq!(resumes(near.state()), is_resumed);
            let (mut near, mut far) = client_of(&settings, usize::MAX).await;
            exchange(&mut near, &mut far).await;
            assert!(resumes(near.state()));
        }
    }
}

/// Each byte comes on its own, and each message in several records.
#[tokio::test]
async fn handshake_may_come_in_pieces_of_any_size() {
    for version in [&TLS12, &TLS13] {
        let settings = Settings::new(version, Some(64));
        for cut in [1, 7] {
            let (mut near, mut far) = server_of(&settings, cut).await;
            far.cut = usize::MAX;
            far.write(b"ping").await;
            let mut received = [0; 4];
            near.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"ping");
            let (mut near, mut far) = client_of(&settings, cut).await;
            far.write(b"pong").await;
            near.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"pong");
            assert!(waits(&mut near).await);
            assert_eq!(held(&near), 0);
        }
    }
}

/// rustls remembers where in the buffer the first part of a message is, also while something else is written.
#[tokio::test]
async fn write_between_two_parts_of_a_ticket_is_sent() {
    let settings = Settings::new(&TLS13, Some(64));
    let (near, far) = sockets().await;
    let session = ServerConnection::new(Arc::clone(&settings.server)).unwrap();
    let mut far = Peer::new(far, session);
    let connecting = TlsStream::connect(near, Arc::clone(&settings.client), name());
    let handshake = async {
        let mut bytes = vec![0; 64 * 1024];
        while far.session.is_handshaking() {
            far.send_pending().await;
            let length = far.tcp.read(&mut bytes).await.unwrap();
            far.session.read_tls(&mut &bytes[..length]).unwrap();
            far.session.process_new_packets().unwrap();
        }
        far.pending()
    };
    let (near, tickets) = tokio::join!(connecting, handshake);
    let mut near = near.unwrap();
    for piece in tickets.chunks(50) {
        far.tcp.write_all(piece).await.unwrap();
        near.socket.tcp().readable().await.unwrap();
        assert!(waits(&mut near).await);
        near.write_all(b"ping").await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read(4).await, b"ping");
    }
    far.write(b"pong").await;
    let mut received = [0; 4];
    near.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"pong");
    assert!(waits(&mut near).await);
    assert_eq!(held(&near), 0);
}

#[tokio::test]
async fn new_keys_of_the_peer_are_used() {
    let settings = Settings::new(&TLS13, None);
    let (mut near, mut far) = server_of(&settings, usize::MAX).await;
    for _ in 0..3 {
        far.session.refresh_traffic_keys().unwrap();
        exchange(&mut near, &mut far).await;
    }
}

#[tokio::test]
async fn end_without_close_notify_is_an_error() {
    for version in [&TLS12, &TLS13] {
        let settings = Settings::new(version, None);
        for says_goodbye in [true, false] {
            let (mut near, mut far) = server_of(&settings, usize::MAX).await;
            far.write(b"last words").await;
            if says_goodbye {
                far.session.send_close_notify();
                far.send_pending().await;
            }
            far.tcp.shutdown().await.unwrap();
            let mut received = Vec::new();
            let ended = near.read_to_end(&mut received).await;
            assert_eq!(received, b"last words");
            if says_goodbye {
                ended.unwrap();
                // The other half is still open.
                near.write_all(b"ping").await.unwrap();
                near.shutdown().await.unwrap();
                assert_eq!(far.read(4).await, b"ping");
                assert!(!far.turn().await);
                assert_eq!(far.session.reader().read(&mut [0; 1]).unwrap(), 0);
            } else {
                assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
                near.read(&mut [0; 1]).await.unwrap_err();
            }
        }
    }
}

/// The peer gets an alert, and nothing else is sent to it.
#[tokio::test]
async fn forged_record_ends_the_stream_with_an_alert() {
    let settings = Settings::new(&TLS13, None);
    let (mut near, mut far) = server_of(&settings, usize::MAX).await;
    far.write(b"genuine").await;
    far.session.writer().write_all(b"forged").unwrap();
    let mut bytes = far.pending();
    *bytes.last_mut().unwrap() ^= 1;
    far.tcp.write_all(&bytes).await.unwrap();
    let mut received = vec![0; 7];
    near.read_exact(&mut received).await.unwrap();
    assert_eq!(received, b"genuine");
    let error = near.read(&mut [0; 1]).await.unwrap_err();
    let cause = error.get_ref().unwrap().downcast_ref();
    assert_eq!(cause, Some(&rustls::Error::DecryptError));
    near.write_all(b"more").await.unwrap_err();
    near.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    far.tcp.read_to_end(&mut bytes).await.unwrap();
    far.session.read_tls(&mut &bytes[..]).unwrap();
    let alert = far.session.process_new_packets().unwrap_err();
    let expected = rustls::AlertDescription::BadRecordMac;
    assert_eq!(alert, rustls::Error::AlertReceived(expected));
}

#[tokio::test]
async fn peer_that_refuses_the_handshake_is_told_why() {
    let settings = Settings::new(&TLS13, None);
    let decode_error = u8::from(rustls::AlertDescription::DecodeError);
    let alert = [21, 3, 3, 0, 2, 2, decode_error];
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], &alert[..]),
        (&[22, 3, 1, 0, 5, 1, 0, 0, 1, 0], &alert),
        // rustls has no alert for a message that is too long.
        (&[22, 3, 1, 0, 4, 1, 2, 0, 0], &[]),
    ] {
        let (near, mut far) = sockets().await;
        far.write_all(bytes).await.unwrap();
        let mut hello = ClientHelloReader::new(near);
        hello.read().await.unwrap();
        let refused = hello.accept(Arc::clone(&settings.server)).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, expected, "{bytes:?}");
    }
}

/// A peer that does not read makes the writer wait.
#[tokio::test]
async fn bytes_for_a_peer_that_does_not_read_are_bounded() {
    let settings = Settings::new(&TLS13, None);
    let (mut near, mut far) = server_of(&settings, usize::MAX).await;
    let sent = text(32 << 20);
    let length = sent.len();
    let mut most = 0;
    let mut at = 0;
    std::future::poll_fn(|cx| {
        near.begin_turn();
        while at < length
            && let Poll::Ready(taken) = Pin::new(&mut near).poll_write(cx, &sent[at..])
        {
            at += taken.unwrap();
            most = most.max(near.outgoing.len());
            near.begin_turn();
        }
        Poll::Ready(())
    })
    .await;
    assert!(at < length);
    assert!(most <= 2 * MAX_OUTGOING, "{most} bytes wait");
    let writing = async {
        near.write_all(&sent[at..]).await.unwrap();
        near.flush().await.unwrap();
    };
    let ((), received) = tokio::join!(writing, far.read(length));
    assert!(received == sent);
}

#[test]
fn client_hello_is_complete_with_its_last_byte() {
    let settings = Settings::new(&TLS13, None);
    let mut whole = Vec::new();
    settings.client().write_tls(&mut whole).unwrap();
    let message = &whole[5..];
    let in_records = |size: usize| {
        let records = message.chunks(size).map(|piece| {
            let [high, low] = u16::try_from(piece.len()).unwrap().to_be_bytes();
            [&[22, 3, 1, high, low][..], piece].concat()
        });
        records.collect::<Vec<_>>().concat()
    };
    for size in [1, 3, 4, 5, 100, message.len()] {
        let bytes = in_records(size);
        for step in [1, 1000] {
            let mut progress = handshake::HelloProgress::default();
            for length in (0..bytes.len()).step_by(step) {
                assert!(
                    !progress.is_complete(&bytes[..length]),
                    "{length} in {size}"
                );
            }
            assert!(progress.is_complete(&bytes));
        }
    }
    // What rustls refuses does not wait for more.
    for refused in [
        &[23, 3, 1, 0, 1][..],
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 0, 4, 1, 1, 0, 0],
        &[22, 3, 1, 0, 1, 1].repeat(MAX_INCOMING / 6 + 1),
    ] {
        assert!(handshake::HelloProgress::default().is_complete(refused));
    }
}
