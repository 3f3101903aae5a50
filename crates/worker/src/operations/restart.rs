//! Restart: ends a machine's program and VM and boots it again.

use std::time::Duration;

use caddis_api::MachineState;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{LostVm, Outcome, Rules, start::START_TIME, stop::StopPlan};
use crate::{event::Source, owner::Transaction, steps::Step};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// How its program is ended.
    #[serde(flatten)]
    pub plan: StopPlan,
    /// Which health check has failed, for the user, where that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<String>,
}

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
        self.plan.time_limit() + START_TIME
    }

    fn stop_plan(&self) -> Option<&StopPlan> {
        Some(&self.plan)
    }

    fn runs_afterwards(&self) -> bool {
        true
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        let told = self.unhealthy.as_ref().map_or(Value::Null, |why| json!({ "message": why }));
        draft.event(source, "restart", self.state(), told);
    }

    fn done(&self, draft: &mut Transaction, outcome: &Outcome) {
        draft.launched(outcome);
        let source = if self.unhealthy.is_some() { Source::Worker } else { Source::User };
        draft.reach(MachineState::Started, source, "restart", outcome.told.clone());
    }

    fn lost_vm(&self, draft: &mut Transaction, lost: &LostVm) {
        if !draft.go_back() {
            draft.program_lost(lost);
        }
    }
}
