//! Ranges of IP addresses, as `10.0.0.0/8` writes them, and lists of them.
//!
//! An IPv4 address in an IPv6 one (`::ffff:192.0.2.7`), as a dual-stack socket reports it, counts as IPv4 everywhere.
//! Otherwise a client could choose between two spellings of its address, and a list would know only one of them.

use std::{
    borrow::Cow,
    cmp::Reverse,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::quote;

/// A range of addresses with the same first bits. A single address is a range too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The first address, which is never an IPv4 address in an IPv6 one.
    first: IpAddr,
    prefix: u8,
}

/// The text is not a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// It is no address, or the number after the slash is none.
    #[error(
        "`{text}` is not a range of IP addresses; write one such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7"
    )]
    Malformed {
        /// The text, made safe for a message.
        text: String,
    },
    /// The number after the slash is larger than the address is long.
    #[error("`{text}` has more than {max} bits after the slash; write a number from 0 to {max}")]
    Prefix {
        /// The text, made safe for a message.
        text: String,
        /// The bits of the address.
        max: u8,
    },
    /// The address is within the range and not its first one. Such a text is often a mistake in the number.
    #[error(
        "`{text}` is not the first address of its range; write {range}, or {address} for this address alone"
    )]
    NotFirst {
        /// The text, made safe for a message.
        text: String,
        /// The range that has this address and this number.
        range: Cidr,
        /// The address.
        address: IpAddr,
    },
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let quoted = || quote::value(text);
        let malformed = || CidrError::Malformed { text: quoted() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_no_address| malformed())?;
        let max = bits(written);
        let prefix = match prefix {
            None => max,
            Some(digits) => parse_prefix(digits).ok_or_else(malformed)?,
        };
        if prefix > max {
            let text = quoted();
            return Err(CidrError::Prefix { text, max });
        }
        let range = Self::new(written, prefix);
        // The range of an IPv4 address in an IPv6 one is that of the IPv4 address.
        if range.first == written || range.first == written.to_canonical() {
            return Ok(range);
        }
        Err(CidrError::NotFirst {
            text: quoted(),
            range,
            address: written.to_canonical(),
        })
    }
}

/// The number after the slash. Signs and leading zeros, which other programs read as octal numbers, are refused.
fn parse_prefix(digits: &str) -> Option<u8> {
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0'));
    // A number that is too large for the type is too large for every address.
    is_plain
        .then(|| digits.parse().unwrap_or(u8::MAX))
        .filter(|_| !digits.is_empty())
}

impl Cidr {
    /// The range that `address` is in. `prefix` is at most the number of bits of the address.
    fn new(address: IpAddr, prefix: u8) -> Self {
        let host_bits = u32::from(bits(address) - prefix);
        let first: IpAddr = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        };
        match first.to_canonical() {
            mapped @ IpAddr::V4(_) if first.is_ipv6() => Self {
                first: mapped,
                prefix: prefix - MAPPED_BITS,
            },
            IpAddr::V4(_) | IpAddr::V6(_) => Self { first, prefix },
        }
    }

    /// Whether the address is in the range. An IPv4 address is in no range of IPv6, not even in `::/0`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && Self::new(address, self.prefix) == *self
    }

    /// The first and the last address, in an order in which no range is between two of its addresses.
    fn bounds(&self) -> (SortKey, SortKey) {
        let first = SortKey::new(self.first);
        let host_bits = u32::from(bits(self.first) - self.prefix);
        let others = u128::MAX
            .checked_shl(host_bits)
            .map_or(u128::MAX, |mask| !mask);
        let last = SortKey {
            bits: first.bits | others,
            ..first
        };
        (first, last)
    }
}

/// An address, all of IPv4 before all of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SortKey {
    is_ipv6: bool,
    bits: u128,
}

impl SortKey {
    fn new(address: IpAddr) -> Self {
        let bits = match address.to_canonical() {
            IpAddr::V4(address) => address.to_bits().into(),
            IpAddr::V6(address) => {
                return Self {
                    is_ipv6: true,
                    bits: address.to_bits(),
                };
            }
        };
        Self {
            is_ipv6: false,
            bits,
        }
    }
}

/// Addresses, as a list of ranges. A look-up in ten thousand ranges compares the address with fourteen of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressList {
    /// First and last addresses: in order, and without overlaps.
    ranges: Vec<(SortKey, SortKey)>,
}

impl AddressList {
    /// Whether an address is in the list.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let key = SortKey::new(address);
        let after = self.ranges.partition_point(|(first, _)| *first <= key);
        let range = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        range.is_some_and(|(_, last)| key <= *last)
    }

    /// Whether the list has no address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether one of its ranges is `0.0.0.0/0` or `::/0`.
    #[must_use]
    pub fn has_everything(&self) -> bool {
        let all = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let all = all.map(|first| Cidr::new(first, 0).bounds());
        self.ranges.iter().any(|range| all.contains(range))
    }
}

impl FromIterator<Cidr> for AddressList {
    fn from_iter<I: IntoIterator<Item = Cidr>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().map(|range| range.bounds()).collect();
        ranges.sort_unstable_by_key(|(first, last)| (*first, Reverse(*last)));
        // Of two ranges that overlap, one includes the other.
        ranges.dedup_by(|next, kept| next.1 <= kept.1);
        Self { ranges }
    }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        if self.prefix < bits(self.first) {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for AddressList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<Cidr>::deserialize(deserializer).map(Self::from_iter)
    }
}

impl JsonSchema for Cidr {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Cidr".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$" })
    }
}

impl JsonSchema for AddressList {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AddressList".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Vec::<Cidr>::json_schema(generator)
    }
}

/// The bits before an IPv4 address in an IPv6 one.
const MAPPED_BITS: u8 = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn list(ranges: &[&str]) -> AddressList {
        ranges.iter().map(|text| cidr(text)).collect()
    }

    #[test]
    fn range_has_one_spelling() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1/32", "10.0.0.1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8:0::/32", "2001:db8::/32"),
            ("2001:db8::7", "2001:db8::7"),
            ("2001:db8::7/128", "2001:db8::7"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(cidr(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_range_says_what_to_write() {
        for text in [
            "",
            "/",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0.0/8/8",
            "10.0.0.0/8 ",
            " 10.0.0.0/8",
            "10.0.0.0/x",
            "10.0.0/8",
            "010.0.0.0/8",
            "10.0.0.1:80",
            "[::1]",
            "fe80::1%eth0",
            "any",
            "*",
        ] {
            let error = text.parse::<Cidr>().unwrap_err();
            assert_eq!(error, CidrError::Malformed { text: text.into() }, "{error}");
        }
        for (text, message) in [
            (
                "10.0.0.1/8",
                "`10.0.0.1/8` is not the first address of its range; write 10.0.0.0/8, or 10.0.0.1 for this address alone",
            ),
            (
                "2001:db8::1/32",
                "`2001:db8::1/32` is not the first address of its range; write 2001:db8::/32, or 2001:db8::1 for this address alone",
            ),
            (
                "::ffff:10.0.0.1/104",
                "`::ffff:10.0.0.1/104` is not the first address of its range; write 10.0.0.0/8, or 10.0.0.1 for this address alone",
            ),
            (
                "10.0.0.0/33",
                "`10.0.0.0/33` has more than 32 bits after the slash; write a number from 0 to 32",
            ),
            (
                "::/999",
                "`::/999` has more than 128 bits after the slash; write a number from 0 to 128",
            ),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn mapped_address_counts_as_ipv4() {
        for (range, address, is_in) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "::ffff:10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "9.255.255.255", false),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            // An operator who writes this means IPv6.
            ("::/0", "192.0.2.7", false),
            ("::/0", "::ffff:192.0.2.7", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(cidr(range).contains(address), is_in, "{range} {address}");
            assert_eq!(list(&[range]).contains(address), is_in, "{range} {address}");
        }
    }

    #[test]
    fn list_finds_the_addresses_of_each_of_its_ranges() {
        let ranges = [
            "192.0.2.7",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.0.0.0/16",
            "2001:db8::/32",
            "2001:db8:1::/48",
            "fd00::/8",
            "192.0.2.7/32",
            "11.0.0.0/8",
        ];
        let list = list(&ranges);
        assert_eq!(list.ranges.len(), 5, "{list:?}");
        // Beside each end of each range, and some far away.
        let mut addresses: Vec<IpAddr> = ["0.0.0.0", "255.255.255.255", "::", "ffff::"]
            .map(|text| text.parse().unwrap())
            .into();
        for range in ranges.map(cidr) {
            let (first, last) = range.bounds();
            for bits in [
                first.bits.wrapping_sub(1),
                first.bits,
                last.bits,
                last.bits.wrapping_add(1),
            ] {
                addresses.push(match range.first {
                    IpAddr::V4(_) => {
                        let bits = u32::try_from(bits & 0xffff_ffff).unwrap();
                        Ipv4Addr::from_bits(bits).into()
                    }
                    IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
                });
            }
        }
        for address in addresses {
            let expected = ranges.iter().any(|range| cidr(range).contains(address));
            assert_eq!(list.contains(address), expected, "{address}");
        }
    }

    #[test]
    fn empty_list_has_no_address() {
        let empty = list(&[]);
        assert!(empty.is_empty());
        assert!(!empty.contains("192.0.2.7".parse().unwrap()));
        assert!(!empty.has_everything());
        assert!(list(&["10.0.0.0/8", "::/0"]).has_everything());
        assert!(list(&["::ffff:0:0/96"]).has_everything());
    }

    /// A key in the place of an address must not be in a message.
    #[test]
    fn message_hides_a_secret() {
        let secret = "eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2ln";
        let message = secret.parse::<Cidr>().unwrap_err().to_string();
        assert!(!message.contains("eyJ"), "{message}");
    }

    #[test]
    fn list_of_a_file_is_read_and_refused() {
        let list: AddressList = serde_json::from_str(r#"["10.0.0.0/8", "::1"]"#).unwrap();
        assert!(list.contains("10.9.9.9".parse().unwrap()));
        let error = serde_json::from_str::<AddressList>(r#"["10.0.0.1/8"]"#).unwrap_err();
        assert!(error.to_string().contains("write 10.0.0.0/8"), "{error}");
    }
}
