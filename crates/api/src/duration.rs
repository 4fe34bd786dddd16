//! The two duration types of the API (docs/api.md).
//!
//! [`ShortDuration`] is for freezes, timeouts and jitter: CEL may compare it. [`LongDuration`] adds days and weeks
//! for objectives, retention and deadlines, and is compared in code only: CEL's `duration("1d")` is an error.
//!
//! A duration is written back as it was read: `26h` stays `26h`. An immutable spec would otherwise be refused when it is
//! read and written by us, because CEL compares texts. Two durations are equal when they are equally long.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Pattern of [`ShortDuration`], as the API server checks it.
pub const SHORT_PATTERN: &str = "^([0-9]{1,6}(ms|s|m|h)){1,3}$";
/// Pattern of [`LongDuration`], as the API server checks it.
pub const LONG_PATTERN: &str = "^([0-9]{1,6}(m|h|d|w)){1,3}$";

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a duration: write one to three numbers with a unit of {units}, for example {example}"
)]
pub struct DurationError {
    text: String,
    units: &'static str,
    example: &'static str,
}

/// A duration of milliseconds to hours: `500ms`, `30s`, `1m30s`.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShortDuration {
    length: Duration,
    written: Written,
}

/// A duration of minutes to weeks: `26h`, `7d`, `4w`. A day is 24 h, a week 7 days.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LongDuration {
    length: Duration,
    written: Written,
}

/// The text a duration was read from; the patterns allow three times six digits and two letters. Empty: computed.
#[derive(Clone, Copy, Default)]
struct Written {
    bytes: [u8; 24],
    len: u8,
}

impl Written {
    const NOT: Self = Self { bytes: [0; 24], len: 0 };

    fn of(text: &str) -> Self {
        let mut written = Self::NOT;
        if let (Some(bytes), Ok(len)) = (written.bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            bytes.copy_from_slice(text.as_bytes());
            written.len = len;
        }
        written
    }

    fn text(&self) -> Option<&str> {
        let text = std::str::from_utf8(self.bytes.get(..usize::from(self.len))?).ok()?;
        (!text.is_empty()).then_some(text)
    }
}

const SHORT_UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
const LONG_UNITS: &[(&str, u64)] = &[("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

fn parse(text: &str, units: &[(&str, u64)]) -> Option<Duration> {
    let mut rest = text;
    let mut millis = 0u64;
    for _ in 0..3 {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 || digits > 6 {
            return None;
        }
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_len);
        let factor = units.iter().find(|(name, _)| *name == unit)?.1;
        millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = next;
        if rest.is_empty() {
            return Some(Duration::from_millis(millis));
        }
    }
    None
}

fn render(duration: Duration, units: &[(&str, u64)]) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, factor) in units.iter().rev() {
        let count = (millis / factor).min(999_999);
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
            millis -= count * factor;
        }
    }
    if text.is_empty() { format!("0{}", units[0].0) } else { text }
}

macro_rules! duration_type {
    ($name:ident, $units:ident, $pattern:ident, $listed:literal, $example:literal) => {
        impl $name {
            /// From whole seconds.
            pub const fn from_secs(seconds: u64) -> Self {
                Self { length: Duration::from_secs(seconds), written: Written::NOT }
            }

            /// The standard library's duration.
            pub const fn get(self) -> Duration {
                self.length
            }
        }

        impl FromStr for $name {
            type Err = DurationError;

            fn from_str(text: &str) -> Result<Self, DurationError> {
                match parse(text, $units) {
                    Some(length) => Ok(Self { length, written: Written::of(text) }),
                    None => Err(DurationError {
                        text: text.chars().take(40).collect(),
                        units: $listed,
                        example: $example,
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = DurationError;

            fn try_from(text: String) -> Result<Self, DurationError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(duration: $name) -> Self {
                duration.to_string()
            }
        }

        impl From<$name> for Duration {
            fn from(duration: $name) -> Self {
                duration.length
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.written.text() {
                    Some(written) => f.write_str(written),
                    None => f.write_str(&render(self.length, $units)),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.length == other.length
            }
        }

        impl Eq for $name {}

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.length.cmp(&other.length)
            }
        }

        impl std::hash::Hash for $name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.length.hash(state);
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "maxLength": 24, "pattern": $pattern})
            }
        }
    };
}

duration_type!(ShortDuration, SHORT_UNITS, SHORT_PATTERN, "ms, s, m or h", "30s or 1m30s");
duration_type!(LongDuration, LONG_UNITS, LONG_PATTERN, "m, h, d or w", "26h or 7d");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up() {
        assert_eq!("1m30s".parse::<ShortDuration>().unwrap().get(), Duration::from_secs(90));
        assert_eq!("500ms".parse::<ShortDuration>().unwrap().get(), Duration::from_millis(500));
        assert_eq!("1w1d".parse::<LongDuration>().unwrap().get(), Duration::from_secs(8 * 86_400));
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in ["", "5", "s", "1d", "1.5s", "-1s", "1s1s1s1s", "1234567s", "1s ", "１s"] {
            let refused = text.parse::<ShortDuration>().unwrap_err().to_string();
            assert!(refused.contains("30s"), "{text}: {refused}");
        }
        assert!("30s".parse::<LongDuration>().is_err(), "objectives are minutes and more");
    }

    #[test]
    fn a_printed_duration_reads_back() {
        for text in ["0ms", "999ms", "1h1m1s", "90s", "26h"] {
            let duration: ShortDuration = text.parse().unwrap();
            assert_eq!(duration.to_string().parse::<ShortDuration>().unwrap(), duration);
        }
    }

    #[test]
    fn a_duration_is_written_back_as_it_was_read() {
        for text in ["26h", "90m", "0d", "999999w999999d999999h"] {
            let duration: LongDuration = serde_json::from_value(text.into()).unwrap();
            assert_eq!(serde_json::to_value(duration).unwrap(), text);
        }
        assert_eq!("26h".parse::<LongDuration>().unwrap(), "1d2h".parse().unwrap());
        assert_eq!(ShortDuration::from_secs(90).to_string(), "1m30s");
    }
}
