//! The tools of the attacker: connections from its own address, raw frames, and floods that end by themselves.

use std::{collections::BTreeMap, io, pin::Pin, sync::Arc, time::Duration};

use bytes::{Buf as _, BytesMut};
use standin::{
    client::{Client, Http2, TlsConnection},
    frames::{ACK, END_HEADERS, Frame, FrameTap, PREFACE, encode_fields, kind},
    upstream::Upstream,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    apiserver::Counts,
    stage::{ATTACKER, HOST, Size, Stage},
};

/// An attack runs to its end and says what became of its connections.
pub(crate) type Attack = fn(Attacker) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What every attack needs.
#[derive(Clone)]
pub(crate) struct Attacker {
    pub(crate) client: Client,
    /// The same client, once for each balancer.
    clients: Vec<Client>,
    pub(crate) admin: std::net::SocketAddr,
    pub(crate) counts: Arc<Counts>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) size: Size,
    /// When an attack ends that lasts as long as it may.
    pub(crate) end: Instant,
}

/// What became of the attacker's connections.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) connections: usize,
    pub(crate) closed: usize,
    /// The longest time from opening to the end of one that the proxy closed.
    pub(crate) slowest: Duration,
    pub(crate) notes: Vec<String>,
    /// What must not happen.
    pub(crate) faults: Vec<String>,
    /// GOAWAY codes and how often each came.
    codes: BTreeMap<u32, usize>,
}

impl Outcome {
    /// Counts a connection that was closed after this time, or is open.
    pub(crate) fn connection(&mut self, closed: Option<Duration>) {
        self.connections += 1;
        if let Some(closed) = closed {
            self.closed += 1;
            self.slowest = self.slowest.max(closed);
        }
    }

    pub(crate) fn wire(&mut self, wire: &Wire) {
        self.connection(wire.ended);
        if let Some(code) = wire.seen.goaway {
            *self.codes.entry(code).or_default() += 1;
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.closed += other.closed;
        self.slowest = self.slowest.max(other.slowest);
        self.notes.extend(other.notes);
        self.faults.extend(other.faults);
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(crate) fn fault(&mut self, fault: impl Into<String>) {
        if self.faults.len() < 20 {
            self.faults.push(fault.into());
        }
    }

    /// Adds the GOAWAY codes to the notes.
    pub(crate) fn with_codes(mut self) -> Self {
        let name = |code: &u32| match code {
            0 => "NO_ERROR".to_owned(),
            1 => "PROTOCOL_ERROR".to_owned(),
            11 => "ENHANCE_YOUR_CALM".to_owned(),
            code => format!("code {code}"),
        };
        let codes: Vec<String> = self
            .codes
            .iter()
            .map(|(code, count)| format!("GOAWAY {} {count}", name(code)))
            .collect();
        self.notes.extend(codes);
        self
    }
}

impl Attacker {
    pub(crate) fn new(stage: &Stage, size: Size, seconds: f64) -> Self {
        Self {
            client: stage.client(ATTACKER),
            clients: stage.clients(ATTACKER),
            admin: stage.admin(),
            counts: Arc::clone(stage.counts()),
            upstream: Arc::clone(stage.upstream()),
            size,
            end: Instant::now() + Duration::from_secs_f64(seconds),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    pub(crate) async fn tcp(&self) -> io::Result<TcpStream> {
        self.client.tcp().await
    }

    pub(crate) async fn tls(&self, alpn: &str) -> io::Result<TlsConnection> {
        self.client.clone().alpn(&[alpn]).connect().await
    }

    /// An HTTP/2 connection with a library, which shows statuses. `None` if the proxy does not accept it in time.
    pub(crate) async fn http2(&self) -> Option<Http2> {
        let attacker = self.clone();
        let connecting = tokio::spawn(async move {
            let tls = attacker.tls("h2").await.ok()?;
            Some(Http2::new(tls).await)
        });
        // A wait that takes too long panics in its task.
        connecting.await.ok().flatten()
    }

    /// An HTTP/2 connection whose preface and SETTINGS with this initial window are about to be sent.
    pub(crate) async fn wire(&self, window: Option<u32>) -> io::Result<Wire> {
        Ok(Wire::new(self.tls("h2").await?, window))
    }

    /// Runs this on `count` connections at once, each in a task, and adds their outcomes up. The balancers take turns.
    pub(crate) async fn on_each<F>(
        &self,
        count: usize,
        attack: impl Fn(Self, usize) -> F,
    ) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        let mut outcome = Outcome::default();
        for number in 0..count {
            let attacker = Self {
                client: self.clients[number % self.clients.len()].clone(),
                ..self.clone()
            };
            tasks.spawn(attack(attacker, number));
        }
        let mut late = 0;
        while let Some(one) = tasks.join_next().await {
            // A connection that the proxy does not accept in time ends its task; the attack continues with the others.
            match one {
                Ok(one) => outcome.add(one),
                Err(_) => late += 1,
            }
        }
        if late > 0 {
            outcome.note(format!("{late} connections were not accepted in time"));
        }
        outcome
    }

    /// Runs this again and again until the attack is over.
    pub(crate) async fn again<F>(&self, attack: impl Fn(Self) -> F) -> Outcome
    where
        F: Future<Output = Outcome>,
    {
        let mut outcome = Outcome::default();
        while !self.is_over() {
            outcome.add(attack(self.clone()).await);
            sleep(REST).await;
        }
        outcome
    }
}

/// The pause after a connection that the proxy closed, so that a flood of frames is no flood of handshakes.
const REST: Duration = Duration::from_millis(100);

/// The pseudo-fields of a request, with a token if it has one.
pub(crate) fn fields<'a>(
    method: &'a str,
    path: &'a str,
    authorization: Option<&'a str>,
) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "https"),
        (":authority", HOST),
        (":path", path),
    ];
    fields.extend(authorization.map(|value| ("authorization", value)));
    fields
}

/// The credential that the apiserver accepts from the attacker.
pub(crate) const TOKEN: Option<&str> = Some("Bearer attacker");

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl Into<bytes::Bytes>) -> Vec<u8> {
    Frame {
        kind,
        flags,
        stream,
        payload: payload.into(),
    }
    .encode()
}

/// HEADERS with these fields, without compression.
pub(crate) fn headers(stream: u32, fields: &[(&str, &str)], flags: u8) -> Vec<u8> {
    frame(
        kind::HEADERS,
        END_HEADERS | flags,
        stream,
        encode_fields(fields),
    )
}

/// What the proxy sent on a connection.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) goaway: Option<u32>,
    /// Response heads, and trailers.
    pub(crate) heads: usize,
    pub(crate) data_frames: usize,
    /// Streams that it reset, by code.
    pub(crate) resets: BTreeMap<u32, usize>,
}

/// A raw HTTP/2 connection. One task writes and reads it.
pub(crate) struct Wire {
    read: ReadHalf<TlsConnection>,
    write: WriteHalf<TlsConnection>,
    tap: FrameTap,
    pending: BytesMut,
    space: Vec<u8>,
    opened: Instant,
    /// Acknowledges SETTINGS and PING, as a client does that wants to stay.
    pub(crate) answers: bool,
    pub(crate) seen: Seen,
    /// How long it lasted, if the proxy has closed it.
    pub(crate) ended: Option<Duration>,
}

impl Wire {
    fn new(tls: TlsConnection, window: Option<u32>) -> Self {
        const INITIAL_WINDOW_SIZE: u16 = 4;
        let (read, write) = split(tls);
        let settings = window.map_or_else(Vec::new, |window| {
            [
                &INITIAL_WINDOW_SIZE.to_be_bytes()[..],
                &window.to_be_bytes(),
            ]
            .concat()
        });
        let mut pending = BytesMut::from(PREFACE);
        pending.extend_from_slice(&frame(kind::SETTINGS, 0, 0, settings));
        Self {
            read,
            write,
            tap: FrameTap::from_server(),
            pending,
            space: vec![0; 4096],
            opened: Instant::now(),
            answers: true,
            seen: Seen::default(),
            ended: None,
        }
    }

    /// Adds bytes that [`pump`](Self::pump) and [`wait`](Self::wait) send.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Writes what `next` returns, at most once per `pace`, and reads, until the connection or the time ends.
    pub(crate) async fn pump(
        &mut self,
        mut next: impl FnMut(&Seen) -> Option<Vec<u8>>,
        pace: Duration,
        until: Instant,
    ) {
        let mut due = Instant::now();
        while self.ended.is_none() && Instant::now() < until {
            if self.pending.is_empty() && Instant::now() >= due {
                due = Instant::now() + pace;
                if let Some(bytes) = next(&self.seen) {
                    self.pending.extend_from_slice(&bytes);
                }
            }
            self.turn(due.min(until)).await;
        }
    }

    /// Sends what is left and reads, until `is_done`, the end of the connection, or this time. Returns `is_done`.
    pub(crate) async fn wait(&mut self, is_done: impl Fn(&Seen) -> bool, until: Instant) -> bool {
        while self.ended.is_none()
            && Instant::now() < until
            && !(is_done(&self.seen) && self.pending.is_empty())
        {
            self.turn(until).await;
        }
        is_done(&self.seen)
    }

    /// One write or read, or nothing until this time.
    async fn turn(&mut self, until: Instant) {
        // A write in steps, so that the other branch can run between them.
        let outcome = tokio::select! {
            read = self.read.read(&mut self.space) => read.and_then(|count| {
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.tap.feed(&self.space[..count]).iter().for_each(|frame| take(frame, &mut self.seen, self.answers.then_some(&mut self.pending)));
                Ok(())
            }),
            written = self.write.write(&self.pending), if !self.pending.is_empty() => match written {
                Ok(count) => {
                    self.pending.advance(count);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            () = sleep_until(until), if self.pending.is_empty() || until > Instant::now() => Ok(()),
        };
        if outcome.is_err() {
            self.ended.get_or_insert_with(|| self.opened.elapsed());
        }
    }

    /// Does nothing but read until the connection ends, or this time.
    pub(crate) async fn until_end(&mut self, until: Instant) {
        self.wait(|_| false, until).await;
    }
}

fn take(frame: &Frame, seen: &mut Seen, answer: Option<&mut BytesMut>) {
    match frame.kind {
        kind::GOAWAY => seen.goaway = frame.error_code(),
        kind::HEADERS => seen.heads += 1,
        kind::DATA => seen.data_frames += 1,
        kind::RST_STREAM => {
            *seen
                .resets
                .entry(frame.error_code().unwrap_or_default())
                .or_default() += 1
        }
        kind::SETTINGS | kind::PING if !frame.has(ACK) => {
            if let Some(pending) = answer {
                let payload = if frame.kind == kind::PING {
                    frame.payload.clone()
                } else {
                    bytes::Bytes::new()
                };
                pending.extend_from_slice(&self::frame(frame.kind, ACK, 0, payload));
            }
        }
        _ => {}
    }
}

/// Waits until the proxy closes this connection. `None` if it has not done so at this time.
pub(crate) async fn end_of(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    until: Instant,
) -> Option<Duration> {
    let begun = Instant::now();
    let mut space = [0; 4096];
    loop {
        match timeout_at(until, stream.read(&mut space)).await {
            Ok(Ok(0) | Err(_)) => return Some(begun.elapsed()),
            Ok(Ok(_)) => {}
            Err(_) => return None,
        }
    }
}

/// Writes these bytes and flushes them. Returns whether the proxy took them.
pub(crate) async fn write(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    bytes: &[u8],
    until: Instant,
) -> bool {
    let writing = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    matches!(timeout_at(until, writing).await, Ok(Ok(())))
}

/// Writes `bytes` one by one, one per `pace`, until the proxy closes this connection. Returns how long it took. `None`
/// if it is open at `until`.
pub(crate) async fn write_slowly(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite,
    bytes: &[u8],
    pace: Duration,
    until: Instant,
) -> Option<Duration> {
    let begun = Instant::now();
    let (mut read, mut sent) = split(stream);
    let writing = async {
        for byte in bytes {
            if sent.write_all(&[*byte]).await.is_err() || sent.flush().await.is_err() {
                break;
            }
            sleep(pace).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        closed = end_of(&mut read, until) => closed.map(|_| begun.elapsed()),
        () = writing => None,
    }
}
