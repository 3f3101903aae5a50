//! Times on the wire.

use jiff::Timestamp;

/// RFC 3339 in UTC, whole seconds, as machines carry it: `2026-03-31T06:08:08Z`.
pub fn seconds(time: Timestamp) -> String {
    time.round(
        jiff::TimestampRound::new().smallest(jiff::Unit::Second).mode(jiff::RoundMode::Trunc),
    )
    .unwrap_or(time)
    .to_string()
}

/// RFC 3339 in UTC with milliseconds: `2026-03-31T06:08:08.123Z`.
pub fn milliseconds(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// Milliseconds since the Unix epoch, never negative.
pub fn unix_ms(time: Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or(0)
}

/// The time `unix_ms` milliseconds after the Unix epoch; the latest time there is when out of
/// range.
pub fn from_unix_ms(unix_ms: u64) -> Timestamp {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_exact() {
        let time = from_unix_ms(1_774_937_288_123);
        assert_eq!(seconds(time), "2026-03-31T06:08:08Z");
        assert_eq!(milliseconds(time), "2026-03-31T06:08:08.123Z");
        assert_eq!(unix_ms(time), 1_774_937_288_123);
    }
}
