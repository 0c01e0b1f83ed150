//! Parses durations, sizes and counts, each within bounds.
//!
//! A bare number is never a duration: `25` could be seconds or milliseconds, and a wrong guess would show
//! only when something breaks.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use serde_saphyr::Spanned;

use super::error::SettingError;
use crate::{quote, token_bucket::TokenBucketSize};

/// Reads `500ms`, `5s`, `10m`, `1h30m` or `0s`.
pub(crate) fn duration(text: &str) -> Result<Duration, SettingError> {
    let bad = || SettingError::Malformed {
        problem: NOT_A_DURATION,
    };
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let (number, after) = leading_number(rest).ok_or_else(bad)?;
        let end = after
            .find(|char: char| char.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let part = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(60 * 60).map(Duration::from_secs),
            _ => return Err(bad()),
        };
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or_else(bad)?;
        rest = next;
    }
    if total > MAX_DURATION {
        return Err(SettingError::invalid(text, TOO_LONG));
    }
    Ok(total)
}

/// The value of a switch, as a flag or in its variable.
pub(super) struct Switch(pub(super) bool);

impl FromStr for Switch {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Ok(Self(true)),
            "false" | "f" | "no" | "n" | "off" | "0" => Ok(Self(false)),
            _ => Err(SettingError::NotABool),
        }
    }
}

/// Reads `65536`, `64KiB` or `1MiB`.
fn bytes(text: &str) -> Result<u64, SettingError> {
    let bad = || SettingError::Malformed {
        problem: NOT_A_SIZE,
    };
    let (number, unit) = leading_number(text).ok_or_else(bad)?;
    let factor = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        "GiB" => 1024 * 1024 * 1024,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).ok_or_else(bad)
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// A duration; zero only if `MAY_BE_ZERO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConfigDuration<const MAY_BE_ZERO: bool>(pub(super) Duration);

pub(super) type Timeout = ConfigDuration<false>;
pub(super) type MaybeZeroDuration = ConfigDuration<true>;

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count<const MIN: u64, const MAX: u64>(u64);

/// A number of bytes from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size<const MIN: u64, const MAX: u64>(u64);

/// Requests that a client may send: some at once, then this many a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct RequestRate {
    /// Requests per second.
    rate: Count<1, 100_000>,
    /// Requests at once, after a pause.
    burst: Count<1, 1_000_000>,
}

/// Refusals of one credential in some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct RefusalCount {
    /// Refusals.
    count: Count<1, 100_000>,
    /// The time.
    per: Timeout,
}

impl Written<Option<TokenBucketSize>> for RequestRate {
    fn value(self) -> Option<TokenBucketSize> {
        Some(TokenBucketSize {
            max_tokens: self.burst.value(),
            fill_interval: TokenBucketSize::new(self.rate.value(), Duration::from_secs(1))
                .fill_interval,
        })
    }
}

impl Written<TokenBucketSize> for RefusalCount {
    fn value(self) -> TokenBucketSize {
        TokenBucketSize::new(self.count.value(), self.per.0)
    }
}

impl<const MIN: u64, const MAX: u64> Written<Option<usize>> for Count<MIN, MAX> {
    fn value(self) -> Option<usize> {
        Some(self.get())
    }
}

/// A value as the file writes it, which becomes a setting of type `T`.
pub(super) trait Written<T> {
    fn value(self) -> T;
}

impl<const MAY_BE_ZERO: bool> Written<Duration> for ConfigDuration<MAY_BE_ZERO> {
    fn value(self) -> Duration {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> Written<usize> for Count<MIN, MAX> {
    fn value(self) -> usize {
        self.get()
    }
}

impl<const MIN: u64, const MAX: u64> Written<u32> for Count<MIN, MAX> {
    fn value(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

impl<const MIN: u64, const MAX: u64> Written<usize> for Size<MIN, MAX> {
    fn value(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<T, W: Written<T>> Written<T> for Spanned<W> {
    fn value(self) -> T {
        self.value.value()
    }
}

impl<const MIN: u64, const MAX: u64> Count<MIN, MAX> {
    pub(super) fn get(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    fn checked(count: u64) -> Result<Self, SettingError> {
        if (MIN..=MAX).contains(&count) {
            Ok(Self(count))
        } else {
            Err(SettingError::OutOfRange {
                found: count.to_string(),
                min: MIN.to_string(),
                max: MAX.to_string(),
            })
        }
    }
}

impl<const MIN: u64, const MAX: u64> Size<MIN, MAX> {
    fn checked(size: u64, text: &str) -> Result<Self, SettingError> {
        if (MIN..=MAX).contains(&size) {
            Ok(Self(size))
        } else {
            Err(SettingError::OutOfRange {
                found: quote::value(text),
                min: readable_bytes(MIN),
                max: readable_bytes(MAX),
            })
        }
    }
}

fn readable_bytes(bytes: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * 1024;
    match bytes {
        0 => "0".to_owned(),
        _ if bytes.is_multiple_of(MIB) => format!("{}MiB", bytes / MIB),
        _ if bytes.is_multiple_of(KIB) => format!("{}KiB", bytes / KIB),
        _ => bytes.to_string(),
    }
}

/// A YAML scalar that may be a number or text.
struct Scalar<F>(F, &'static str);

impl<T, F: FnOnce(&str, Option<u64>) -> Result<T, SettingError>> de::Visitor<'_> for Scalar<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.0)(&number.to_string(), Some(number)).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.0)(&number.to_string(), u64::try_from(number).ok()).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        (self.0)(&number.to_string(), None).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text, None).map_err(E::custom)
    }
}

impl<const MAY_BE_ZERO: bool> FromStr for ConfigDuration<MAY_BE_ZERO> {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let duration = duration(text)?;
        if duration.is_zero() && !MAY_BE_ZERO {
            return Err(SettingError::ZeroDuration);
        }
        Ok(Self(duration))
    }
}

impl<'de, const MAY_BE_ZERO: bool> Deserialize<'de> for ConfigDuration<MAY_BE_ZERO> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str, _| text.parse();
        deserializer.deserialize_any(Scalar(parse, "a duration such as 5s"))
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Count<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar(
            |_: &str, number: Option<u64>| match number {
                Some(number) => Self::checked(number),
                None => Err(SettingError::Malformed {
                    problem: NOT_A_COUNT,
                }),
            },
            "a whole number",
        ))
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Size<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar(
            |text: &str, _| bytes(text).and_then(|size| Self::checked(size, text)),
            "a size such as 64KiB",
        ))
    }
}

impl<const MIN: u64, const MAX: u64> FromStr for Count<MIN, MAX> {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        text.parse()
            .map_err(|_not_a_number| SettingError::Malformed {
                problem: NOT_A_COUNT,
            })
            .and_then(Self::checked)
    }
}

impl<const MAY_BE_ZERO: bool> JsonSchema for ConfigDuration<MAY_BE_ZERO> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$" })
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Count<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Count{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Size<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Size{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": MIN, "maximum": MAX },
                { "type": "string", "pattern": "^[0-9]+ *(B|KiB|MiB|GiB)?$" }
            ]
        })
    }
}

/// Longer than any useful wait, and too short to overflow an instant that it is added to.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const NOT_A_DURATION: &str =
    "is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m";
const TOO_LONG: &str = "is longer than a year; write a shorter duration";
const NOT_A_SIZE: &str =
    "is not a size; write a number of bytes with a unit, such as 64KiB or 1MiB";
const NOT_A_COUNT: &str = "is not a whole number; write one without sign, unit or quotes";
