//! Abandon: gives up on an operation that failed, and clears up after it.

use std::time::Duration;

use caddis_api::MachineState;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{CLEAR_TIME, Failed, Failing, Outcome, Rules};
use crate::{event::Source, owner::Transaction, steps::Step};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandon {
    /// Where that ends.
    pub into: MachineState,
    /// Name of the operation that failed.
    pub of: String,
    /// Why it failed, for the user.
    pub reason: String,
}

impl Rules for Abandon {
    fn name(&self) -> &'static str {
        "abandon"
    }

    fn state(&self) -> MachineState {
        MachineState::Stopping
    }

    fn steps(&self) -> &'static [Step] {
        &[Step::Release]
    }

    fn time_limit(&self) -> Duration {
        CLEAR_TIME
    }

    fn done(&self, draft: &mut Transaction, _: &Outcome) {
        let told = json!({ "error": self.reason });
        draft.reach(self.into, Source::Worker, &self.of, told);
    }

    fn failed(&self, failing: &Failing<'_>) -> Failed {
        let reason = format!("{}; then: {}", self.reason, failing.reason);
        Failed::AtOnce { of: self.of.clone(), reason }
    }
}
