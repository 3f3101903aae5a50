//! When what has failed is tried again.

use std::time::Duration;

use rand::Rng as _;

/// The first wait.
const FIRST: Duration = Duration::from_secs(5);
/// The longest.
pub const LONGEST: Duration = Duration::from_secs(10 * 60);

/// The wait after so many tries, of which the last has just failed: each about double the one
/// before, and different for each of those that fail at the same time.
pub fn wait(tries: u32) -> Duration {
    let doubled = FIRST.saturating_mul(1 << tries.saturating_sub(1).min(16));
    doubled.min(LONGEST).mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_become_longer_and_end_at_ten_minutes() {
        for (tries, longest) in [(1, 5), (2, 10), (3, 20), (7, 320), (8, 600), (u32::MAX, 600)] {
            let longest = Duration::from_secs(longest);
            for _ in 0..20 {
                assert!((longest / 2..=longest).contains(&wait(tries)), "{tries}");
            }
        }
    }
}
