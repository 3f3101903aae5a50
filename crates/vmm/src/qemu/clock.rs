//! The processor's time stamp counter.
#![expect(unsafe_code, reason = "reading the counter is an intrinsic")]

use std::{fs, path::Path, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::VmmError;

/// Time of one measurement. The error of reading two clocks one after the other is below 1 µs.
const SPAN: Duration = Duration::from_millis(10);

/// Rates closer together than one part in so many are one: guests keep to the host's time in spite
/// of it.
const SAME: u64 = 5_000;

/// Frequency of the counter, kHz, measured once per boot of the host and kept in `file`: guests
/// that were saved go by it, and no two measurements are quite the same. After a reboot the old one
/// stays if it is still true. Blocks.
pub(crate) fn tsc_khz_of_this_host(file: &Path) -> Result<u64, VmmError> {
    let boot = crate::record::boot_id()?;
    let text = fs::read_to_string(file).unwrap_or_default();
    let known =
        text.split_once(' ').and_then(|(boot, khz)| Some((boot, khz.trim().parse::<u64>().ok()?)));
    let khz = match known {
        Some((then, khz)) if then == boot && khz > 0 => return Ok(khz),
        Some((_, khz)) => still_true(khz, tsc_khz()),
        None => tsc_khz(),
    };
    let new = file.with_extension("new");
    if let Err(error) =
        fs::write(&new, format!("{boot} {khz}\n")).and_then(|()| fs::rename(&new, file))
    {
        // The next server measures it again.
        tracing::warn!(path = %file.display(), %error, "can't record the CPU's clock rate");
    }
    Ok(khz)
}

/// The rate that was known, unless what is measured is another.
fn still_true(known: u64, measured: u64) -> u64 {
    if known.abs_diff(measured) <= measured / SAME { known } else { measured }
}

/// Frequency of the counter, kHz: the median of several measurements, since this thread may lose
/// the processor between the reading of the one clock and the other.
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
    (u128::from(ticks) * 1_000_000)
        .checked_div(elapsed.as_nanos())
        .and_then(|khz| u64::try_from(khz).ok())
        .unwrap_or(0)
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
    fn a_rate_that_is_nearly_the_known_one_is_the_known_one() {
        assert_eq!(super::still_true(2_500_000, 2_500_400), 2_500_000);
        assert_eq!(super::still_true(2_500_000, 2_501_000), 2_501_000);
    }

    #[test]
    fn the_frequency_is_plausible_and_steady() {
        let (one, two) = (super::tsc_khz(), super::tsc_khz());
        assert!((500_000..10_000_000).contains(&one), "{one}");
        assert!(one.abs_diff(two) < one / 100, "{one} {two}");
    }
}
