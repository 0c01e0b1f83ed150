//! The response body as the client gets it: passed through frame by frame, counted for the log.
//!
//! A body that was cut upstream ends in an error, never in an end: hyper then closes without the last
//! chunk, or resets the stream.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{self, Frame, SizeHint};
use tracing::warn;

use super::{
    Downstream,
    access_log::AccessLog,
    headers,
    watch::{Events, Watch},
};
use crate::{
    hosts::PeerAddr,
    text::error_chain,
    upstream::{DownloadError, ResponseBody},
};

/// The body of one response.
#[derive(Debug)]
pub struct Body {
    content: Content,
    log: Option<Box<AccessLog>>,
}

/// The apiserver's response was cut.
///
/// Without a source, because hyper resets the stream with the code of the first HTTP/2 error in the
/// chain, and some clients take `NO_ERROR` and `CANCEL` for the end of a whole body. Without one it is
/// `INTERNAL_ERROR`. Regression: tests/it `a_response_that_is_cut_never_looks_complete_over_http2`.
#[derive(Debug, thiserror::Error)]
#[error("the response was cut")]
pub struct Cut;

#[derive(Debug)]
enum Content {
    /// What the proxy itself says.
    Own(Full<Bytes>),
    /// What the apiserver says, and to whom.
    Upstream(ResponseBody, PeerAddr),
    /// Likewise, and it may end between two events.
    Watch(Box<Watch>, PeerAddr),
}

impl Body {
    /// A body that the proxy wrote itself.
    pub(super) fn full(content: Bytes) -> Self {
        Self {
            content: Content::Own(Full::new(content)),
            log: None,
        }
    }

    /// A body that comes from the apiserver and goes to `client`.
    pub(super) fn upstream(body: ResponseBody, client: PeerAddr) -> Self {
        Self {
            content: Content::Upstream(body, client),
            log: None,
        }
    }

    /// The events of a watch; they end between two of them once the drain begins.
    pub(super) fn watch(body: ResponseBody, events: Events, downstream: &Downstream) -> Self {
        let watch = Watch::new(body, events, &downstream.drain);
        Self {
            content: Content::Watch(watch, downstream.peer),
            log: None,
        }
    }

    /// Counts and logs the request when the body has ended or is dropped.
    pub(super) fn set_log(&mut self, log: Box<AccessLog>) {
        self.log = Some(log);
    }
}

impl body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        let (frame, client) = match &mut this.content {
            Content::Own(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                let frame = frame.map(|frame| frame.map_err(|never| match never {}));
                (frame, None)
            }
            Content::Upstream(body, client) => {
                (ready!(Pin::new(body).poll_frame(cx)), Some(*client))
            }
            Content::Watch(watch, client) => (ready!(watch.poll_frame(cx)), Some(*client)),
        };
        let mut frame = frame.map(|frame| {
            frame.map_err(|error: DownloadError| {
                warn!(client.address = client.map(tracing::field::display), error = %error_chain(&error), "response cut");
                Cut
            })
        });
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::rewrite_trailers(trailers);
        }
        if let Some(log) = &mut this.log {
            match &frame {
                Some(Ok(frame)) => log.sent(frame.data_ref().map_or(0, Bytes::len)),
                Some(Err(Cut)) => log.aborted(),
                None => log.completed(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(body) => body.is_end_stream(),
            Content::Upstream(body, _) => body.is_end_stream(),
            Content::Watch(watch, _) => watch.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(body) => body.size_hint(),
            Content::Upstream(body, _) => body.size_hint(),
            Content::Watch(watch, _) => watch.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // hyper drops a body without asking for its end once nothing more can come.
        if body::Body::is_end_stream(self)
            && let Some(log) = &mut self.log
        {
            log.completed();
        }
    }
}
