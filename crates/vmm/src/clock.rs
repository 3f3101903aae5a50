//! The processor's time stamp counter.
#![expect(unsafe_code, reason = "reading the counter is an intrinsic")]

use std::{fs, path::Path, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::VmmError;

/// Time of one measurement. The error of reading two clocks one after the other is below 1 µs.
const SPAN: Duration = Duration::from_millis(10);

/// Frequency of the counter, kHz, measured once per boot of the host and kept in `file`: guests that were saved go by it,
/// and no two measurements are quite the same. Blocks.
pub(crate) fn tsc_khz_of_this_boot(file: &Path) -> Result<u64, VmmError> {
    let boot = crate::record::boot_id()?;
    let known = fs::read_to_string(file).unwrap_or_default();
    let khz = known.strip_prefix(&boot).and_then(|khz| khz.trim().parse().ok());
    if let Some(khz) = khz.filter(|khz| *khz > 0) {
        return Ok(khz);
    }
    let khz = tsc_khz();
    fs::write(file, format!("{boot} {khz}\n")).map_err(VmmError::io(format!("write {}", file.display())))?;
    Ok(khz)
}

/// Frequency of the counter, kHz: the median of several measurements, since this thread may lose the processor
/// between the reading of the one clock and the other.
fn tsc_khz() -> u64 {
    let mut measured = [0; 5].map(|_: u64| measure());
    measured.sort_unstable();
    measured[2]
}

fn measure() -> u64 {
    let (start, counter) = (raw(), counter());
    std::thread::sleep(SPAN);
    let (elapsed, ticks) = (raw().saturating_sub(start), self::counter().saturating_sub(counter));
    // Ticks per nanosecond times a million.
    (u128::from(ticks) * 1_000_000).checked_div(elapsed.as_nanos()).and_then(|khz| u64::try_from(khz).ok()).unwrap_or(0)
}

/// A clock that nobody adjusts.
fn raw() -> Duration {
    // Linux has had this clock since 2.6.28.
    clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).map(Duration::from).unwrap_or_default()
}

fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_frequency_is_plausible_and_steady() {
        let (one, two) = (super::tsc_khz(), super::tsc_khz());
        assert!((500_000..10_000_000).contains(&one), "{one}");
        assert!(one.abs_diff(two) < one / 100, "{one} {two}");
    }
}
