//! The rest of one response: its frames, and what its end means.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use hyper::body::{Frame, SizeHint};
use tokio::task::AbortHandle;

use super::stream::Usage;

/// The rest of a response, and of the upload when the response overtook it.
#[derive(Debug)]
pub(in crate::upstream) struct Answer {
    pub(super) recv: RecvStream,
    pub(super) data_ended: bool,
    pub(super) usage: Usage,
    pub(super) upload: Option<AbortHandle>,
}

impl Answer {
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
                Some(Err(error)) => return Poll::Ready(self.failed(error).map(Err)),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.recv.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) => {
                self.ended();
                None
            }
            Err(error) => self.failed(error).map(Err),
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

    /// What a stream error means for the body: `RST_STREAM(NO_ERROR)` behind the end of the response is
    /// how a server says "this was the whole response, stop sending" (RFC 9113 §8.1); everywhere else
    /// it is a cut. h2 gives the same error for both.
    fn failed(&mut self, error: h2::Error) -> Option<h2::Error> {
        let told_to_stop =
            error.is_remote() && error.is_reset() && error.reason() == Some(h2::Reason::NO_ERROR);
        let watched = self.usage.watched;
        if told_to_stop && watched.is_some_and(|id| self.usage.state.heard.has_ended(id)) {
            None
        } else {
            Some(error)
        }
    }
}

impl Drop for Answer {
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
