//! The wall clock.

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    caddis_api::time::unix_ms(jiff::Timestamp::now())
}

/// Nanoseconds since the Unix epoch.
pub fn now_ns() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}
