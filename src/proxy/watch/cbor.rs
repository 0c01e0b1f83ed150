//! Where the items of a CBOR sequence end (RFC 8949, RFC 8742).

/// The position in a sequence of data items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CborSequence {
    next: Next,
    /// The arrays, maps, tags and strings in pieces that hold the next byte, outermost first. Each has the number of
    /// items that it still lacks, or `None` if a "break" ends it.
    open: Vec<Option<u64>>,
}

/// What the next byte is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Next {
    /// The first byte of an item.
    #[default]
    Initial,
    /// A byte of the number that follows an initial byte.
    Argument { major: u8, value: u64, missing: u8 },
    /// A byte of a string that lacks this many.
    Content(u64),
    /// Unknown: these bytes are no CBOR, or are nested too deeply. No item ends any more.
    Opaque,
}

impl CborSequence {
    /// Whether every item that has begun is complete.
    pub(super) fn is_between_items(&self) -> bool {
        self.next == Next::Initial && self.open.is_empty()
    }

    /// Tracks these bytes up to the end of the current item of the sequence, and returns how many bytes that is.
    /// Returns `None` if the item does not end within them.
    pub(super) fn track_item(&mut self, data: &[u8]) -> Option<usize> {
        let mut at = 0_usize;
        loop {
            let rest = data.get(at..).filter(|rest| !rest.is_empty())?;
            let (taken, ended) = match self.next {
                Next::Opaque => return None,
                Next::Content(missing) => {
                    let taken =
                        usize::try_from(missing).map_or(rest.len(), |all| all.min(rest.len()));
                    let missing = missing.saturating_sub(taken.try_into().unwrap_or(u64::MAX));
                    self.next = Next::Content(missing);
                    (taken, missing == 0)
                }
                Next::Initial => (1, self.take_initial(*rest.first()?)),
                Next::Argument {
                    major,
                    value,
                    missing,
                } => {
                    let value = (value << 8) | u64::from(*rest.first()?);
                    let missing = missing.saturating_sub(1);
                    self.next = Next::Argument {
                        major,
                        value,
                        missing,
                    };
                    (1, missing == 0 && self.take_head(major, value))
                }
            };
            at = at.saturating_add(taken);
            if ended && self.end_item() {
                return Some(at);
            }
        }
    }

    /// Takes the initial byte of an item. Returns whether it is the whole item.
    fn take_initial(&mut self, byte: u8) -> bool {
        match (byte >> 5, byte & 0x1f) {
            (major, value @ ..24) => self.take_head(major, value.into()),
            (major, size @ 24..=27) => {
                self.next = Next::Argument {
                    major,
                    value: 0,
                    missing: 1 << (size - 24),
                };
                false
            }
            (2..=5, 31) => self.open(None),
            // "break"
            (7, 31) if self.open.last() == Some(&None) => {
                self.open.pop();
                true
            }
            _ => self.give_up(),
        }
    }

    /// Takes the head of an item, with its number. Returns whether it is the whole item.
    fn take_head(&mut self, major: u8, value: u64) -> bool {
        self.next = Next::Initial;
        match (major, value) {
            // Integers, simple values and floats, and what is empty.
            (0 | 1 | 7, _) | (2..=5, 0) => true,
            (2 | 3, length) => {
                self.next = Next::Content(length);
                false
            }
            (4, items) => self.open(Some(items)),
            (5, pairs) => match pairs.checked_mul(2) {
                Some(items) => self.open(Some(items)),
                None => self.give_up(),
            },
            // A tag holds one item.
            _ => self.open(Some(1)),
        }
    }

    fn open(&mut self, items: Option<u64>) -> bool {
        if self.open.len() >= MAX_DEPTH {
            return self.give_up();
        }
        self.open.push(items);
        false
    }

    fn give_up(&mut self) -> bool {
        self.next = Next::Opaque;
        self.open = Vec::new();
        false
    }

    /// Notes the end of an item, and of everything that it completes. Returns whether an item of the sequence ended.
    fn end_item(&mut self) -> bool {
        self.next = Next::Initial;
        loop {
            match self.open.last_mut() {
                None => return true,
                Some(None) => return false,
                Some(Some(missing)) => {
                    *missing = missing.saturating_sub(1);
                    if *missing > 0 {
                        return false;
                    }
                    self.open.pop();
                }
            }
        }
    }
}

/// Bounds the memory of one watch to about a KiB. The objects of Kubernetes have half as many levels; a watch with
/// deeper ones is aborted at the deadline of the drain.
const MAX_DEPTH: usize = 64;
