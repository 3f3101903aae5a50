//! Restart: ends a machine's program and VM and boots it again.

use std::time::Duration;

use caddis_api::MachineState;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{LostVm, Outcome, Rules, start::START_TIME, stop::StopPlan};
use crate::{event::Source, owner::Transaction, steps::Step};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Restart(pub StopPlan);

impl Rules for Restart {
    fn name(&self) -> &'static str {
        "restart"
    }

    fn state(&self) -> MachineState {
        MachineState::Restarting
    }

    fn steps(&self) -> &'static [Step] {
        use Step::{
            AwaitExit, Boot, Configure, Launch, PowerOff, PrepareRoot, Pull, Release, Signal,
        };
        &[Signal, AwaitExit, PowerOff, Release, Pull, PrepareRoot, Launch, Boot, Configure]
    }

    fn time_limit(&self) -> Duration {
        self.0.time_limit() + START_TIME
    }

    fn stop_plan(&self) -> Option<&StopPlan> {
        Some(&self.0)
    }

    fn runs_afterwards(&self) -> bool {
        true
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        draft.event(source, "restart", self.state(), Value::Null);
    }

    fn done(&self, draft: &mut Transaction, outcome: &Outcome) {
        draft.launched(outcome);
        draft.reach(MachineState::Started, Source::User, "restart", outcome.told.clone());
    }

    fn lost_vm(&self, draft: &mut Transaction, lost: &LostVm) {
        if !draft.go_back() {
            draft.program_lost(lost);
        }
    }
}
