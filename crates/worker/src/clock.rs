//! The time by which a worker records and waits, which tests move.
//!
//! Times are recorded by the wall clock, since they outlive the process and the host. When it is
//! set, all of them move with it ([`crate::row::MachineRow::clock_was_set`]): a deadline is neither
//! over at once nor hours away.

use std::{sync::Arc, time::Duration};

use caddis_api::UnixMillis;
use nix::time::{ClockId, clock_gettime};
use tokio::{sync::watch, time::Instant};

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
    milliseconds(u128::from(UnixMillis::now().as_u64())) - milliseconds(boot.as_millis())
}

/// The clock of a worker: its host's, and ahead of that by as much as a test has let pass.
///
/// A clone is the same clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead: Arc<watch::Sender<Duration>>,
}

impl Clock {
    /// The time of the wall clock.
    pub fn unix_now(&self) -> UnixMillis {
        UnixMillis::now() + self.ahead()
    }

    /// Nanoseconds since the Unix epoch.
    pub fn now_ns(&self) -> u64 {
        host_now_ns() + u64::try_from(self.ahead().as_nanos()).unwrap_or(0)
    }

    /// The time that does not change when the wall clock is set.
    pub fn now(&self) -> Instant {
        Instant::now() + self.ahead()
    }

    /// Waits until [`Clock::now`] is `end`.
    pub async fn sleep_until(&self, end: Instant) {
        let mut moved = self.ahead.subscribe();
        loop {
            let ahead = *moved.borrow_and_update();
            let Some(end) = end.checked_sub(ahead) else { return };
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                // It is never dropped before this: we hold it.
                _ = moved.changed() => {}
            }
        }
    }

    /// Waits for so long.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }

    /// What the future ends with, or nothing when this much time is over first.
    pub async fn timeout<T>(
        &self,
        duration: Duration,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let end = self.now() + duration;
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.sleep_until(end) => None,
        }
    }

    /// Has this much time pass at once: whoever waits for less is woken. For tests.
    pub fn advance(&self, by: Duration) {
        self.ahead.send_modify(|ahead| *ahead += by);
    }

    fn ahead(&self) -> Duration {
        *self.ahead.borrow()
    }
}

/// Nanoseconds since the Unix epoch by the host's clock, by which lines of logs are ordered.
pub fn host_now_ns() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}
