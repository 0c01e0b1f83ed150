//! Finds the request targets that the `http` crate cuts at `#`, in the header blocks of one HTTP/2 client.
//!
//! h2 does not show the raw target, so `DELETE …/configmaps/#y` would reach the apiserver as
//! `DELETE …/configmaps/`, which deletes all config maps. The fields are read before h2 reads them, and each
//! target that the crate is about to cut is noted. A request with such a target is refused.
//!
//! A later request can repeat a cut target as an index into the HPACK table, so a note holds for the rest
//! of the connection. There is no table here: a field whose name is in the client's part of the table
//! counts as a target. A note that comes from such a field and not from a target does no harm unless the
//! client also asks for exactly that path.

use std::{
    borrow::Cow,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use http::Uri;
use memchr::memchr;

/// The request targets of one connection that were cut at `#`.
#[derive(Debug, Default)]
pub(super) struct CutTargets {
    /// Whether `targets` has entries. For an ordinary client this load is the only cost per request.
    any: AtomicBool,
    /// Whether every request is refused, because the monitor can no longer follow the connection.
    refuses_all: AtomicBool,
    /// The targets as the `http` crate leaves them.
    pub(super) targets: Mutex<Vec<Box<str>>>,
}

impl CutTargets {
    /// Whether a request to this URI must be refused because its target is not what the client sent, or may
    /// not be.
    pub(super) fn refuses(&self, uri: &Uri) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        self.refuses_all() || targets.iter().any(|cut| **cut == *target)
    }

    /// Whether the connection should end, since every request on it is refused.
    pub(super) fn refuses_all(&self) -> bool {
        self.refuses_all.load(Ordering::Relaxed)
    }

    /// Notes the part of a target before its `#`.
    fn note(&self, before: &[u8]) {
        // The crate refuses any other target by itself.
        let target = match std::str::from_utf8(before) {
            Ok("") => "/",
            Ok(target) if target.starts_with(['/', '?']) => target,
            _ => return,
        };
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        // A repeated target counts too, so that the work for one connection is bounded.
        let bytes: usize = targets.iter().map(|noted| noted.len()).sum();
        if targets.len() == MAX_CUT_TARGETS || bytes + target.len() > MAX_CUT_BYTES {
            drop(targets);
            return self.refuse_all();
        }
        targets.push(Box::from(target));
        self.any.store(true, Ordering::Relaxed);
    }

    /// Refuses every later request.
    pub(super) fn refuse_all(&self) {
        self.refuses_all.store(true, Ordering::Relaxed);
        self.any.store(true, Ordering::Relaxed);
    }
}

/// Reads whole fields; returns the bytes of the one that is incomplete. The strings of a field may have `max_field`
/// bytes.
pub(super) fn read_fields<'a>(
    block: &'a [u8],
    max_field: usize,
    targets: &CutTargets,
) -> Result<&'a [u8], FieldError> {
    let mut fields = Fields(block);
    loop {
        // Entries of the table with a short index, which are most fields of most requests.
        while let Some((0x80..=0xfe, rest)) = fields.0.split_first() {
            fields.0 = rest;
        }
        let before = fields.0;
        match fields.next_target(max_field) {
            Ok(value) => {
                if let Some(cut) = value.and_then(HpackString::before_hash) {
                    targets.note(&cut);
                }
            }
            Err(FieldError::Incomplete) => return Ok(before),
            Err(FieldError::Invalid) => return Err(FieldError::Invalid),
        }
    }
}

/// The unread fields of a header block (RFC 7541 §6).
struct Fields<'a>(&'a [u8]);

/// Why no further field can be read.
#[derive(Debug)]
pub(super) enum FieldError {
    /// Its end has not come yet.
    Incomplete,
    /// It is not HPACK, and h2 ends the connection; or it is too long, whatever part of it has come.
    Invalid,
}

/// A string as HPACK carries it (RFC 7541 §5.2).
#[derive(Clone, Copy)]
struct HpackString<'a> {
    bytes: &'a [u8],
    is_huffman: bool,
}

impl<'a> Fields<'a> {
    /// Passes over one field; returns its value if it is literal and its name may be `:path`.
    fn next_target(&mut self, max_field: usize) -> Result<Option<HpackString<'a>>, FieldError> {
        let first = *self.0.first().ok_or(FieldError::Incomplete)?;
        if first & 0x80 != 0 {
            // An entry of the table, which was read when it came.
            return self.integer(7).map(|_index| None);
        }
        if first & 0xe0 == 0x20 {
            return self.integer(5).map(|_table_size| None);
        }
        let indexed = first & 0x40 != 0;
        let name = self.integer(if indexed { 6 } else { 4 })?;
        let mut max_value = max_field;
        let is_target = match name {
            0 => {
                let name = self.string(max_field)?;
                max_value -= name.bytes.len();
                name.is_pseudo_name()
            }
            STATIC_PATH | STATIC_PATH_INDEX => true,
            index => index > STATIC_ENTRIES,
        };
        let value = self.string(max_value)?;
        Ok(is_target.then_some(value))
    }

    /// An integer that begins in the low `bits` of the next byte (RFC 7541 §5.1).
    fn integer(&mut self, bits: u32) -> Result<usize, FieldError> {
        let mask = (1_u8 << bits) - 1;
        let (first, mut rest) = self.0.split_first().ok_or(FieldError::Incomplete)?;
        let mut value = usize::from(first & mask);
        if first & mask == mask {
            let mut shift = 0;
            loop {
                let (byte, after) = rest.split_first().ok_or(FieldError::Incomplete)?;
                rest = after;
                value += usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
                // h2 refuses a longer one too.
                if shift == 28 {
                    return Err(FieldError::Invalid);
                }
            }
        }
        self.0 = rest;
        Ok(value)
    }

    fn string(&mut self, max: usize) -> Result<HpackString<'a>, FieldError> {
        let first = *self.0.first().ok_or(FieldError::Incomplete)?;
        let length = self.integer(7)?;
        // Before its end has come: the size of the reads must not decide whether a field is too long.
        if length > max {
            return Err(FieldError::Invalid);
        }
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(FieldError::Incomplete)?;
        self.0 = rest;
        Ok(HpackString {
            bytes,
            is_huffman: first & 0x80 != 0,
        })
    }
}

impl<'a> HpackString<'a> {
    /// Whether this name begins with a colon.
    fn is_pseudo_name(self) -> bool {
        self.bytes.first().is_some_and(|first| {
            if self.is_huffman {
                // The code of the colon has seven bits.
                first & 0xfe == 0xb8
            } else {
                *first == b':'
            }
        })
    }

    /// The part before the first `#`, if there is one.
    fn before_hash(self) -> Option<Cow<'a, [u8]>> {
        if !self.is_huffman {
            let end = memchr(b'#', self.bytes)?;
            return self.bytes.get(..end).map(Cow::Borrowed);
        }
        if may_hold_hash(self.bytes) {
            decode_until_hash(self.bytes).map(Cow::Owned)
        } else {
            None
        }
    }
}

/// Whether these bytes hold the twelve bits of the code of `#`, at whatever bit they begin. The code of
/// another symbol and the one after it can hold them too. A few instructions for every six bytes, where
/// decoding takes some for each bit.
fn may_hold_hash(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(window) = rest.first_chunk() {
        if window_holds_hash(*window) {
            return true;
        }
        rest = rest.get(6..).unwrap_or_default();
    }
    let mut window = [0; 8];
    window
        .iter_mut()
        .zip(rest)
        .for_each(|(slot, byte)| *slot = *byte);
    window_holds_hash(window)
}

fn window_holds_hash(window: [u8; 8]) -> bool {
    let bits = u64::from_be_bytes(window);
    let two = bits & bits << 1;
    let four = two & two << 2;
    let eight = four & four << 4;
    // Nine ones, then 0, 1 and 0.
    eight & bits << 8 & !(bits << 9) & bits << 10 & !(bits << 11) != 0
}

/// Decodes Huffman codes (RFC 7541 §5.2, Appendix B) up to the first `#`; `None` if there is none.
///
/// The codes are canonical: those of one length are consecutive numbers, in the order of [`SYMBOLS`].
fn decode_until_hash(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(bytes.len() * 2);
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| usize::from(byte >> bit & 1)));
    loop {
        // The first code of the length looked at, and the place of its symbol.
        let (mut code, mut first, mut place) = (0, 0, 0);
        let symbol = CODES.iter().find_map(|count| {
            // Padding ends the string and is no symbol: its ones are not a whole code.
            let Some(bit) = bits.next() else {
                return Some(None);
            };
            code = code << 1 | bit;
            first <<= 1;
            let count = usize::from(*count);
            if code - first < count {
                return Some(SYMBOLS.get(place + code - first).copied());
            }
            first += count;
            place += count;
            None
        });
        match symbol.flatten()? {
            b'#' => return Some(decoded),
            symbol => decoded.push(symbol),
        }
    }
}

/// `:path` in the static table, with two values, and the size of that table (RFC 7541 Appendix A).
const STATIC_PATH: usize = 4;
const STATIC_PATH_INDEX: usize = 5;
const STATIC_ENTRIES: usize = 61;
/// Targets, and bytes of them, that are noted before the connection ends. A client that is no attacker has
/// none.
pub(super) const MAX_CUT_TARGETS: usize = 256;
const MAX_CUT_BYTES: usize = 64 * 1024;
/// How many Huffman codes have 1 bit, 2 bits and so on. The last one with 30 bits ends a string and is no
/// symbol.
const CODES: [u8; 30] = [
    0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29,
    0, 4,
];
/// The symbols in the order of their codes.
const SYMBOLS: &[u8; 256] = b"\
    012aceiost %-./3456789=A_bdfghlmnpru:BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz&*,;XZ!\"()?'+|#>\
    \0$@[]~^}<`{\\\xc3\xd0\x80\x82\x83\xa2\xb8\xc2\xe0\xe2\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\
    \xd8\xd9\xe3\xe5\xe6\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\
    \xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\
    \x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\xe7\xef\x09\x8e\x90\x91\x94\x9f\
    \xab\xce\xd7\xe1\xec\xed\xc7\xcf\xea\xeb\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\
    \xf2\xf3\xff\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe\
    \x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\
    \x1c\x1d\x1e\x1f\x7f\xdc\xf9\x0a\x0d\x16";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huffman_strings_are_decoded_up_to_the_hash() {
        // `/a#b`: 011000 00011 111111111010 100011 and a padding of ones.
        let coded = [0x60, 0x7f, 0xf5, 0x1f];
        assert_eq!(decode_until_hash(&coded).unwrap(), b"/a");
        assert!(may_hold_hash(&coded));
        // `www.example.com` (RFC 7541 §C.4.1).
        let other = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        assert!(!may_hold_hash(&other));
        assert_eq!(decode_until_hash(&other), None);
    }

    #[test]
    fn hash_is_found_at_every_bit() {
        for before in 0..100 {
            // Zeros, then the twelve bits of `#`, then zeros.
            let mut bytes = vec![0_u8; 16];
            for (at, bit) in "111111111010".bytes().enumerate() {
                let at = before + at;
                bytes[at / 8] |= (bit - b'0') << (7 - at % 8);
            }
            assert!(may_hold_hash(&bytes), "after {before} bits");
            let cut = bytes.iter().rposition(|byte| *byte != 0).unwrap();
            assert!(
                may_hold_hash(&bytes[..=cut]),
                "at the end, after {before} bits"
            );
        }
        assert!(!may_hold_hash(&[0xff; 16]));
        assert!(!may_hold_hash(&[0xff, 0x7f, 0xaa, 0, 0xff, 0xfb]));
    }
}
