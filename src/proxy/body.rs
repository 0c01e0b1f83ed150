//! The response body that the client gets. It passes frames on as they arrive and counts their bytes.
//!
//! An incomplete body ends in an error, never in a regular end. The connection then closes without the last
//! chunk, or the stream is reset.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{self, Frame, SizeHint};

use super::{access_log::AccessLog, headers, watch::Watch};
use crate::{
    ending::{EndReason, Ending},
    http1::Upgraded,
    upstream::{DownloadError, ResponseBody},
};

/// The body of one response.
#[derive(Debug)]
pub struct Body {
    content: Content,
    /// `None` only until [`super::handle`] returns, and for tunnels.
    log: Option<Box<AccessLog>>,
}

/// The response was aborted and must not look complete.
///
/// It has no source: [`Body`] has logged the cause. Over HTTP/2 the stream is reset with `INTERNAL_ERROR`, because some
/// clients treat `NO_ERROR` and `CANCEL` as the end of a complete body. Regression: tests/it
/// `aborted_response_never_looks_complete_over_http2`.
#[derive(Debug, thiserror::Error)]
#[error("the response was aborted")]
pub struct Cut;

#[derive(Debug)]
pub(super) enum Content {
    /// Written by the proxy.
    Own(Full<Bytes>),
    /// Sent by the apiserver.
    Upstream(ResponseBody),
    /// Sent by the apiserver, and may end between two events.
    Watch(Box<Watch>),
    /// The apiserver's side of the tunnel that begins after the head of a 101. It is no body.
    Tunnel(Box<Upgraded>),
}

impl Body {
    pub(super) fn new(content: Content) -> Self {
        Self { content, log: None }
    }

    /// A body that the proxy wrote.
    pub(super) fn full(content: impl Into<Bytes>) -> Self {
        Self::new(Content::Own(Full::new(content.into())))
    }

    /// The apiserver's side of a tunnel, and the record of its request.
    pub(super) fn into_tunnel(mut self) -> Option<(Box<Upgraded>, Box<AccessLog>)> {
        let content = mem::replace(&mut self.content, Content::Own(Full::default()));
        match (content, self.log.take()) {
            (Content::Tunnel(apiserver), Some(log)) => Some((apiserver, log)),
            _ => None,
        }
    }

    /// Counts and logs the request when the body has ended or is dropped.
    pub(super) fn set_log(&mut self, log: Box<AccessLog>) {
        self.log = Some(log);
    }

    /// Notes that the client gets no more of this body, and why.
    pub(crate) fn abort(&mut self, ending: Ending) {
        if let Some(log) = &mut self.log {
            log.aborted(ending);
        }
    }

    /// Logs now that the client left before it had all of this body.
    pub(crate) fn abandon(&mut self) {
        if let Some(mut log) = self.log.take() {
            log.abandoned();
        }
    }
}

impl Body {
    fn cut(&mut self, error: &DownloadError) -> Cut {
        if let Some(log) = &mut self.log {
            log.cut(error);
        }
        Cut
    }

    /// Notes that the response ended in order.
    fn complete(&mut self) {
        let Some(log) = &mut self.log else { return };
        let ending = match &self.content {
            Content::Watch(watch) => watch.ending(),
            Content::Own(_) | Content::Upstream(_) | Content::Tunnel(_) => None,
        };
        log.completed(ending.unwrap_or_else(|| Ending::by_apiserver(EndReason::Eof)));
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
        let polled = match &mut this.content {
            Content::Own(body) => {
                let polled = Pin::new(body).poll_frame(cx);
                polled.map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Content::Upstream(body) => Pin::new(body).poll_frame(cx),
            Content::Watch(watch) => watch.poll_frame(cx),
            Content::Tunnel(_) => Poll::Ready(None),
        };
        let Poll::Ready(frame) = polled else {
            if let Some(log) = &mut this.log {
                log.release_head();
            }
            return Poll::Pending;
        };
        let mut frame = frame.map(|frame| frame.map_err(|error| this.cut(&error)));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::rewrite_trailers(trailers);
        }
        match &frame {
            Some(Ok(frame)) => {
                if let Some(log) = &mut this.log {
                    log.sent(frame.data_ref().map_or(0, Bytes::len));
                }
            }
            Some(Err(Cut)) => {}
            None => this.complete(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(body) => body.is_end_stream(),
            Content::Upstream(body) => body.is_end_stream(),
            Content::Watch(watch) => watch.is_end_stream(),
            Content::Tunnel(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(body) => body.size_hint(),
            Content::Upstream(body) => body.size_hint(),
            // It may end early, so it has no known length.
            Content::Watch(_) | Content::Tunnel(_) => SizeHint::default(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A body that reports its end is not polled for it, but dropped.
        if body::Body::is_end_stream(self) {
            self.complete();
        }
    }
}
