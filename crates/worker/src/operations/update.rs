//! Update: gets what the new version runs while the old one goes on, ends that, and boots the new
//! one. Until its first step is done there is a way back ([`crate::row::MachineRow::replaced`]).

use std::time::Duration;

use caddis_api::MachineState;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Failed, Failing, LostVm, Outcome, Rules, create::PULL_TIME, start::START_TIME, stop::StopPlan,
};
use crate::{event::Source, owner::Transaction, steps::Step};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// How to end the old version.
    pub stop: StopPlan,
    /// Boot the new one.
    pub run: bool,
}

impl Rules for Update {
    fn name(&self) -> &'static str {
        "update"
    }

    fn state(&self) -> MachineState {
        MachineState::Replacing
    }

    fn steps(&self) -> &'static [Step] {
        use Step::{
            AwaitExit, Boot, Configure, Launch, PowerOff, PrepareRoot, Pull, Release, Signal,
        };
        match self.run {
            true => {
                &[Pull, Signal, AwaitExit, PowerOff, Release, PrepareRoot, Launch, Boot, Configure]
            }
            false => &[Pull, Signal, AwaitExit, PowerOff, Release],
        }
    }

    fn time_limit(&self) -> Duration {
        PULL_TIME + self.stop.time_limit() + START_TIME
    }

    fn stop_plan(&self) -> Option<&StopPlan> {
        Some(&self.stop)
    }

    fn runs_afterwards(&self) -> bool {
        self.run
    }

    fn settles_at_once(&self) -> bool {
        !self.run
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        draft.event(source, "update", self.state(), Value::Null);
    }

    fn done(&self, draft: &mut Transaction, outcome: &Outcome) {
        draft.event(Source::User, "launch", MachineState::Created, Value::Null);
        if self.run {
            draft.launched(outcome);
            draft.reach(MachineState::Started, Source::Worker, "start", outcome.told.clone());
        } else if draft.row.launched {
            draft.reach(MachineState::Stopped, Source::User, "update", Value::Null);
        } else {
            draft.row.state = MachineState::Created;
        }
    }

    fn failed(&self, failing: &Failing<'_>) -> Failed {
        match &failing.row.replaced {
            Some(replaced) => Failed::Revert(replaced.clone()),
            None => failing.abandon(self.name(), MachineState::Failed),
        }
    }

    fn lost_vm(&self, draft: &mut Transaction, lost: &LostVm) {
        if !draft.go_back() {
            draft.program_lost(lost);
        }
    }
}
