//! Times on the wire.

use std::{
    ops::{Add, AddAssign, Sub},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A time in milliseconds since the Unix epoch, as it is recorded and as events carry it.
///
/// What would be before the epoch is the epoch, and what is too late is the latest there is: a
/// clock may be set to anything.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(u64);

impl UnixMillis {
    /// The Unix epoch: in records also what never happened.
    pub const EPOCH: Self = Self(0);

    /// So many milliseconds after the epoch.
    pub const fn new(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// So many seconds after the epoch.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// By the host's clock.
    pub fn now() -> Self {
        Timestamp::now().into()
    }

    /// Milliseconds since the epoch.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whole seconds since the epoch.
    pub const fn as_seconds(self) -> u64 {
        self.0 / 1000
    }

    /// How long it is after `earlier`; zero when it is before.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// It, after the clock it was taken from was set ahead by so many milliseconds, or back.
    #[must_use]
    pub const fn moved_by(self, milliseconds: i64) -> Self {
        Self(self.0.saturating_add_signed(milliseconds))
    }
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Add<Duration> for UnixMillis {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(whole_milliseconds(later)))
    }
}

impl AddAssign<Duration> for UnixMillis {
    fn add_assign(&mut self, later: Duration) {
        *self = *self + later;
    }
}

impl Sub<Duration> for UnixMillis {
    type Output = Self;

    fn sub(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(whole_milliseconds(earlier)))
    }
}

impl From<Timestamp> for UnixMillis {
    fn from(time: Timestamp) -> Self {
        Self(unix_ms(time))
    }
}

impl From<UnixMillis> for Timestamp {
    fn from(time: UnixMillis) -> Self {
        from_unix_ms(time.0)
    }
}

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

    #[test]
    fn a_time_is_a_number_on_the_wire_and_ends_at_its_bounds() {
        let time: UnixMillis = serde_json::from_str("1774937288123").unwrap();
        assert_eq!(serde_json::to_string(&time).unwrap(), "1774937288123");
        assert_eq!(milliseconds(time.into()), "2026-03-31T06:08:08.123Z");
        assert_eq!(UnixMillis::from(Timestamp::from(time)), time);
        assert_eq!(UnixMillis::from_seconds(time.as_seconds()) + Duration::from_millis(123), time);

        let hour = Duration::from_secs(3600);
        assert_eq!((time + hour).since(time), hour);
        assert_eq!(time.since(time + hour), Duration::ZERO);
        assert_eq!(time - hour, time.moved_by(-3_600_000));
        assert_eq!(UnixMillis::new(5) - hour, UnixMillis::EPOCH);
        assert_eq!(UnixMillis::new(5).moved_by(-6), UnixMillis::EPOCH);
        let last = UnixMillis::new(u64::MAX);
        assert_eq!((last + hour, last.moved_by(1)), (last, last));
        assert_eq!(UnixMillis::EPOCH + Duration::MAX, last);
        assert_eq!(UnixMillis::from_seconds(u64::MAX), last);
        assert_eq!(Timestamp::from(last), Timestamp::MAX);
    }
}
