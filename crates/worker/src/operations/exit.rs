//! Exit: clears up after a program that ended by itself.

use std::time::Duration;

use caddis_api::MachineState;
use serde::{Deserialize, Serialize};

use super::{CLEAR_TIME, Failed, Failing, OperationKind, Outcome, Rules, Start, StartReason};
use crate::{event::Source, owner::Transaction, restart::Verdict, steps::Step};

/// See the module. Its event comes before it ([`Transaction::begin_exit`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// What follows.
    pub then: Verdict,
}

impl Exit {
    /// Whether the machine is started again afterwards.
    pub fn restarts(&self) -> bool {
        matches!(self.then, Verdict::Restart { .. })
    }
}

impl Rules for Exit {
    fn name(&self) -> &'static str {
        "exit"
    }

    fn state(&self) -> MachineState {
        MachineState::Stopping
    }

    fn steps(&self) -> &'static [Step] {
        &[Step::PowerOff, Step::Release]
    }

    fn time_limit(&self) -> Duration {
        CLEAR_TIME
    }

    fn settles_at_once(&self) -> bool {
        true
    }

    fn done(&self, draft: &mut Transaction, _: &Outcome) {
        draft.row.state = MachineState::Stopped;
        match self.then {
            Verdict::Stop | Verdict::GiveUp => {}
            // A stop or destroy that came meanwhile goes first.
            Verdict::Restart { .. } | Verdict::Destroy if draft.row.next.is_some() => {}
            Verdict::Restart { after_ms } => {
                let now = draft.now;
                draft.count_restart(now);
                let not_before = now + Duration::from_millis(after_ms);
                let reason = StartReason::RestartPolicy { not_before };
                draft.begin(Start::because(reason), Source::Worker);
            }
            Verdict::Destroy => draft.begin(OperationKind::Destroy, Source::Worker),
        }
    }

    fn failed(&self, failing: &Failing<'_>) -> Failed {
        failing.abandon(self.name(), MachineState::Stopped)
    }
}
