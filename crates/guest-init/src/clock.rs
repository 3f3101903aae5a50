//! The time of day, from the host.
#![expect(unsafe_code, reason = "adjtime has no safe wrapper")]

use std::time::{SystemTime, UNIX_EPOCH};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

/// Differences beyond this are stepped over, smaller ones are made up for gradually, so that time does not jump.
const STEP_NS: i128 = 500_000_000;

/// Nanoseconds since the Unix epoch.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Sets the clock.
pub fn set(time_ns: u64) -> Result<(), String> {
    let seconds = i64::try_from(time_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let time = TimeSpec::new(seconds, (time_ns % 1_000_000_000) as i64);
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|e| format!("can't set the clock: {e}"))
}

/// Brings the clock towards the host's.
pub fn follow(time_ns: u64) -> Result<(), String> {
    let difference = i128::from(time_ns) - i128::from(now_ns());
    if difference.abs() > STEP_NS {
        return set(time_ns);
    }
    let delta = libc::timeval { tv_sec: 0, tv_usec: (difference / 1000) as libc::suseconds_t };
    // SAFETY: the struct outlives the call; what is returned in the other is not wanted.
    match unsafe { libc::adjtime(&raw const delta, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(format!("can't adjust the clock: {}", std::io::Error::last_os_error())),
    }
}
