//! The id of a request, which links its lines in the logs of client, proxy and apiserver.
//!
//! The id of the client is kept: the value of `X-Request-Id`, or the trace id of `traceparent`. Otherwise the proxy
//! makes one. The apiserver gets it as `X-Request-Id`.

use std::{
    cell::Cell,
    collections::hash_map::RandomState,
    fmt::{self, Display, Formatter},
    hash::BuildHasher as _,
};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The id of one request.
#[derive(Debug, Clone)]
pub(super) enum RequestId {
    /// The client sent it.
    FromClient(HeaderValue),
    /// The proxy made it.
    New(u64),
}

impl RequestId {
    /// The id that the client sent; a new one if it sent none, or one that is too long or has unusual characters.
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        // One pass over the names is cheaper than two lookups, and few requests have one of these fields.
        if !headers.keys().any(|name| is_id_field(name.as_str())) {
            return Self::new();
        }
        let mut lines = headers.get_all(X_REQUEST_ID).iter();
        let from_client = match (lines.next(), lines.next()) {
            (Some(id), None) => Some(id).filter(|id| is_valid(id.as_bytes())).cloned(),
            (Some(_), Some(_)) => None,
            (None, _) => headers.get(TRACEPARENT).and_then(trace_id),
        };
        from_client.map_or_else(Self::new, Self::FromClient)
    }

    /// A new id. It costs a few instructions: a counter of this thread that begins at a random number, mixed so that
    /// two ids in a row differ in many digits.
    pub(super) fn new() -> Self {
        thread_local! {
            static NEXT: Cell<u64> = Cell::new(RandomState::new().hash_one(0));
        }
        let number = NEXT.get();
        NEXT.set(number.wrapping_add(GOLDEN_GAMMA));
        Self::New(mix(number))
    }

    /// The value of `X-Request-Id`.
    pub(super) fn header_value(&self) -> HeaderValue {
        let number = match self {
            Self::FromClient(id) => return id.clone(),
            Self::New(number) => *number,
        };
        let mut digits = [0; 16];
        for (at, digit) in digits.iter_mut().rev().enumerate() {
            let nibble = (number >> (4 * at)) & 0xf;
            *digit = HEX
                .get(usize::try_from(nibble).unwrap_or_default())
                .copied()
                .unwrap_or(b'0');
        }
        let mut value = HeaderValue::from_bytes(&digits).unwrap_or(HeaderValue::from_static("0"));
        // HPACK then does not put it into its table, where each new value would displace a field that is sent again.
        value.set_sensitive(true);
        value
    }
}

impl Display for RequestId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromClient(id) => f.write_str(id.to_str().unwrap_or_default()),
            Self::New(number) => write!(f, "{number:016x}"),
        }
    }
}

fn is_id_field(name: &str) -> bool {
    match name.as_bytes() {
        [b'x', ..] => name == X_REQUEST_ID.as_str(),
        [b't', ..] => name == TRACEPARENT.as_str(),
        _ => false,
    }
}

/// Whether an id can go into a log line and a header as it is.
fn is_valid(id: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    (1..=MAX_ID_BYTES).contains(&id.len()) && id.iter().all(is_plain)
}

/// The trace id of a `traceparent` (W3C Trace Context §3.2), unless it is malformed or all zeros.
fn trace_id(traceparent: &HeaderValue) -> Option<HeaderValue> {
    let mut parts = traceparent.as_bytes().split(|byte| *byte == b'-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let is_hex = |part: &[u8]| {
        part.iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_trace = version.len() == 2 && trace.len() == 32 && is_hex(version) && is_hex(trace);
    if !is_trace || version == b"ff" || trace.iter().all(|byte| *byte == b'0') {
        return None;
    }
    HeaderValue::from_bytes(trace).ok()
}

/// The output function of `SplitMix64`, a bijection: numbers that differ stay different.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The step of `SplitMix64`.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
const HEX: &[u8; 16] = b"0123456789abcdef";
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Enough for a UUID, a trace id, and two of them joined. A token is longer.
const MAX_ID_BYTES: usize = 80;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn id(lines: &[(&str, &str)]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        match RequestId::from_headers(&headers) {
            RequestId::FromClient(id) => Some(id.to_str().unwrap().to_owned()),
            RequestId::New(_) => None,
        }
    }

    #[test]
    fn valid_id_of_the_client_is_kept_and_others_are_replaced() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent = format!("00-{trace}-00f067aa0ba902b7-01");
        let long = "a".repeat(MAX_ID_BYTES + 1);
        for (lines, kept) in [
            (&[][..], None),
            (&[("x-request-id", "7c3b-1")], Some("7c3b-1")),
            (&[("x-request-id", "")], None),
            (&[("x-request-id", "a b")], None),
            (&[("x-request-id", "a\"b")], None),
            (&[("x-request-id", &*long)], None),
            (&[("x-request-id", "a"), ("x-request-id", "b")], None),
            (&[("traceparent", &*parent)], Some(trace)),
            (
                &[("x-request-id", "a"), ("traceparent", &*parent)],
                Some("a"),
            ),
            (&[("traceparent", "00-0-1-01")], None),
            (&[("traceparent", &*parent.replace("00-", "ff-"))], None),
            (
                &[("traceparent", &*parent.replace(trace, &"0".repeat(32)))],
                None,
            ),
            (&[("traceparent", &*parent.to_uppercase())], None),
        ] {
            assert_eq!(id(lines).as_deref(), kept, "{lines:?}");
        }
    }

    #[test]
    fn new_ids_differ_and_read_the_same_in_log_and_header() {
        let ids: Vec<_> = (0..1000).map(|_| RequestId::new()).collect();
        let texts: BTreeSet<_> = ids.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 1000);
        for id in &ids {
            let value = id.header_value();
            assert_eq!(value.to_str().unwrap(), id.to_string());
            assert_eq!(value.len(), 16);
            assert!(value.is_sensitive(), "HPACK must not index it");
        }
        let other = std::thread::spawn(|| RequestId::new().to_string());
        assert!(!texts.contains(&other.join().unwrap()), "of another worker");
    }
}
