//! Destroy: removes a machine.

use std::time::Duration;

use caddis_api::MachineState;
use serde_json::Value;

use super::{CLEAR_TIME, Failed, Failing, Outcome, Rules};
use crate::{event::Source, owner::Transaction, steps::Step};

/// See the module.
pub struct Destroy;

impl Rules for Destroy {
    fn name(&self) -> &'static str {
        "destroy"
    }

    fn state(&self) -> MachineState {
        MachineState::Destroying
    }

    fn steps(&self) -> &'static [Step] {
        &[Step::Release, Step::RemoveFiles]
    }

    fn time_limit(&self) -> Duration {
        CLEAR_TIME
    }

    fn frees_disk(&self) -> bool {
        true
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        draft.event(source, "destroy", self.state(), Value::Null);
    }

    fn done(&self, draft: &mut Transaction, _: &Outcome) {
        draft.row.destroyed_at = Some(draft.now);
        draft.row.lease = None;
        draft.row.next = None;
        draft.reach(MachineState::Destroyed, Source::Worker, "destroy", Value::Null);
    }

    fn failed(&self, failing: &Failing<'_>) -> Failed {
        failing.hopeless(self.name())
    }
}
