//! Durations in the forms that clients of the reference send: Go's notation (`"1m30s"`), a number
//! whose unit depends on the field, or that number as text.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, SchemaType, Type},
    },
};

/// A duration that writes Go's notation. Reads the same; a number in JSON counts nanoseconds, as
/// Go's clients send them, and one in a text seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ApiDuration(pub Duration);

/// What is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration '{0}', write for example 15s, 1m30s or 500ms")]
pub struct InvalidDuration(pub String);

const UNITS: &[(&str, f64)] = &[
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// Shortest time that anybody means; below it somebody has counted nanoseconds in another unit.
const SHORTEST: Duration = Duration::from_millis(1);

impl ApiDuration {
    /// Why nobody can mean so short a time, unless it is zero. Asked of what is sent; what is
    /// stored may be such.
    ///
    /// # Errors
    /// The end of a sentence that begins with the field's name.
    pub fn check_unit(self) -> Result<(), String> {
        let nanoseconds = self.0.as_nanos();
        if nanoseconds == 0 || self.0 >= SHORTEST {
            return Ok(());
        }
        Err(format!(
            "{nanoseconds} ns is too short: a number counts nanoseconds here, \
             write \"{nanoseconds}s\" for seconds"
        ))
    }

    /// `None` when it is more than Go's durations hold (292 years), or negative.
    fn from_nanoseconds(nanoseconds: f64) -> Option<Self> {
        // Go's durations are 63-bit nanoseconds.
        let fits = (0.0..i64::MAX as f64).contains(&nanoseconds);
        fits.then(|| Self(Duration::from_nanos(nanoseconds.round() as u64)))
    }
}

impl FromStr for ApiDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDuration(text.escape_debug().take(40).collect());
        let mut rest = text.trim();
        rest = rest.strip_prefix('+').unwrap_or(rest);
        if rest.is_empty() {
            return Err(invalid());
        }
        let is_digit = |c: char| c.is_ascii_digit() || c == '.';
        if rest.chars().all(is_digit) {
            let seconds: f64 = rest.parse().map_err(|_| invalid())?;
            return Self::from_nanoseconds(seconds * 1e9).ok_or_else(invalid);
        }
        let mut nanoseconds = 0.0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !is_digit(c)).ok_or_else(invalid)?;
            let value: f64 = rest[..digits].parse().map_err(|_| invalid())?;
            rest = &rest[digits..];
            let letters = rest.find(is_digit).unwrap_or(rest.len());
            let (_, factor) =
                UNITS.iter().find(|(unit, _)| *unit == &rest[..letters]).ok_or_else(invalid)?;
            nanoseconds += value * factor;
            rest = &rest[letters..];
        }
        Self::from_nanoseconds(nanoseconds).ok_or_else(invalid)
    }
}

impl fmt::Display for ApiDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_nanos();
        if total == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [("ns", 1_000_u128), ("µs", 1_000_000), ("ms", 1_000_000_000)] {
            if total < size {
                return write!(f, "{}{unit}", total as f64 / (size / 1_000) as f64);
            }
        }
        let (hours, minutes) = (self.0.as_secs() / 3600, self.0.as_secs() / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}s", (self.0.as_secs() % 60) as f64 + f64::from(self.0.subsec_nanos()) / 1e9)
    }
}

impl PartialSchema for ApiDuration {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([Type::String, Type::Number]))
            .description(Some(
                "A duration in Go's notation, or a number of nanoseconds; a number as text counts \
                 seconds.",
            ))
            .examples(["15s", "1m30s"])
            .into()
    }
}

impl ToSchema for ApiDuration {}

impl Serialize for ApiDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A duration as JSON has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Sent {
    Number(f64),
    Text(String),
}

/// Reads one; `None` for null.
fn sent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Sent>, D::Error> {
    Option::<Sent>::deserialize(deserializer)
        .map_err(|_| de::Error::custom("invalid duration, write for example \"15s\""))
}

impl<'de> Deserialize<'de> for ApiDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = match sent(deserializer)? {
            None => {
                return Err(de::Error::custom("invalid duration null, write for example \"15s\""));
            }
            Some(Sent::Text(text)) => text.parse(),
            Some(Sent::Number(number)) => {
                Self::from_nanoseconds(number).ok_or_else(|| InvalidDuration(number.to_string()))
            }
        };
        read.map_err(de::Error::custom)
    }
}

/// For `#[schema(schema_with)]`: what [`whole_seconds`] reads.
pub fn whole_seconds_schema() -> Schema {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Number, Type::String, Type::Null]))
        .minimum(Some(0))
        .description(Some("Seconds, as a number or a text; or Go's notation."))
        .examples([10])
        .into()
}

/// For `#[serde(deserialize_with)]`: a field that counts whole seconds, in any form; fractions are
/// rounded up.
///
/// # Errors
/// When it is no duration.
pub fn whole_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let duration = match sent(deserializer)? {
        None => return Ok(None),
        Some(Sent::Text(text)) => text.parse::<ApiDuration>().map_err(de::Error::custom)?,
        Some(Sent::Number(seconds)) => ApiDuration::from_nanoseconds(seconds * 1e9)
            .ok_or_else(|| de::Error::custom(format!("invalid number of seconds {seconds}")))?,
    };
    Ok(Some(duration.0.as_secs() + u64::from(duration.0.subsec_nanos() > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_gos_notation() {
        for (text, millis, shown) in [
            ("15s", 15_000, "15s"),
            ("1m30s", 90_000, "1m30s"),
            ("500ms", 500, "500ms"),
            ("1.5h", 5_400_000, "1h30m0s"),
            ("0s", 0, "0s"),
            ("0", 0, "0s"),
            ("2.5s", 2_500, "2.5s"),
        ] {
            let duration: ApiDuration = text.parse().unwrap();
            assert_eq!(duration.0.as_millis(), millis, "{text}");
            assert_eq!(duration.to_string(), shown);
        }
        for bad in [
            "",
            "s",
            "-1s",
            "-1",
            "1x",
            "99999999999h",
            ".",
            "1.2.3",
            "1s2",
            "10 s",
            "٣s",
            "99999999999999",
        ] {
            assert!(bad.parse::<ApiDuration>().is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_nanoseconds_and_seconds_in_a_text() {
        let read = |json: &str| {
            serde_json::from_str::<ApiDuration>(json).map(|duration| duration.0.as_millis())
        };
        for (json, millis) in [
            ("15000000000", 15_000),
            ("1.5e10", 15_000),
            ("10000000000.0", 10_000),
            ("1000000", 1),
            ("0", 0),
            ("\"10\"", 10_000),
            ("\"10.5\"", 10_500),
            ("\"10s\"", 10_000),
            ("\"+2s\"", 2_000),
        ] {
            assert_eq!(read(json).unwrap(), millis, "{json}");
        }
        for (json, told) in [
            ("-5", "invalid duration '-5'"),
            ("1e30", "invalid duration '1000000000000000"),
            ("\"soon\"", "invalid duration 'soon', write for example 15s"),
            ("true", "write for example \"15s\""),
            ("[1]", "write for example \"15s\""),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(told), "{json}: {error}");
        }
    }

    #[test]
    fn what_nobody_means_is_read_and_told_apart() {
        for (json, told) in [
            ("3", Some("write \"3s\" for seconds")),
            ("0", None),
            ("1000000", None),
            ("\"3s\"", None),
        ] {
            let checked = serde_json::from_str::<ApiDuration>(json).unwrap().check_unit();
            match told {
                Some(told) => assert!(checked.unwrap_err().ends_with(told), "{json}"),
                None => assert_eq!(checked, Ok(()), "{json}"),
            }
        }
    }

    #[test]
    fn fields_of_seconds_take_all_forms() {
        #[derive(Debug, Deserialize)]
        struct Field {
            #[serde(default, deserialize_with = "whole_seconds")]
            timeout: Option<u64>,
        }
        let read = |json: &str| serde_json::from_str::<Field>(json).map(|field| field.timeout);
        for (json, seconds) in [
            (r#"{}"#, None),
            (r#"{"timeout": null}"#, None),
            (r#"{"timeout": 10}"#, Some(10)),
            (r#"{"timeout": 10.0}"#, Some(10)),
            (r#"{"timeout": 1.2}"#, Some(2)),
            (r#"{"timeout": "10"}"#, Some(10)),
            (r#"{"timeout": "1m"}"#, Some(60)),
            (r#"{"timeout": 9223372036}"#, Some(9_223_372_036)),
        ] {
            assert_eq!(read(json).unwrap(), seconds, "{json}");
        }
        for json in [
            r#"{"timeout": -1}"#,
            r#"{"timeout": 1e300}"#,
            r#"{"timeout": "x"}"#,
            r#"{"timeout": {}}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_duration_or_an_error(text in "[0-9.smhunµ+\\-]{0,20}|.{0,20}") {
            if let Ok(duration) = text.parse::<ApiDuration>() {
                let again: ApiDuration = duration.to_string().parse().unwrap();
                let lost = duration.0.abs_diff(again.0);
                let most = duration.0.as_nanos() / 1_000_000_000 + 1;
                proptest::prop_assert!(lost.as_nanos() <= most, "{text}");
            }
        }

        #[test]
        fn any_text_is_a_signal_or_an_error(
            text in "(sig|SIG)?(rtmin|RTMAX)?[+-]?[0-9]{0,4}|.{0,20}"
        ) {
            if let Ok(signal) = text.parse::<crate::Signal>() {
                proptest::prop_assert!((1..=64).contains(&signal.number()), "{text}");
            }
        }
    }
}
