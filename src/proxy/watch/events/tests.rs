//! Every framing, cut at every byte.

use http::HeaderValue;
use standin::gzip;

use super::*;

fn response(content_type: &str, coding: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut set = |name, value| headers.insert(name, HeaderValue::from_str(value).unwrap());
    set(header::CONTENT_TYPE, content_type);
    if let Some(coding) = coding {
        set(header::CONTENT_ENCODING, coding);
    }
    headers
}

fn events(content_type: &str, coding: Option<&str>) -> Option<Events> {
    Events::from_headers(&response(content_type, coding))
}

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf;stream=watch";
const CBOR: &str = "application/cbor-seq";

#[test]
fn only_trackable_framings_are_recognized() {
    for json in [JSON, "application/json;stream=watch"] {
        let found = events(json, None);
        assert!(matches!(found, Some(Events::Lines { .. })), "{json}");
    }
    assert!(matches!(
        events(PROTOBUF, Some("identity")),
        Some(Events::Frames { .. })
    ));
    assert!(matches!(events(CBOR, None), Some(Events::Cbor(_))));
    for of_a_watch in [JSON, PROTOBUF, CBOR] {
        let found = events(of_a_watch, Some("gzip"));
        assert!(
            matches!(found, Some(Events::Members { .. })),
            "{of_a_watch}"
        );
        for coding in ["deflate", "gzip, gzip", "zstd", ""] {
            assert_eq!(events(of_a_watch, Some(coding)), None, "{coding}");
        }
        for coding in [None, Some("gzip")] {
            let mut headers = response(of_a_watch, coding);
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("12"));
            assert_eq!(Events::from_headers(&headers), None, "{of_a_watch}");
        }
    }
    for other in [
        "application/vnd.kubernetes.protobuf",
        "application/yaml",
        "application/cbor",
        "text/plain",
    ] {
        for coding in [None, Some("gzip")] {
            assert_eq!(events(other, coding), None, "{other}");
        }
    }
}

/// Each framing, a stream in it, and where its events end.
fn streams() -> Vec<(Events, Vec<u8>, Vec<usize>)> {
    let ends = |parts: &[&[u8]]| -> Vec<usize> {
        let lengths = parts.iter().map(|part| part.len());
        lengths
            .scan(0, |end, length| {
                *end += length;
                Some(*end)
            })
            .collect()
    };
    let stream = |content_type, coding, parts: &[&[u8]]| {
        let events = events(content_type, coding).unwrap();
        (events, parts.concat(), ends(parts))
    };
    let mut members = gzip::members();
    members.push(gzip::MEMBER_OF_ZLIB);
    vec![
        stream(JSON, None, &[b"{}\n", b"{\"a\":\"b\\n\"}\n", b"{}\n"]),
        stream(
            PROTOBUF,
            None,
            &[
                b"\0\0\0\x03abc",
                &[&[0, 0, 1, 4][..], &[7; 260]].concat(),
                b"\0\0\0\0",
                b"\0\0\0\x01\n",
            ],
        ),
        // A tagged map with a byte string, as the apiserver writes an event; a list without a length, of a string in
        // pieces, a float and nothing; an integer.
        stream(
            CBOR,
            None,
            &[
                b"\xd9\xd9\xf7\xa2\x44type\x45ADDED\x46object\x58\x03\x01\x02\xff",
                b"\x9f\x5f\x41a\x42bc\xff\xfb\0\0\0\0\0\0\xf0\x3f\xf6\xff",
                b"\x1a\xff\xff\xff\xff",
            ],
        ),
        stream(JSON, Some("gzip"), &members),
    ]
}

#[test]
fn event_end_does_not_depend_on_piece_size() {
    for (of, stream, ends) in streams() {
        assert!(of.is_between_events(), "before the first byte");
        for piece in 1..=stream.len() {
            let at_piece = |end: &&usize| (**end).is_multiple_of(piece) || **end == stream.len();
            let wanted: Vec<_> = ends.iter().filter(at_piece).copied().collect();
            let mut events = of.clone();
            let (mut at, mut seen) = (0, Vec::new());
            for bytes in stream.chunks(piece) {
                events.track(bytes);
                at += bytes.len();
                if events.is_between_events() {
                    seen.push(at);
                }
            }
            assert_eq!(seen, wanted, "{of:?} in pieces of {piece}");
        }
    }
}

#[test]
fn end_of_the_current_event_is_found_from_every_byte() {
    for (of, stream, ends) in streams() {
        for cut in 0..stream.len() {
            let (before, after) = stream.split_at(cut);
            let mut events = of.clone();
            events.track(before);
            let next = ends.iter().find(|end| **end > cut).unwrap() - cut;
            assert_eq!(
                events.clone().track_event(after),
                Some(next),
                "{of:?} {cut}"
            );
            // The same, if the bytes before the last one of the event come first.
            let (most, last) = after.split_at(next - 1);
            assert_eq!(events.track_event(most), None, "{of:?} {cut}");
            assert!(!events.is_between_events() || most.is_empty());
            assert_eq!(events.track_event(last), Some(1), "{of:?} {cut}");
            assert!(events.is_between_events());
        }
    }
}

/// A server that only flushes writes one member for the whole stream.
#[test]
fn flush_without_the_end_of_a_member_ends_no_event() {
    let mut events = events(JSON, Some("gzip")).unwrap();
    let flushed = b"\x1f\x8b\x08\0\0\0\0\0\x04\xff\xaaVJ\xad\x28HU\0\0\0\xff\xff";
    assert_eq!(events.track_event(flushed), None);
    assert!(!events.is_between_events());
    for _ in 0..3 {
        events.track(b"\x02\0\0\0\xff\xff");
        assert!(!events.is_between_events());
    }
}

#[test]
fn what_is_no_cbor_has_no_end() {
    let deep = |levels| [vec![0x81; levels], vec![0]].concat();
    let mut cases = vec![
        ("a break outside", vec![0xff]),
        ("a break in a list of known length", vec![0x82, 0xff]),
        ("a reserved head", vec![0x1c]),
        ("an integer without a length", vec![0x1f]),
        ("a tag without a number", vec![0xdf]),
        ("a map of 2^64 items", [&[0xbb][..], &[0xff; 8]].concat()),
    ];
    cases.push(("65 levels", deep(65)));
    for (what, bytes) in cases {
        let mut events = events(CBOR, None).unwrap();
        events.track(&bytes);
        assert!(!events.is_between_events(), "{what}");
        // Nothing that follows is an end.
        assert_eq!(events.track_event(&[0; 100]), None, "{what}");
        assert!(!events.is_between_events(), "{what}");
    }
    let mut events = events(CBOR, None).unwrap();
    assert_eq!(events.track_event(&deep(64)), Some(65));
}
