//! The rest of one response: its frames, and whether it ended well.
//!
//! `RST_STREAM(NO_ERROR)` behind the end of a response is how a server says "this was the whole response,
//! stop sending" (RFC 9113 §8.1); everywhere else it is a cut. h2 tells the two apart: behind the end it
//! gives no error. Proof: tests/it `a_reset_without_error_is_an_end_only_behind_the_end`.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use hyper::body::{Frame, SizeHint};
use tokio::task::AbortHandle;

use super::stream::StreamGuard;

/// The rest of a response, and of the upload when the response overtook it.
#[derive(Debug)]
pub(in crate::upstream) struct H2Response {
    pub(super) recv: RecvStream,
    pub(super) data_ended: bool,
    pub(super) usage: StreamGuard,
    pub(super) upload: Option<AbortHandle>,
}

impl H2Response {
    pub(in crate::upstream) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The frame is handed on at once, so the window it took is free again.
                    self.recv.flow_control().release_capacity(data.len()).ok();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.recv.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) => {
                self.ended();
                None
            }
            Err(error) => Some(Err(error)),
        })
    }

    pub(in crate::upstream) fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }

    #[expect(
        clippy::unused_self,
        reason = "the length stands in the content-length field, if at all"
    )]
    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }

    fn ended(&mut self) {
        self.usage.ended_well = self.upload.as_ref().is_none_or(AbortHandle::is_finished);
    }
}

impl Drop for H2Response {
    fn drop(&mut self) {
        // A body without content is often dropped unread.
        if self.recv.is_end_stream() {
            self.ended();
        }
        if let Some(upload) = &self.upload {
            upload.abort();
        }
    }
}
