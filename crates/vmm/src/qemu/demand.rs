//! How many VMs of one shape should wait for machines. Pure: the caller brings the time.
//!
//! Each start that found none waiting doubles the number; each stretch of time without a start
//! halves it, down to a floor. So bursts that come again find what they need, and a host that
//! starts nothing keeps next to nothing waiting.

use std::time::{Duration, Instant};

/// Without a start for so long, fewer wait.
const QUIET: Duration = Duration::from_secs(120);

/// Of one shape.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    wanted: usize,
    floor: usize,
    since: Instant,
}

impl Demand {
    /// Before the first start. `floor` wait whatever happens.
    pub(crate) fn new(floor: usize, now: Instant) -> Self {
        Self { wanted: floor, floor, since: now }
    }

    /// A start came; `hit` when one waited for it.
    pub(crate) fn started(&mut self, hit: bool, most: usize, now: Instant) {
        if !hit {
            self.wanted = (self.wanted * 2).clamp(1, most.max(1));
        }
        self.since = now;
    }

    /// How many should wait now, at most `most`.
    pub(crate) fn wanted(&mut self, most: usize, now: Instant) -> usize {
        while self.wanted > self.floor && now.duration_since(self.since) >= QUIET {
            self.wanted = (self.wanted / 2).max(self.floor);
            self.since += QUIET;
        }
        self.wanted.min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_double_it_and_quiet_halves_it_down_to_the_floor() {
        let begin = Instant::now();
        let mut demand = Demand::new(1, begin);
        assert_eq!(demand.wanted(8, begin), 1);
        demand.started(true, 8, begin);
        assert_eq!(demand.wanted(8, begin), 1, "what waited was enough");
        for expected in [2, 4, 8, 8] {
            demand.started(false, 8, begin);
            assert_eq!(demand.wanted(8, begin), expected);
        }
        assert_eq!(demand.wanted(3, begin), 3, "there may be no room for more");
        assert_eq!(demand.wanted(8, begin + QUIET), 4);
        assert_eq!(demand.wanted(8, begin + 100 * QUIET), 1);
    }

    #[test]
    fn a_shape_that_nobody_starts_has_none_and_one_that_is_started_has_one() {
        let begin = Instant::now();
        let mut demand = Demand::new(0, begin);
        assert_eq!(demand.wanted(8, begin), 0);
        demand.started(false, 8, begin);
        assert_eq!(demand.wanted(8, begin), 1);
        assert_eq!(demand.wanted(8, begin + 2 * QUIET), 0);
        demand.started(false, 0, begin);
        assert_eq!(demand.wanted(0, begin), 0, "none are kept at all");
    }
}
