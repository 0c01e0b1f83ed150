//! The fuzz bodies of this module, and the requests in the bytes of one connection for tests.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};

use super::{BodyDecoder, ChunkState, RequestHead, RequestParser, take_response_head};

/// One request as the connection of a client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedRequest {
    /// Empty if the head is malformed.
    pub method: String,
    /// As `http::Uri` writes it.
    pub target: String,
    /// The version of HTTP.
    pub version: Version,
    /// Name and value, repeated fields next to each other.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The data of the body, without its framing.
    pub body: Vec<u8>,
    /// The client may wait for a 100 before it sends the body.
    pub expects_continue: bool,
    /// The response may have trailers.
    pub accepts_trailers: bool,
    /// How the request ended.
    pub end: RequestEnd,
    /// Whether the next bytes may be another request.
    pub may_continue: bool,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestEnd {
    /// Head and body are complete.
    Complete,
    /// The bytes ended within the body.
    Incomplete,
    /// It must be refused, for this reason.
    Refused(String),
}

/// Reads the requests of one connection, with the functions that serve clients and the default limits. Stops
/// after the first one after which no other may follow. An incomplete head is no request.
#[must_use]
pub fn requests(bytes: &[u8]) -> Vec<ParsedRequest> {
    parse_requests([bytes])
}

fn parse_requests<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<ParsedRequest> {
    let mut parser = RequestParser::new(MAX_FIELDS, MAX_HEAD_BYTES);
    let (mut found, mut current) = (Vec::<ParsedRequest>::new(), None);
    let mut unread = Bytes::new();
    for piece in pieces {
        unread = [&unread, piece].concat().into();
        loop {
            let decoder = match &mut current {
                Some(decoder) => decoder,
                None => match parser.take(&mut unread) {
                    Ok(None) => break,
                    Ok(Some(head)) => {
                        let (request, decoder) = parsed_request(&head);
                        found.push(request);
                        match decoder {
                            Some(decoder) => current.insert(decoder),
                            None => return found,
                        }
                    }
                    Err(error) => {
                        found.push(malformed(format!("{error:?}")));
                        return found;
                    }
                },
            };
            let Some(request) = found.last_mut() else {
                break;
            };
            match decoder.decode(&mut unread) {
                Ok(Some(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    request.body.extend_from_slice(&data);
                }
                Ok(None) if *decoder == BodyDecoder::Complete => {
                    request.end = RequestEnd::Complete;
                    current = None;
                    if !request.may_continue {
                        return found;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    request.end = RequestEnd::Refused(error.to_string());
                    request.may_continue = false;
                    return found;
                }
            }
        }
    }
    if current.is_some()
        && let Some(request) = found.last_mut()
    {
        request.may_continue = false;
    }
    found
}

fn parsed_request(head: &RequestHead) -> (ParsedRequest, Option<BodyDecoder>) {
    let parts = &head.parts;
    let fields = parts.headers.iter();
    let fields = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let request = ParsedRequest {
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        version: parts.version,
        fields: fields.collect(),
        body: Vec::new(),
        expects_continue: head.expects_continue,
        accepts_trailers: head.accepts_trailers,
        end: match head.body {
            Ok(_) => RequestEnd::Incomplete,
            Err(error) => RequestEnd::Refused(format!("{error:?}")),
        },
        may_continue: head.keep_alive && head.body.is_ok(),
    };
    (request, head.body.ok())
}

fn malformed(reason: String) -> ParsedRequest {
    ParsedRequest {
        method: String::new(),
        target: String::new(),
        version: Version::default(),
        fields: Vec::new(),
        body: Vec::new(),
        expects_continue: false,
        accepts_trailers: false,
        end: RequestEnd::Refused(reason),
        may_continue: false,
    }
}

/// Fuzz target: the size of the reads does not change which requests are complete, nor what they are.
pub(crate) fn fuzz_requests(bytes: &[u8]) {
    let (size, bytes) = bytes
        .split_first()
        .map_or((1, bytes), |(size, rest)| (usize::from(*size).max(1), rest));
    let complete = |mut requests: Vec<ParsedRequest>| {
        requests.retain(|request| request.end == RequestEnd::Complete);
        requests
    };
    assert_eq!(
        complete(parse_requests([bytes])),
        complete(parse_requests(bytes.chunks(size))),
        "the requests depend on the cut"
    );
}

/// Fuzz target: the size of the reads of a head does not change what is parsed.
pub(crate) fn fuzz_response_head(bytes: &[u8]) {
    let whole = parse_response([bytes]);
    let pieces = parse_response(bytes.chunks(1));
    assert_eq!(whole, pieces, "the head depends on the cut");
}

/// Status, fields, body and `keep_alive` of a head.
type ParsedResponse = (StatusCode, HeaderMap, BodyDecoder, bool);

/// Parses a head that was read in these pieces; `None` if it is malformed or incomplete.
fn parse_response<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<ParsedResponse> {
    let mut unread = Bytes::new();
    for piece in pieces {
        unread = [&unread, piece].concat().into();
        if let Some(head) = take_response_head(&mut unread, &Method::GET).ok()? {
            let parts = head.parts;
            return Some((parts.status, parts.headers, head.body, head.keep_alive));
        }
    }
    None
}

/// Fuzz target: the size of the reads of a chunked body does not change what is decoded.
pub(crate) fn fuzz_chunks(bytes: &[u8]) {
    let whole = decode_pieces([bytes]);
    let pieces = decode_pieces(bytes.chunks(1));
    assert_eq!(whole, pieces, "the body depends on the cut");
}

/// Data and trailers of a chunked body, and the bytes after it if it is complete.
type DecodedBody = (Vec<u8>, HeaderMap, Option<Bytes>);

/// Decodes a chunked body that was read in these pieces; `None` if it is malformed.
pub(super) fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<DecodedBody> {
    let mut body = BodyDecoder::Chunked(ChunkState::Size);
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    let mut unread = Bytes::new();
    for piece in pieces {
        unread = [&unread, piece].concat().into();
        while let Some(frame) = body.decode(&mut unread).ok()? {
            match frame.into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
    }
    let is_complete = body == BodyDecoder::Complete;
    Some((data, trailers, is_complete.then_some(unread)))
}

/// One more than the default limit, as on a connection.
const MAX_FIELDS: usize = 129;
/// The default limits together, with room for line ends.
const MAX_HEAD_BYTES: usize = 144 * 1024;
