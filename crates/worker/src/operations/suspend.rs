//! Suspend: saves a machine and ends its VM. One that comes to nothing costs nothing: the machine
//! goes on ([`super::cancel_suspend`]), or, once all is saved, is suspended all the same
//! ([`super::rest`]).

use std::time::Duration;

use caddis_api::MachineState;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Failed, Failing, LostVm, OperationKind, Outcome, Rules, cancel_suspend::CancelSuspend,
    rest::Rest,
};
use crate::{event::Source, owner::Transaction, steps::Step};

/// Time a suspend may take: its turn among others, and a large memory on a slow disk.
const SUSPEND_TIME: Duration = Duration::from_secs(4 * 60);

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspend {
    /// There was no traffic; else a client asked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_traffic: bool,
}

impl Rules for Suspend {
    fn name(&self) -> &'static str {
        "suspend"
    }

    fn state(&self) -> MachineState {
        MachineState::Suspending
    }

    fn steps(&self) -> &'static [Step] {
        &[Step::Queue, Step::Freeze, Step::Save, Step::EndVm]
    }

    fn time_limit(&self) -> Duration {
        SUSPEND_TIME
    }

    fn asked_by(&self) -> Source {
        if self.by_traffic { Source::Proxy } else { Source::User }
    }

    fn settles_at_once(&self) -> bool {
        true
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        draft.event(source, "suspend", self.state(), Value::Null);
    }

    fn done(&self, draft: &mut Transaction, outcome: &Outcome) {
        let told = outcome.told.clone();
        draft.reach(MachineState::Suspended, self.asked_by(), "suspend", told);
    }

    fn failed(&self, failing: &Failing<'_>) -> Failed {
        let reason = failing.reason.to_owned();
        if failing.has_vm && failing.step() != Some(Step::EndVm) {
            let failure = Some(reason);
            let cancel = CancelSuspend { failure, by_traffic: false };
            return Failed::Instead(OperationKind::CancelSuspend(cancel));
        }
        if failing.is_saved {
            return Failed::Instead(OperationKind::Rest(Rest { reason }));
        }
        failing.abandon(self.name(), MachineState::Stopped)
    }

    fn lost_vm(&self, draft: &mut Transaction, lost: &LostVm) {
        let step = draft.row.operation.as_ref().and_then(super::Operation::current);
        // It was saved before it was lost.
        if step.is_some_and(|step| step != Step::EndVm) {
            draft.lose_running(lost);
        }
    }
}
