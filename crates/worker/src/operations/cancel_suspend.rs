//! Cancelling a suspend: has the machine go on, because a client asked for it or because the
//! suspend failed.

use std::time::Duration;

use caddis_api::MachineState;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{CLEAR_TIME, Failed, Failing, LostVm, Outcome, Rules};
use crate::{event::Source, owner::Transaction, steps::Step};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelSuspend {
    /// Why the suspend failed; `None` when a client asked to cancel it.
    pub failure: Option<String>,
    /// It was cancelled because there is traffic.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_traffic: bool,
}

impl Rules for CancelSuspend {
    fn name(&self) -> &'static str {
        // What clients asked for and see.
        if self.failure.is_some() { "suspend" } else { "start" }
    }

    fn state(&self) -> MachineState {
        MachineState::Starting
    }

    fn steps(&self) -> &'static [Step] {
        &[Step::Thaw]
    }

    fn time_limit(&self) -> Duration {
        CLEAR_TIME
    }

    fn asked_by(&self) -> Source {
        if self.by_traffic { Source::Proxy } else { Source::User }
    }

    fn runs_afterwards(&self) -> bool {
        true
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        // Of a suspend that failed, its end tells the reason.
        if self.failure.is_none() {
            draft.event(source, "start", self.state(), Value::Null);
        }
    }

    fn done(&self, draft: &mut Transaction, _: &Outcome) {
        let (source, kind, told) = match &self.failure {
            Some(reason) => (Source::Worker, "suspend", json!({ "error": reason })),
            // Nothing was started: it was never gone.
            None => {
                let reason = "the suspend was cancelled";
                let told = json!({ "start_kind": "none", "start_reason": reason });
                (self.asked_by(), "start", told)
            }
        };
        draft.reach(MachineState::Started, source, kind, told);
    }

    fn failed(&self, failing: &Failing<'_>) -> Failed {
        if !failing.vm_runs {
            return failing.abandon(self.name(), MachineState::Failed);
        }
        let reason = failing.reason;
        Failed::StaysUnheard(match &self.failure {
            Some(failure) => format!("{failure}; then: {reason}"),
            None => reason.to_owned(),
        })
    }

    fn lost_vm(&self, draft: &mut Transaction, lost: &LostVm) {
        draft.lose_running(lost);
    }
}
