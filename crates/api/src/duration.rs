//! Durations as Go clients write them: `"1m30s"`, or an integer count of nanoseconds.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, SchemaType, Type},
    },
};

/// A duration that reads Go's notation or integer nanoseconds, and writes Go's notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ApiDuration(pub Duration);

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration '{0}', write for example 15s, 1m30s or 500ms")]
pub struct InvalidDuration(pub String);

const UNITS: &[(&str, f64)] =
    &[("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

impl FromStr for ApiDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDuration(text.to_owned());
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut nanoseconds = 0.0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(invalid)?;
            let value: f64 = rest[..digits].parse().map_err(|_| invalid())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let (_, factor) = UNITS.iter().find(|(unit, _)| *unit == &rest[..letters]).ok_or_else(invalid)?;
            nanoseconds += value * factor;
            rest = &rest[letters..];
        }
        // Go's durations are 63-bit nanoseconds.
        if nanoseconds < i64::MAX as f64 { Ok(Self(Duration::from_nanos(nanoseconds as u64))) } else { Err(invalid()) }
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
            .schema_type(SchemaType::from_iter([Type::String, Type::Integer]))
            .description(Some("A duration in Go's notation, or an integer count of nanoseconds."))
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

impl<'de> Deserialize<'de> for ApiDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum TextOrNanoseconds {
            Nanoseconds(u64),
            Text(String),
        }
        match TextOrNanoseconds::deserialize(deserializer)
            .map_err(|_| de::Error::custom("invalid duration, write for example \"15s\" or a count of nanoseconds"))?
        {
            TextOrNanoseconds::Nanoseconds(nanoseconds) => Ok(Self(Duration::from_nanos(nanoseconds))),
            TextOrNanoseconds::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
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
        assert_eq!(serde_json::from_str::<ApiDuration>("15000000000").unwrap().0.as_secs(), 15);
        for bad in ["", "15", "s", "-1s", "1x", "99999999999h"] {
            assert!(bad.parse::<ApiDuration>().is_err(), "{bad}");
        }
    }
}
