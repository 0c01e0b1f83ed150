//! An HTTP/1.1 client that writes exact bytes and parses the response.

use std::{fmt, io};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::within;

/// One HTTP/1.1 connection.
#[derive(Debug)]
pub struct Http1<S> {
    stream: S,
    buffer: BytesMut,
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// The reason phrase.
    pub reason: String,
    /// The header lines in wire order and spelling.
    pub headers: Vec<(String, String)>,
}

/// A whole response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The head, status included.
    pub head: Head,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// The body as text, for messages and substrings.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The connection ended before the body was complete.
#[derive(Debug)]
pub struct IncompleteBody {
    /// The part of the body that arrived.
    pub received: Bytes,
    /// How the connection ended.
    pub source: io::Error,
}

impl fmt::Display for IncompleteBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "incomplete after {} bytes: {}",
            self.received.len(),
            self.source
        )
    }
}

impl Head {
    /// Every line of this header, in order.
    #[must_use]
    pub fn lines(&self, name: &str) -> Vec<&str> {
        let same = self
            .headers
            .iter()
            .filter(|(line, _)| line.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    /// The first line of this header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.lines(name).first().copied()
    }

    fn has_body(&self) -> bool {
        !matches!(self.status, 100..=199 | 204 | 304)
    }

    fn framing(&self) -> Framing {
        if self
            .header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            return Framing::Chunked;
        }
        self.header("content-length")
            .map_or(Framing::Close, |length| {
                Framing::Length(
                    length
                        .parse()
                        .unwrap_or_else(|err| panic!("content-length {length}: {err}")),
                )
            })
    }
}

enum Framing {
    Length(usize),
    Chunked,
    Close,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    /// A client on this stream.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// Writes exactly these bytes and flushes them.
    ///
    /// # Panics
    ///
    /// When the server is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes)
            .await
            .expect("the server accepts the bytes");
    }

    /// Writes exactly these bytes and flushes them.
    ///
    /// # Errors
    ///
    /// When the server is gone.
    ///
    /// # Panics
    ///
    /// When the server does not accept them in time.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within("room to write", self.stream.write_all(bytes.as_ref())).await?;
        self.stream.flush().await
    }

    /// Waits for the head of a response.
    ///
    /// # Errors
    ///
    /// When the connection ends first.
    ///
    /// # Panics
    ///
    /// When it does not arrive in time or is not a head.
    pub async fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(end) = self
                .buffer
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                return Ok(parse_head(&self.buffer.split_to(end + 4)));
            }
            self.fill().await?;
        }
    }

    /// Waits for a whole response.
    ///
    /// # Panics
    ///
    /// When it does not arrive completely and in time.
    pub async fn response(&mut self) -> Response {
        let head = self.head().await.expect("the head of a response");
        let body = if head.has_body() {
            self.body(&head).await.expect("the body of a response")
        } else {
            Bytes::new()
        };
        Response {
            status: head.status,
            head,
            body,
        }
    }

    /// Waits for the response to a HEAD request.
    ///
    /// # Panics
    ///
    /// When it does not arrive in time.
    pub async fn response_to_head(&mut self) -> Head {
        self.head().await.expect("the head of a response")
    }

    /// Sends GET with these additional header lines, each with its line end, and waits for the response.
    ///
    /// # Panics
    ///
    /// When it does not arrive completely and in time.
    pub async fn get(&mut self, host: &str, target: &str, lines: &str) -> Response {
        self.send(format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n"
        ))
        .await;
        self.response().await
    }

    /// Waits for the whole body that this head announces.
    ///
    /// # Errors
    ///
    /// When the connection ends first. A body without a length is complete only if the connection closes cleanly.
    ///
    /// # Panics
    ///
    /// When it does not arrive in time or a chunk is malformed.
    pub async fn body(&mut self, head: &Head) -> Result<Bytes, IncompleteBody> {
        let mut body = BytesMut::new();
        let outcome = match head.framing() {
            Framing::Length(length) => self
                .take(length)
                .await
                .map(|bytes| body.extend_from_slice(&bytes)),
            Framing::Chunked => loop {
                match self.chunk().await {
                    Ok(chunk) if chunk.is_empty() => break Ok(()),
                    Ok(chunk) => body.extend_from_slice(&chunk),
                    Err(err) => break Err(err),
                }
            },
            Framing::Close => loop {
                body.extend_from_slice(&self.buffer.split());
                match self.more().await {
                    Ok(0) => break Ok(()),
                    Ok(_) => {}
                    Err(err) => break Err(err),
                }
            },
        };
        match outcome {
            Ok(()) => Ok(body.freeze()),
            Err(source) => {
                body.extend_from_slice(&self.buffer.split());
                Err(IncompleteBody {
                    received: body.freeze(),
                    source,
                })
            }
        }
    }

    /// Waits for one chunk. The last chunk is empty; its trailers are discarded.
    ///
    /// # Errors
    ///
    /// When the connection ends first.
    ///
    /// # Panics
    ///
    /// When it does not arrive in time or is malformed.
    pub async fn chunk(&mut self) -> io::Result<Bytes> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
        let size = size.unwrap_or_else(|err| panic!("chunk size {line:?}: {err}"));
        if size == 0 {
            while !self.line().await?.is_empty() {}
            return Ok(Bytes::new());
        }
        let chunk = self.take(size).await?;
        assert_eq!(self.line().await?, "", "the line end after a chunk");
        Ok(chunk)
    }

    /// Waits for exactly this many bytes, without parsing them.
    ///
    /// # Errors
    ///
    /// When the connection ends first. The bytes that arrived stay in the buffer.
    ///
    /// # Panics
    ///
    /// When they do not arrive in time.
    pub async fn take(&mut self, length: usize) -> io::Result<Bytes> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        Ok(self.buffer.split_to(length).freeze())
    }

    /// Waits until the server closes the connection. Returns the bytes that arrived before the end.
    ///
    /// # Errors
    ///
    /// When the connection ends with a reset or without `close_notify`.
    ///
    /// # Panics
    ///
    /// When the server does not close it in time.
    pub async fn end(&mut self) -> io::Result<Bytes> {
        while self.more().await? > 0 {}
        Ok(self.buffer.split().freeze())
    }

    /// The underlying stream, and the bytes that were read from it but not yet returned.
    pub fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.buffer.freeze())
    }

    /// The underlying stream.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = self.buffer.split_to(end);
                self.buffer.advance(2);
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.more().await? == 0 {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(())
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        within("more bytes", self.stream.read_buf(&mut self.buffer)).await
    }
}

/// Parses the head of a response, empty line included.
///
/// # Panics
///
/// When these bytes are not a head.
#[must_use]
pub fn parse_head(bytes: &[u8]) -> Head {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let mut words = first.splitn(3, ' ');
    let (version, status, reason) = (words.next(), words.next(), words.next());
    assert!(
        version.is_some_and(|version| version.starts_with("HTTP/1.")),
        "not a response: {first:?}"
    );
    let status = status.and_then(|status| status.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(':'));
    Head {
        status: status.unwrap_or_else(|| panic!("no status: {first:?}")),
        reason: reason.unwrap_or_default().to_owned(),
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect(),
    }
}
