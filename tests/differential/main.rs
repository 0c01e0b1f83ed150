//! Compares our parser of HTTP/1.1 requests with hyper's: whatever ours accepts, hyper accepts too, as the same
//! requests with the same ends. [`STRICTER`] lists what ours refuses and hyper accepts.
//!
//! `DIFFERENTIAL=1000000 cargo test --test differential` compares that many mutated requests.

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod mutation;
mod notation;
mod reference;

use std::{collections::BTreeMap, env};

use kube_tls_proxy::fuzz::{ParsedRequest, RequestEnd, requests, targets};

use crate::{
    mutation::{Random, mutate},
    notation::cases,
    reference::ReadRequest,
};

/// A request that ours refuses and hyper accepts.
struct Stricter {
    /// The reason that ours gives.
    refusal: &'static str,
    /// Why ours refuses it.
    why: &'static str,
    /// Whether the request is of this kind: as hyper read it, and all bytes of the connection.
    applies: fn(&ReadRequest, &[u8]) -> bool,
}

const STRICTER: &[Stricter] = &[
    Stricter {
        refusal: "AmbiguousLength",
        why: "hyper ignores the second of two equal lengths, and a length beside a coding; a parser before or after the \
              proxy may not, and then the two find two ends (RFC 9112 §6.3)",
        applies: |_, bytes| holds(bytes, "content-length"),
    },
    Stricter {
        refusal: "Malformed",
        why: "hyper does not read a length beside a coding, so it accepts one that is no number",
        applies: |request, bytes| {
            holds(bytes, "content-length")
                && request
                    .fields
                    .iter()
                    .any(|(name, _)| name == "transfer-encoding")
        },
    },
    Stricter {
        refusal: "ambiguous length of the body: a trailer ends without a carriage return",
        why: "hyper takes a bare LF for a part of the trailers; other parsers take it for the end of a line, and then two \
              parsers find two ends of the body",
        applies: |_, bytes| {
            bytes
                .windows(2)
                .any(|two| two[1] == b'\n' && two[0] != b'\r')
        },
    },
    Stricter {
        refusal: "ambiguous length of the body: the size of a chunk is not a number",
        why: "httparse reads at most 16 digits, which hold every number of 64 bits; hyper reads any number of zeros",
        applies: |_, bytes| {
            let digits = bytes.split(|byte| !byte.is_ascii_hexdigit());
            digits.map(<[u8]>::len).any(|length| length > 16)
        },
    },
    Stricter {
        refusal: CLOSES,
        why: "hyper does not read a `Connection` field with bytes above 127; another parser may find `close` in it, and \
              not expect a response to what follows",
        applies: |request, _| {
            let lines = request
                .fields
                .iter()
                .filter(|(name, _)| name == "connection");
            lines.into_iter().any(|(_, value)| !value.is_ascii())
        },
    },
    Stricter {
        refusal: "TransferEncoding",
        why: "hyper accepts other codings before `chunked` and decodes only `chunked`; the apiserver would get coded \
              bytes without the field that says so",
        applies: |request, _| {
            let codings = request
                .fields
                .iter()
                .filter(|(name, _)| name == "transfer-encoding");
            let codings: Vec<_> = codings.map(|(_, value)| value).collect();
            codings.len() > 1
                || codings
                    .iter()
                    .any(|value| !value.eq_ignore_ascii_case(b"chunked"))
        },
    },
    Stricter {
        refusal: "HashInTarget",
        why: "the `http` crate cuts a target at `#`: the apiserver would get another target than the client wrote",
        applies: |_, bytes| bytes.contains(&b'#'),
    },
];

/// Not a refusal: ours reads no request after this one.
const CLOSES: &str = "closes";

/// Whether the bytes hold this text, in upper or lower case.
fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window.eq_ignore_ascii_case(text.as_bytes()))
}

/// Compares what ours and hyper read. Returns the entry of [`STRICTER`] that applies, if ours accepts less.
fn compare(bytes: &[u8]) -> Result<Option<usize>, String> {
    let (ours, theirs) = (requests(bytes), reference::read(bytes));
    for (at, our) in ours.iter().enumerate() {
        let their = theirs.get(at);
        // hyper passes the connection on after such a request, and so does the proxy.
        if their.is_none() && at > 0 && may_be_upgrade(&theirs[at - 1]) {
            return Ok(None);
        }
        let is_complete = match &our.end {
            RequestEnd::Complete => true,
            RequestEnd::Incomplete => false,
            RequestEnd::Refused(reason) => return refused(reason, their, bytes),
        };
        if their != Some(&as_read(our, is_complete)) {
            return Err(format!("ours reads {our:?}\nhyper reads {their:?}"));
        }
    }
    match (ours.last(), theirs.get(ours.len())) {
        (_, None) => Ok(None),
        (Some(last), Some(_)) if !last.may_continue => {
            refused(CLOSES, theirs.get(ours.len() - 1), bytes)
        }
        (_, another) => Err(format!("after {ours:?}\nonly hyper reads {another:?}")),
    }
}

fn may_be_upgrade(request: &ReadRequest) -> bool {
    request.method == "CONNECT" || request.fields.iter().any(|(name, _)| name == "upgrade")
}

fn as_read(request: &ParsedRequest, is_complete: bool) -> ReadRequest {
    ReadRequest {
        method: request.method.clone(),
        target: request.target.clone(),
        version: request.version,
        fields: request.fields.clone(),
        body: request.body.clone(),
        is_complete,
    }
}

/// Ours refused a request that hyper read like this, if it read it at all.
fn refused(
    reason: &str,
    their: Option<&ReadRequest>,
    bytes: &[u8],
) -> Result<Option<usize>, String> {
    let Some(their) = their.filter(|their| their.is_complete) else {
        return Ok(None);
    };
    let known = STRICTER
        .iter()
        .position(|stricter| stricter.refusal == reason && (stricter.applies)(their, bytes));
    match known {
        Some(known) => Ok(Some(known)),
        None => Err(format!(
            "ours refuses ({reason}) what hyper reads as {their:?}"
        )),
    }
}

/// Compares all of these. Returns how often each entry of [`STRICTER`] applied. Shows up to ten differences.
fn compare_all(inputs: impl Iterator<Item = Vec<u8>>) -> BTreeMap<usize, usize> {
    let mut applied = BTreeMap::new();
    let mut different = Vec::new();
    for input in inputs {
        match compare(&input) {
            Ok(None) => {}
            Ok(Some(known)) => *applied.entry(known).or_default() += 1,
            Err(difference) => different.push(format!(
                "{:?}:\n{difference}",
                String::from_utf8_lossy(&input)
            )),
        }
        if different.len() == 10 {
            break;
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n\n"));
    applied
}

#[test]
fn listed_requests_are_read_as_hyper_reads_them() {
    let cases = cases();
    assert!(cases.len() >= 300, "{} cases", cases.len());
    let mut different = Vec::new();
    let mut applied = vec![0; STRICTER.len()];
    let mut complete = 0;
    for case in &cases {
        let read = requests(&case.bytes);
        complete += usize::from(
            read.iter()
                .any(|request| request.end == RequestEnd::Complete),
        );
        match compare(&case.bytes) {
            Ok(None) => {}
            Ok(Some(known)) => applied[known] += 1,
            Err(difference) => different.push(format!("{}\n{difference}", case.line)),
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n\n"));
    assert!(
        complete > cases.len() / 4,
        "only {complete} cases have a complete request"
    );
    for (stricter, count) in STRICTER.iter().zip(applied) {
        assert!(
            count > 0,
            "no case needs {}: {}",
            stricter.refusal,
            stricter.why
        );
    }
}

/// The start of every request, of every length.
#[test]
fn cut_requests_are_read_as_hyper_reads_them() {
    let cases = cases();
    let short = cases.iter().filter(|case| case.bytes.len() < MAX_CUT);
    compare_all(
        short.flat_map(|case| (0..case.bytes.len()).map(|length| case.bytes[..length].to_vec())),
    );
}

/// What ours reads does not depend on the size of the reads.
#[test]
fn requests_in_pieces_are_read_as_the_whole() {
    let heads = targets().into_iter().find(|(name, _)| *name == "heads");
    let (_, compare_pieces) = heads.expect("a fuzz target compares pieces with the whole");
    for case in cases().iter().filter(|case| case.bytes.len() < MAX_MUTATED) {
        for size in [1, 2, 3, 5, 16, 64] {
            compare_pieces(&[&[size], &case.bytes[..]].concat());
        }
    }
}

#[test]
fn mutated_requests_are_read_as_hyper_reads_them() {
    let wanted = env::var("DIFFERENTIAL").map_or(MUTATIONS, |count| {
        count.parse().expect("DIFFERENTIAL is a number of requests")
    });
    let short: Vec<Vec<u8>> = cases()
        .into_iter()
        .map(|case| case.bytes)
        .filter(|bytes| bytes.len() < MAX_MUTATED)
        .collect();
    let mut random = Random::new(SEED);
    let applied = compare_all((0..wanted).map(|_| mutate(&mut random, &short)));
    println!("{wanted} requests; stricter: {applied:?}");
}

/// Mutated requests of an ordinary run, which takes about a second.
const MUTATIONS: usize = 5_000;
/// The requests of a run depend on it alone.
const SEED: u64 = 20;
/// Longer requests take long to read, and their length is most of what they test.
const MAX_MUTATED: usize = 500;
const MAX_CUT: usize = 90;
