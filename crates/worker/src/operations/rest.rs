//! Rest: ends what there is of a VM after a suspend or resume that failed when all was saved. The
//! machine is suspended then.

use std::time::Duration;

use caddis_api::MachineState;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{CLEAR_TIME, Failed, Failing, Outcome, Rules};
use crate::{event::Source, owner::Transaction, steps::Step};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// Why the suspend or resume failed.
    pub reason: String,
}

impl Rules for Rest {
    fn name(&self) -> &'static str {
        // What clients asked for and see.
        "suspend"
    }

    fn state(&self) -> MachineState {
        MachineState::Suspending
    }

    fn steps(&self) -> &'static [Step] {
        &[Step::EndVm]
    }

    fn time_limit(&self) -> Duration {
        CLEAR_TIME
    }

    fn settles_at_once(&self) -> bool {
        true
    }

    fn done(&self, draft: &mut Transaction, _: &Outcome) {
        let told = json!({ "error": self.reason });
        draft.reach(MachineState::Suspended, Source::Worker, "suspend", told);
    }

    fn failed(&self, failing: &Failing<'_>) -> Failed {
        failing.hopeless(self.name())
    }
}
