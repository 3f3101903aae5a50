//! Create: prepares a new machine.

use std::time::Duration;

use caddis_api::MachineState;
use serde_json::Value;

use super::{Outcome, Rules};
use crate::{event::Source, owner::Transaction, steps::Step};

/// Time a pull may take: a large image over a slow line.
pub const PULL_TIME: Duration = Duration::from_secs(30 * 60);

/// See the module.
pub struct Create;

impl Rules for Create {
    fn name(&self) -> &'static str {
        "create"
    }

    fn state(&self) -> MachineState {
        MachineState::Creating
    }

    fn steps(&self) -> &'static [Step] {
        &[Step::Pull]
    }

    fn time_limit(&self) -> Duration {
        PULL_TIME
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        draft.event(source, "launch", MachineState::Pending, Value::Null);
    }

    fn done(&self, draft: &mut Transaction, _: &Outcome) {
        draft.reach(MachineState::Created, Source::User, "launch", Value::Null);
    }
}
