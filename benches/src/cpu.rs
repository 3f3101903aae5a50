//! How long the host's processors were busy, from `/proc/stat`: everything counts, in whichever process it was.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// One tick of `/proc/stat`: `USER_HZ` is 100 on every architecture that Linux runs VMs on.
const TICK_MS: f64 = 10.0;
/// The host is watched in steps of this.
const WINDOW: Duration = Duration::from_millis(200);
/// Quiet: busy for at most this part of one processor beyond what it was before. Five ticks of twenty.
const QUIET: f64 = 0.25;
/// Quiet must last for so many windows.
const QUIET_WINDOWS: u32 = 2;
/// After so long it won't get quiet.
const PATIENCE: Duration = Duration::from_secs(15);

/// Busy time of all processors since boot, milliseconds.
///
/// # Errors
/// When `/proc/stat` is not as expected.
pub fn busy_ms() -> Result<f64> {
    parse(&std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?)
}

/// Of the first line `cpu user nice system idle iowait irq softirq steal guest guest_nice` all but idle, iowait and
/// steal; guest is in user.
fn parse(stat: &str) -> Result<f64> {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
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
    /// Busy time of the host meanwhile, milliseconds.
    pub busy_ms: f64,
    /// The same until the host was quiet again.
    pub busy_until_quiet_ms: f64,
}

/// A host at rest, before something is done.
#[derive(Debug)]
pub struct Rest {
    /// Busy milliseconds per millisecond: what goes on anyway.
    rate: f64,
}

impl Rest {
    /// Waits until the host is at rest, or does the same amount of work from window to window.
    ///
    /// # Errors
    /// When it doesn't come to rest.
    pub async fn reach() -> Result<Self> {
        let (began, mut before) = (Instant::now(), window().await?);
        loop {
            let rate = window().await?;
            if (rate - before).abs() <= QUIET {
                return Ok(Self { rate: f64::midpoint(rate, before) });
            }
            if began.elapsed() > PATIENCE {
                bail!("the host does not come to rest, other work runs on it");
            }
            before = rate;
        }
    }

    /// Does something, and goes on counting until the host is as quiet as before. What it did at rest is not counted.
    ///
    /// # Errors
    /// When the work fails, or the host doesn't get quiet again.
    pub async fn cost(&self, work: impl Future<Output = Result<()>>) -> Result<Cost> {
        let (before, began) = (busy_ms()?, Instant::now());
        work.await?;
        let ms = milliseconds(began);
        let busy_ms = (busy_ms()? - before - self.rate * ms).max(0.0);
        let mut quiet = 0;
        while quiet < QUIET_WINDOWS {
            quiet = if window().await? <= self.rate + QUIET { quiet + 1 } else { 0 };
            if began.elapsed() > PATIENCE {
                bail!("the host does not get quiet again, other work runs on it");
            }
        }
        let total = self::busy_ms()? - before - self.rate * milliseconds(began);
        Ok(Cost { ms, busy_ms, busy_until_quiet_ms: total.max(busy_ms) })
    }
}

/// Since a moment, milliseconds.
pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

async fn window() -> Result<f64> {
    let (before, began) = (busy_ms()?, Instant::now());
    tokio::time::sleep(WINDOW).await;
    Ok((busy_ms()? - before) / milliseconds(began))
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
