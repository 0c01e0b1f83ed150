//! Says when hyper has taken all of a response body.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::body::{Body, Frame, SizeHint};

use super::heads::Seen;

/// A response body on its way; tells [`Seen`] when it is dropped.
#[derive(Debug)]
pub(super) struct Sending<B> {
    body: B,
    seen: Arc<Seen>,
}

impl<B> Sending<B> {
    pub(super) fn new(body: B, seen: Arc<Seen>) -> Self {
        Self { body, seen }
    }
}

impl<B: Body + Unpin> Body for Sending<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Sending<B> {
    fn drop(&mut self) {
        self.seen.gave_all();
    }
}
