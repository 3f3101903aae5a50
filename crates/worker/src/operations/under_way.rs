//! An operation under way.

use std::time::Duration;

use caddis_api::UnixMillis;
use serde::{Deserialize, Serialize};

use super::OperationKind;
use crate::{restart::MAX_BACK_OFF, steps::Step};

/// How often a step is tried.
pub const MAX_ATTEMPTS: u32 = 3;

/// An operation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// What.
    #[serde(flatten)]
    pub kind: OperationKind,
    /// Index into its steps.
    pub step: usize,
    /// How often the step has been tried, from 1.
    pub attempt: u32,
    /// When it began.
    pub started_at: UnixMillis,
    /// When it has to be done.
    pub deadline: UnixMillis,
    /// The step's last failure.
    pub last_error: Option<String>,
    /// When it is tried again after that.
    #[serde(default)]
    pub retry_at: Option<UnixMillis>,
}

impl Operation {
    /// A new one at its first step.
    pub fn begin(kind: OperationKind, now: UnixMillis) -> Self {
        let deadline = kind.deadline(now);
        Self {
            kind,
            step: 0,
            attempt: 1,
            started_at: now,
            deadline,
            last_error: None,
            retry_at: None,
        }
    }

    /// The step to go back to when a later one failed: where everything of an earlier VM is cleared
    /// away.
    pub fn retry_from(&self) -> usize {
        let mut steps = self.kind.rules().steps().iter();
        let released = steps.position(|step| step.comes_after_the_last_vm());
        released.map_or(self.step, |released| released.min(self.step))
    }

    /// The host's clock was set ahead by so many milliseconds, or back: its times move with it.
    pub fn clock_was_set(&mut self, by_ms: i64) {
        for at in [&mut self.started_at, &mut self.deadline].into_iter().chain(&mut self.retry_at) {
            *at = at.moved_by(by_ms);
        }
        if let Some(moved) = self.kind.rules().moved_by(by_ms) {
            self.kind = moved;
        }
    }

    /// How long it may still take. Never longer than any of its kind: the clock may have been set
    /// back while no server ran.
    pub fn left(&self, now: UnixMillis) -> Duration {
        let rules = self.kind.rules();
        let wait = rules.not_before().map_or(Duration::ZERO, |_| MAX_BACK_OFF);
        let most = rules.time_limit() + wait;
        self.deadline.since(now).min(most)
    }

    /// When it goes on, where it waits for its time: after a failure, or before a restart.
    pub fn waits_until(&self) -> Option<UnixMillis> {
        let is_due = self.kind.rules().not_before();
        self.retry_at.or(is_due.filter(|_| self.current() == Some(Step::BackOff)))
    }

    /// Whether nothing comes after the step to do.
    pub fn is_at_last_step(&self) -> bool {
        self.step + 1 == self.kind.rules().steps().len()
    }

    /// The step to do; `None` when all are done.
    pub fn current(&self) -> Option<Step> {
        self.kind.rules().steps().get(self.step).copied()
    }
}

#[cfg(test)]
mod tests {
    use caddis_api::Signal;

    use super::*;
    use crate::operations::{Start, StartReason, Stop, StopPlan, Suspend, start::START_TIME};

    #[test]
    fn a_clock_that_is_set_neither_ends_nor_holds_up_what_is_under_way() {
        let (now, hours) = (UnixMillis::new(1_000_000_000), 2 * 3_600_000);
        let not_before = now + Duration::from_secs(4);
        let restart = Start::because(StartReason::RestartPolicy { not_before });
        let plan = StopPlan { signal: Signal::TERM, timeout_ms: 5000, is_default: false };
        let stop = OperationKind::Stop(Stop(plan));
        let suspend = OperationKind::Suspend(Suspend::default());
        for kind in [OperationKind::START, restart, stop, suspend, OperationKind::Create] {
            let retry_at = Some(now + Duration::from_millis(250));
            let begun = Operation { retry_at, ..Operation::begin(kind, now) };
            for by in [hours, -hours] {
                let mut operation = begun.clone();
                operation.clock_was_set(by);
                let after = now.moved_by(by);
                assert_eq!(operation.left(after), begun.left(now), "{:?}", begun.kind);
                let waits =
                    |operation: &Operation, now| operation.waits_until().map(|at| at.since(now));
                assert_eq!(waits(&operation, after), waits(&begun, now));
                // Set while no server ran, nothing moves with it.
                let left = begun.left(after);
                assert!(
                    left <= begun.left(now).max(START_TIME + MAX_BACK_OFF),
                    "{:?}: {left:?}",
                    begun.kind
                );
            }
        }
    }
}
