//! Stop: ends a machine's program and its VM because someone asked.

use std::time::Duration;

use caddis_api::{MachineState, Signal};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CLEAR_TIME, Failed, Failing, LostVm, OperationKind, Outcome, Rules};
use crate::{event::Source, owner::Transaction, steps::Step};

/// How to end a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPlan {
    /// Sent first; SIGKILL sends nothing else.
    pub signal: Signal,
    /// Then SIGKILL. Milliseconds.
    pub timeout_ms: u64,
    /// Neither request, configuration nor image name the signal: the guest may know a better one.
    #[serde(default)]
    pub is_default: bool,
}

impl StopPlan {
    /// Time it may take, with the clearing-up.
    pub fn time_limit(&self) -> Duration {
        Duration::from_millis(self.timeout_ms) + CLEAR_TIME
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stop(pub StopPlan);

impl Rules for Stop {
    fn name(&self) -> &'static str {
        "stop"
    }

    fn state(&self) -> MachineState {
        MachineState::Stopping
    }

    fn steps(&self) -> &'static [Step] {
        &[Step::Signal, Step::AwaitExit, Step::PowerOff, Step::Release]
    }

    fn time_limit(&self) -> Duration {
        self.0.time_limit()
    }

    fn stop_plan(&self) -> Option<&StopPlan> {
        Some(&self.0)
    }

    fn settles_at_once(&self) -> bool {
        true
    }

    fn frees_disk(&self) -> bool {
        true
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        draft.event(source, "stop", self.state(), Value::Null);
    }

    fn done(&self, draft: &mut Transaction, outcome: &Outcome) {
        draft.row.state = MachineState::Stopped;
        let is_for_good = !draft.row.drained && draft.row.superseded_by.is_none();
        if outcome.auto_destroy && is_for_good && draft.row.next.is_none() {
            draft.row.next = Some(OperationKind::Destroy);
        }
    }

    fn failed(&self, failing: &Failing<'_>) -> Failed {
        failing.abandon(self.name(), MachineState::Stopped)
    }

    fn lost_vm(&self, draft: &mut Transaction, lost: &LostVm) {
        draft.program_lost(lost);
    }
}
