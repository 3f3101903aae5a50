//! The wall clock, which may be set while we run.
//!
//! Times are recorded by the wall clock, since they outlive the process and the host. When it is
//! set, all of them move with it ([`crate::row::MachineRow::clock_was_set`]): a deadline is neither
//! over at once nor hours away.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A clock that differs by less was not set, it only goes better or worse than the other.
pub const SET_MS: i64 = 1000;
/// How often it is looked whether the clock was set.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How far the wall clock is ahead of the time since the host's boot, milliseconds. That time
/// counts also while the host sleeps, so the difference changes by the clock's being set and by
/// nothing else.
pub fn offset_ms() -> i64 {
    // Linux has had this clock since 2.6.39.
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    let milliseconds = |value: u128| i64::try_from(value).unwrap_or(i64::MAX);
    milliseconds(u128::from(now_ms())) - milliseconds(boot.as_millis())
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    caddis_api::time::unix_ms(jiff::Timestamp::now())
}

/// Nanoseconds since the Unix epoch.
pub fn now_ns() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}
