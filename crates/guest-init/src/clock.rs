//! The time of day, from the host.
#![expect(unsafe_code, reason = "adjtime has no safe wrapper")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

/// Differences beyond this are stepped over, smaller ones are made up for gradually, by 500
/// millionths at most, so that time does not jump.
const STEP_NS: i128 = 30_000_000;
/// An answer that may be off by more is asked for again, so often.
const DOUBT: Duration = Duration::from_millis(10);
const TRIES: u32 = 5;

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

/// Questions for the host's time, one at a time. An answer was true at some moment between question
/// and arrival, so half the time between them is how far it may be off.
#[derive(Debug, Default)]
pub struct Sync {
    asked: Option<(u64, Instant)>,
    last_id: u64,
    tries: u32,
}

impl Sync {
    /// A new round of questions.
    pub fn begin(&mut self) {
        self.tries = 0;
    }

    /// The id of the next question, which is asked now.
    pub fn ask(&mut self) -> u64 {
        self.last_id += 1;
        self.tries += 1;
        self.asked = Some((self.last_id, Instant::now()));
        self.last_id
    }

    /// Whether a question is not answered yet.
    pub fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// Brings the clock to the host's. True when the answer took so long that it is worth to ask
    /// again.
    pub fn answered(&mut self, id: u64, time_ns: u64) -> Result<bool, String> {
        let Some((_, at)) = self.asked.take_if(|(asked, _)| *asked == id) else { return Ok(false) };
        let doubt = at.elapsed() / 2;
        let again = doubt > DOUBT && self.tries < TRIES;
        let truth = time_ns.saturating_add(u64::try_from(doubt.as_nanos()).unwrap_or(0));
        let difference = i128::from(truth) - i128::from(now_ns());
        if difference.unsigned_abs() <= doubt.as_nanos() {
            return Ok(again);
        }
        follow(truth, difference).map(|()| again)
    }
}

/// Brings the clock towards the host's, of which it differs by so many nanoseconds.
fn follow(time_ns: u64, difference: i128) -> Result<(), String> {
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
