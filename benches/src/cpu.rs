//! How long the host's processors were busy, from `/proc/stat`: everything counts, in whichever
//! process it was.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// One tick of `/proc/stat`: `USER_HZ` is 100 on every architecture that Linux runs VMs on.
const TICK_MS: f64 = 10.0;
/// The host is watched in steps of this.
const WINDOW: Duration = Duration::from_millis(200);
/// Quiet: busy for at most this part of one processor. Five ticks of twenty.
const QUIET: f64 = 0.25;
/// Quiet must last for so many windows.
const QUIET_WINDOWS: u32 = 2;
/// After so long a host is not waited for any more: other work runs on it.
const TIMEOUT: Duration = Duration::from_secs(2);
/// And after so long when it was quiet before: whatever goes on was begun by what was measured.
const LONG_TIMEOUT: Duration = Duration::from_secs(20);

/// Busy time of all processors since boot, milliseconds.
///
/// # Errors
/// When `/proc/stat` is not as expected.
pub fn busy_ms() -> Result<f64> {
    parse(&std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?)
}

/// Of the first line `cpu user nice system idle iowait irq softirq steal guest guest_nice` all but
/// idle, iowait and steal; guest is in user.
fn parse(stat: &str) -> Result<f64> {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        bail!("the first line of /proc/stat is {line}");
    };
    Ok((user + nice + system + irq + softirq) as f64 * TICK_MS)
}

/// What something cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// How long it took, milliseconds.
    pub ms: f64,
    /// What the processors did. On a host with other work to do nobody can say.
    pub busy: Option<Busy>,
}

/// Busy time of the host, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Busy {
    /// While it was done.
    pub meanwhile_ms: f64,
    /// Until the host was quiet again.
    pub until_quiet_ms: f64,
}

/// Whether the host is quiet, waiting some time for it.
///
/// # Errors
/// When `/proc/stat` can't be read.
pub async fn rest() -> Result<bool> {
    become_quiet(TIMEOUT).await
}

/// Does something on a host at rest, and goes on counting until it is quiet again.
///
/// # Errors
/// When the work fails, or the host doesn't get quiet again that was so before.
pub async fn cost(at_rest: bool, work: impl Future<Output = Result<()>>) -> Result<Cost> {
    let (before, began) = (busy_ms()?, Instant::now());
    work.await?;
    let ms = milliseconds(began);
    if !at_rest {
        return Ok(Cost { ms, busy: None });
    }
    let meanwhile_ms = busy_ms()? - before;
    if !become_quiet(LONG_TIMEOUT).await? {
        bail!("the host does not get quiet again");
    }
    Ok(Cost { ms, busy: Some(Busy { meanwhile_ms, until_quiet_ms: busy_ms()? - before }) })
}

async fn become_quiet(patience: Duration) -> Result<bool> {
    let (began, mut quiet) = (Instant::now(), 0);
    while quiet < QUIET_WINDOWS {
        if began.elapsed() > patience {
            return Ok(false);
        }
        let (before, window) = (busy_ms()?, Instant::now());
        tokio::time::sleep(WINDOW).await;
        let rate = (busy_ms()? - before) / milliseconds(window);
        quiet = if rate <= QUIET { quiet + 1 } else { 0 };
    }
    Ok(true)
}

/// Since a moment, milliseconds.
pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_not_idle_waiting_or_stolen_is_busy() {
        assert_eq!(parse("cpu  1 2 4 1000 1000 8 16 1000 1 0\ncpu0 1\n").unwrap(), 310.0);
        assert!(parse("cpu  1 2 4\n").is_err());
        assert!(busy_ms().unwrap() > 0.0);
    }
}
