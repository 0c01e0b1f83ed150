//! Replaces `CANCEL` by `INTERNAL_ERROR` in what the HTTP/2 server writes.
//!
//! h2 sends `RST_STREAM(CANCEL)` for a response that is dropped before its end, and hyper gives no way to choose
//! another code. Some clients, hyper among them, take `CANCEL` for the end of a complete body.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::AsyncWrite;

/// The writing half of a server's HTTP/2 connection.
#[derive(Debug)]
pub(super) struct ResetCode<S> {
    stream: S,
    frames: FrameCursor,
}

/// Where in a frame the next byte is.
#[derive(Debug, Default, Clone, Copy)]
struct FrameCursor {
    header: [u8; FRAME_HEADER],
    /// Bytes of the frame header that are known.
    filled: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

impl FrameCursor {
    /// Moves past these bytes. Calls `on_code` with the position of the last byte of each reset's code.
    fn advance(&mut self, bytes: &[u8], mut on_code: impl FnMut(usize)) {
        let mut at = 0;
        while at < bytes.len() {
            if let Some(slot) = self.header.get_mut(self.filled) {
                let Some(byte) = bytes.get(at) else { return };
                *slot = *byte;
                self.filled += 1;
                at += 1;
                if self.filled == FRAME_HEADER {
                    let [high, middle, low, ..] = self.header;
                    self.payload =
                        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                }
            } else {
                let part = self.payload.min(bytes.len() - at);
                at += part;
                self.payload -= part;
                let [_, _, _, kind, ..] = self.header;
                if self.payload == 0 && kind == RST_STREAM {
                    on_code(at - 1);
                }
            }
            if self.filled == FRAME_HEADER && self.payload == 0 {
                self.filled = 0;
            }
        }
    }
}

impl<S> ResetCode<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            frames: FrameCursor::default(),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ResetCode<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let (mut frames, mut before) = (this.frames, 0);
        let mut cancels = Vec::new();
        for buf in bufs {
            frames.advance(buf, |at| {
                if buf.get(at) == Some(&CANCEL) {
                    cancels.push(before + at);
                }
            });
            before += buf.len();
        }
        let written = if cancels.is_empty() {
            Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
        } else {
            let mut bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            for at in cancels {
                if let Some(code) = bytes.get_mut(at) {
                    *code = INTERNAL_ERROR;
                }
            }
            Pin::new(&mut this.stream).poll_write(cx, &bytes)
        };
        // `before` is the length of all buffers now.
        if matches!(written, Poll::Ready(Ok(count)) if count == before) {
            this.frames = frames;
        } else if let Poll::Ready(Ok(mut left)) = written {
            for buf in bufs {
                let part = left.min(buf.len());
                this.frames
                    .advance(buf.get(..part).unwrap_or_default(), |_| {});
                left -= part;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const FRAME_HEADER: usize = 9;
/// A frame type (RFC 9113 §6.4). Its payload is the code, and h2 knows no code above 255.
const RST_STREAM: u8 = 3;
/// Codes (RFC 9113 §7).
const INTERNAL_ERROR: u8 = 2;
const CANCEL: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    #[tokio::test]
    async fn cancel_becomes_internal_error_in_pieces_of_any_size() {
        let written = |code: u8| {
            [
                // Data that looks like a reset.
                frame(0, &frame(RST_STREAM, &[0, 0, 0, CANCEL])),
                frame(RST_STREAM, &[0, 0, 0, code]),
                frame(0, &[]),
                frame(RST_STREAM, &[0, 0, 0, 5]),
                frame(RST_STREAM, &[0, 0, 0, code]),
            ]
            .concat()
        };
        let bytes = written(CANCEL);
        for size in 1..=bytes.len() {
            let mut stream = ResetCode::new(Vec::new());
            for piece in bytes.chunks(size) {
                tokio::io::AsyncWriteExt::write_all(&mut stream, piece)
                    .await
                    .unwrap();
            }
            assert_eq!(
                stream.stream,
                written(INTERNAL_ERROR),
                "in pieces of {size}"
            );
        }
    }

    /// Takes one byte at a time.
    struct Narrow(Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.extend(buf.first());
            Poll::Ready(Ok(buf.len().min(1)))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn cancel_is_replaced_when_writes_are_partial() {
        let bytes = [frame(0, b"data"), frame(RST_STREAM, &[0, 0, 0, CANCEL])].concat();
        let mut stream = ResetCode::new(Narrow(Vec::new()));
        tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes)
            .await
            .unwrap();
        let expected = [
            frame(0, b"data"),
            frame(RST_STREAM, &[0, 0, 0, INTERNAL_ERROR]),
        ]
        .concat();
        assert_eq!(stream.stream.0, expected);
    }
}
