//! When a check is tried next, and what repeated failures mean. Pure.
//!
//! ```text
//!   grace ──▶ quick: until the first pass, two intervals at most ──▶ every interval
//!                                                                     │ repeated failures
//!                                                                     ▼
//!                              ever less often, unless they are counted for a restart
//! ```

use std::time::Duration;

use caddis_api::config::Check;
use tokio::time::Instant;

/// Time between attempts until the first that passes.
const QUICK: Duration = Duration::from_millis(250);
/// How many intervals a check is tried quickly at most.
const QUICK_INTERVALS: u32 = 2;
/// Longest time between attempts that back-off leads to.
const LONGEST: Duration = Duration::from_secs(60);
/// Shortest interval: configurations may hold any.
const SHORTEST: Duration = Duration::from_millis(100);

/// How a check has fared since the machine was started or resumed.
#[derive(Debug)]
pub struct Course {
    interval: Duration,
    /// Failures in a row that restart the machine.
    liveness: Option<u32>,
    /// It has passed since the machine's boot.
    has_passed: bool,
    /// It has passed since it is tried.
    is_settled: bool,
    /// When it was tried first.
    first: Option<Instant>,
    /// Failures in a row, but for those of quick attempts.
    failures: u32,
}

/// What follows an attempt.
#[derive(Debug, PartialEq, Eq)]
pub struct Next {
    /// The next attempt begins this long after the last one began, or as soon as that has ended.
    pub wait: Duration,
    /// The machine is to be restarted, after so many failures in a row.
    pub restart_after: Option<u32>,
}

impl Course {
    /// The course of a check that has not been tried, or was before the machine was resumed.
    pub fn new(check: &Check, has_passed: bool) -> Self {
        Self {
            interval: check.interval().max(SHORTEST),
            liveness: check.liveness.map(|liveness| liveness.failures()),
            has_passed,
            is_settled: false,
            first: None,
            failures: 0,
        }
    }

    /// An attempt that began at `at` has ended.
    pub fn tried(&mut self, at: Instant, passed: bool) -> Next {
        let first = *self.first.get_or_insert(at);
        if passed {
            (self.has_passed, self.is_settled, self.failures) = (true, true, 0);
            return Next { wait: self.interval, restart_after: None };
        }
        if !self.is_settled && at < first + self.interval * QUICK_INTERVALS {
            return Next { wait: QUICK.min(self.interval), restart_after: None };
        }
        self.failures = self.failures.saturating_add(1);
        let Some(limit) = self.liveness else {
            let doubled = 2_u32.saturating_pow(self.failures - 1);
            let wait = self.interval.saturating_mul(doubled);
            return Next { wait: wait.min(LONGEST.max(self.interval)), restart_after: None };
        };
        let is_reached = self.has_passed && self.failures >= limit;
        let restart_after = is_reached.then(|| std::mem::take(&mut self.failures));
        Next { wait: self.interval, restart_after }
    }
}

#[cfg(test)]
mod tests {
    use caddis_api::{ApiDuration, config::Liveness};

    use super::*;

    fn check(interval: Duration, failures: Option<u32>) -> Check {
        Check {
            interval: Some(ApiDuration(interval)),
            liveness: failures.map(|failures| Liveness { failures: Some(failures) }),
            ..Check::default()
        }
    }

    /// Follows the course as the runner does; returns what followed each attempt.
    fn follow(course: &mut Course, at: &mut Instant, outcomes: &[bool]) -> Vec<Next> {
        let step = |passed: &bool| {
            let next = course.tried(*at, *passed);
            *at += next.wait;
            next
        };
        outcomes.iter().map(step).collect()
    }

    fn seconds(nexts: &[Next]) -> Vec<f64> {
        nexts.iter().map(|next| next.wait.as_secs_f64()).collect()
    }

    const TEN: Duration = Duration::from_secs(10);

    #[test]
    fn attempts_are_quick_until_the_first_pass() {
        let (mut course, mut at) = (Course::new(&check(TEN, None), false), Instant::now());
        let nexts = follow(&mut course, &mut at, &[false, false, true, true, false]);
        assert_eq!(seconds(&nexts), [0.25, 0.25, 10.0, 10.0, 10.0]);
    }

    #[test]
    fn attempts_are_quick_for_two_intervals_at_most() {
        let (mut course, mut at) = (Course::new(&check(TEN, None), false), Instant::now());
        let nexts = follow(&mut course, &mut at, &[false; 82]);
        assert!(nexts[..80].iter().all(|next| next.wait == QUICK));
        assert_eq!(seconds(&nexts[80..]), [10.0, 20.0]);
    }

    #[test]
    fn an_interval_shorter_than_the_quick_one_is_kept_and_none_is_shorter_than_the_shortest() {
        for (given, kept) in [(200, 0.2), (1, 0.1), (0, 0.1)] {
            let interval = Duration::from_millis(given);
            let (mut course, mut at) = (Course::new(&check(interval, None), false), Instant::now());
            assert_eq!(seconds(&follow(&mut course, &mut at, &[false, true])), [kept, kept]);
        }
    }

    #[test]
    fn repeated_failures_are_tried_less_often_until_one_passes() {
        let (mut course, mut at) = (Course::new(&check(TEN, None), false), Instant::now());
        let mut outcomes = vec![true];
        outcomes.extend([false; 6]);
        outcomes.extend([true, false]);
        let nexts = follow(&mut course, &mut at, &outcomes);
        assert_eq!(seconds(&nexts), [10.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0, 10.0, 10.0]);
    }

    #[test]
    fn an_interval_longer_than_the_longest_back_off_is_kept() {
        let minutes = Duration::from_secs(300);
        let (mut course, mut at) = (Course::new(&check(minutes, None), false), Instant::now());
        assert_eq!(seconds(&follow(&mut course, &mut at, &[true, false, false])), [300.0; 3]);
    }

    fn restarts(nexts: &[Next]) -> Vec<Option<u32>> {
        nexts.iter().map(|next| next.restart_after).collect()
    }

    #[test]
    fn liveness_counts_failures_in_a_row_at_the_checks_own_interval() {
        let (mut course, mut at) = (Course::new(&check(TEN, Some(3)), false), Instant::now());
        let outcomes = [true, false, false, true, false, false, false, false];
        let nexts = follow(&mut course, &mut at, &outcomes);
        let expected = [None, None, None, None, None, None, Some(3), None];
        assert_eq!(restarts(&nexts), expected);
        assert!(nexts.iter().all(|next| next.wait == TEN), "{nexts:?}");
    }

    #[test]
    fn liveness_does_nothing_before_the_first_pass_of_the_boot() {
        let (mut course, mut at) = (Course::new(&check(TEN, Some(1)), false), Instant::now());
        assert_eq!(restarts(&follow(&mut course, &mut at, &[false; 90])), [None; 90]);
    }

    #[test]
    fn liveness_goes_on_after_a_resume_but_not_with_its_first_attempts() {
        let (mut course, mut at) = (Course::new(&check(TEN, Some(1)), true), Instant::now());
        let nexts = restarts(&follow(&mut course, &mut at, &[false; 81]));
        assert_eq!(nexts[..80], [None; 80]);
        assert_eq!(nexts[80], Some(1));
    }
}
