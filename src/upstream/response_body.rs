//! The body of a response, from either version of HTTP.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use hyper::body::{Body, Frame, SizeHint};

use super::{
    DownloadError, Upgraded,
    h1::{H1Connection, H1Response},
    h2::H2Response,
    lease::LeasedH1,
};

/// The body of one upstream response. Dropping it before its end cancels the exchange upstream at once:
/// `RST_STREAM(CANCEL)` over HTTP/2, closing the connection over HTTP/1.1.
#[derive(Debug)]
pub struct ResponseBody(ProtocolBody);

#[derive(Debug)]
enum ProtocolBody {
    /// Boxed, because it holds its connection; an HTTP/2 stream would waste that memory.
    H1(Box<H1Response<LeasedH1>>),
    H2(H2Response),
}

impl ResponseBody {
    pub(super) fn from_h1(response: Response<H1Response<LeasedH1>>) -> Response<Self> {
        response.map(|body| Self(ProtocolBody::H1(Box::new(body))))
    }

    pub(super) fn from_h2(response: Response<H2Response>) -> Response<Self> {
        response.map(|body| Self(ProtocolBody::H2(body)))
    }

    /// The stream of bytes after a 101; `None` for every other response.
    #[must_use]
    pub fn into_upgraded(self) -> Option<Upgraded> {
        match self.0 {
            ProtocolBody::H1(body) => body
                .into_connection()
                .and_then(LeasedH1::into_connection)
                .map(H1Connection::into_upgraded),
            ProtocolBody::H2(_) => None,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        match &mut self.0 {
            ProtocolBody::H1(body) => body.poll_frame(cx).map_err(DownloadError::H1),
            ProtocolBody::H2(body) => body.poll_frame(cx).map_err(DownloadError::H2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            ProtocolBody::H1(body) => body.is_end_stream(),
            ProtocolBody::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            ProtocolBody::H1(body) => body.size_hint(),
            ProtocolBody::H2(body) => body.size_hint(),
        }
    }
}
