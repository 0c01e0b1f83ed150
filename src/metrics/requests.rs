//! How many requests of each kind there were, in a table that cannot grow without bound.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{Mutex, PoisonError},
};

use http::StatusCode;

use super::{Protocol, Resource, Verb};

/// Requests by verb, resource, code and protocol. The lock is contended only while somebody scrapes.
#[derive(Debug, Default)]
pub(super) struct Requests {
    counts: Mutex<HashMap<u64, u64, BuildHasherDefault<Mix>>>,
}

/// One row of the table, as labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) verb: Verb,
    pub(super) resource: Resource,
    pub(super) code: u16,
    pub(super) protocol: Protocol,
}

impl Requests {
    pub(super) fn count(&self, row: Row) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = row.key();
        if let Some(count) = counts.get_mut(&key) {
            *count += 1;
            return;
        }
        // Every combination of known labels would be more rows than anybody reads.
        let key = if counts.len() < MOST_ROWS {
            key
        } else {
            let resource = Resource::OTHER;
            Row { resource, ..row }.key()
        };
        *counts.entry(key).or_default() += 1;
    }

    pub(super) fn for_each(&self, mut each: impl FnMut(Row, u64)) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, count) in &*counts {
            if let Some(row) = Row::of(*key) {
                each(row, *count);
            }
        }
    }
}

impl Row {
    fn key(self) -> u64 {
        let resource = u64::from(self.resource.number());
        let code = u64::from(self.code);
        (resource << 32) | (code << 16) | ((self.verb as u64) << 8) | self.protocol as u64
    }

    fn of(key: u64) -> Option<Self> {
        let [_, _, r1, r0, c1, c0, verb, protocol] = key.to_be_bytes();
        Some(Self {
            verb: *Verb::ALL.get(usize::from(verb))?,
            resource: Resource::numbered(u16::from_be_bytes([r1, r0])),
            code: u16::from_be_bytes([c1, c0]),
            protocol: *Protocol::ALL.get(usize::from(protocol))?,
        })
    }
}

/// The code as a label: one that has a name keeps it, any other is its class's first, as a client takes
/// it (RFC 9110 §15); 0 when there was no answer. Else a program behind `services/proxy` could make as
/// many as there are numbers.
pub(super) fn code(status: Option<StatusCode>) -> u16 {
    match status {
        None => 0,
        Some(status) if status.canonical_reason().is_some() => status.as_u16(),
        Some(status) => status.as_u16().min(599) / 100 * 100,
    }
}

/// Spreads keys that are no client's to choose: they come from [`Row::key`].
#[derive(Debug, Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing; the table looks at both ends of the result.
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// Rows of one worker beyond which new ones share the resource `other`.
const MOST_ROWS: usize = 4_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_as_it_was() {
        let resources = [
            Resource::of("", "pods", Some("exec")),
            Resource::CUSTOM,
            Resource::OTHER,
            Resource::NONRESOURCE,
        ];
        for resource in resources {
            for (verb, protocol, code) in [
                (Verb::Get, Protocol::Http1, 0),
                (Verb::Other, Protocol::Http2, 511),
            ] {
                let row = Row {
                    verb,
                    resource,
                    code,
                    protocol,
                };
                let requests = Requests::default();
                requests.count(row);
                requests.count(row);
                let mut found = Vec::new();
                requests.for_each(|row, count| found.push((row, count)));
                assert_eq!(found, [(row, 2)]);
            }
        }
    }

    #[test]
    fn codes_without_a_name_share_the_one_of_their_class() {
        for (status, label) in [
            (200, 200),
            (429, 429),
            (299, 200),
            (418, 418),
            (499, 400),
            (599, 500),
            (600, 500),
            (999, 500),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(code(Some(status)), label);
        }
        assert_eq!(code(None), 0);
    }

    #[test]
    fn no_mixture_of_labels_makes_the_table_grow_without_bound() {
        let requests = Requests::default();
        let codes = (100..1000).map(|number| code(StatusCode::from_u16(number).ok()));
        let codes: std::collections::BTreeSet<u16> = codes.collect();
        for verb in Verb::ALL {
            for protocol in Protocol::ALL {
                for number in (0..200).chain([u16::MAX, u16::MAX - 1, u16::MAX - 2]) {
                    for code in &codes {
                        requests.count(Row {
                            verb: *verb,
                            resource: Resource::numbered(number),
                            code: *code,
                            protocol: *protocol,
                        });
                    }
                }
            }
        }
        let (mut rows, mut sum) = (0, 0);
        requests.for_each(|_, count| (rows, sum) = (rows + 1, sum + count));
        let beyond = Verb::ALL.len() * Protocol::ALL.len() * codes.len();
        assert!(rows <= MOST_ROWS + beyond, "{rows} rows");
        assert_eq!(sum, (beyond * 203) as u64, "none is lost");
    }
}
