//! A request as HTTP/1.1 carries it, and back to what it was if it was not sent.

use http::{
    HeaderMap, HeaderValue, Request, Uri, Version,
    header::{self, Entry},
    request::Parts,
};
use hyper::body::Body as _;

use crate::upstream::RequestBody;

/// What [`origin_form`] changed, for a request that has to be sent once more.
#[derive(Debug)]
pub(super) struct Original {
    uri: Uri,
    version: Version,
    coded: bool,
}

/// The same request for HTTP/1.1: path and query alone as target (RFC 9112 §3.2.1), the authority
/// in `Host`.
pub(super) fn origin_form(
    mut head: Parts,
    body: RequestBody,
) -> (Request<Box<RequestBody>>, Original) {
    let uri = std::mem::take(&mut head.uri);
    if let Some(target) = uri.path_and_query() {
        head.uri = target.clone().into();
    }
    // Said and not left to hyper, which takes a GET without a length for one without a body and drops it.
    let coded = !body.is_end_stream() && !head.headers.contains_key(header::CONTENT_LENGTH);
    if coded {
        let chunked = HeaderValue::from_static("chunked");
        head.headers.insert(header::TRANSFER_ENCODING, chunked);
    }
    if let Some(authority) = uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(header::HOST, host);
    }
    if head.version == Version::HTTP_2 {
        join_cookies(&mut head.headers);
    }
    let original = Original {
        uri,
        version: std::mem::replace(&mut head.version, Version::HTTP_11),
        coded,
    };
    (Request::from_parts(head, Box::new(body)), original)
}

impl Original {
    /// Takes back what [`origin_form`] did.
    pub(super) fn restore(self, request: Request<Box<RequestBody>>) -> (Parts, RequestBody) {
        let (mut head, body) = request.into_parts();
        head.uri = self.uri;
        head.version = self.version;
        head.headers.remove(header::HOST);
        if self.coded {
            head.headers.remove(header::TRANSFER_ENCODING);
        }
        (head, *body)
    }
}

/// Joins the `Cookie` lines that HTTP/2 may split (RFC 9113 §8.2.3) before HTTP/1.1 carries them.
fn join_cookies(headers: &mut HeaderMap) {
    let Entry::Occupied(mut crumbs) = headers.entry(header::COOKIE) else {
        return;
    };
    if crumbs.iter().nth(1).is_none() {
        return;
    }
    let mut joined = Vec::new();
    for (at, crumb) in crumbs.iter().enumerate() {
        if at > 0 {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        crumbs.insert(joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_cookie_crumbs() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "b=2"] {
            headers.append(header::COOKIE, HeaderValue::from_static(crumb));
        }
        join_cookies(&mut headers);
        assert_eq!(
            headers.get_all(header::COOKIE).iter().collect::<Vec<_>>(),
            ["a=1; b=2"]
        );
    }
}
