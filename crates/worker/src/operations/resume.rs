//! Resume: has a machine go on where it was saved; where it can't, boots it with the disk it had.

use std::time::Duration;

use caddis_api::MachineState;
use caddis_vmm::StartKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Failed, Failing, FoundVm, LostVm, Operation, OperationKind, Outcome, Rules, rest::Rest,
    start::START_TIME,
};
use crate::{event::Source, owner::Transaction, steps::Step};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The host was rebooted meanwhile: nobody knows whether the snapshot was used.
    pub spoiled: bool,
    /// There is traffic for it; else a client asked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_traffic: bool,
}

impl Rules for Resume {
    fn name(&self) -> &'static str {
        // What clients asked for and see.
        "start"
    }

    fn state(&self) -> MachineState {
        MachineState::Starting
    }

    fn steps(&self) -> &'static [Step] {
        // No `release`: the disk is kept.
        &[Step::EndVm, Step::Pull, Step::Launch, Step::Boot, Step::Configure]
    }

    fn time_limit(&self) -> Duration {
        START_TIME
    }

    fn asked_by(&self) -> Source {
        if self.by_traffic { Source::Proxy } else { Source::User }
    }

    fn runs_afterwards(&self) -> bool {
        true
    }

    fn resumes(&self) -> bool {
        true
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        draft.event(source, "start", self.state(), Value::Null);
    }

    fn done(&self, draft: &mut Transaction, outcome: &Outcome) {
        draft.row.start_kind.clone_from(&outcome.start_kind);
        draft.reach(MachineState::Started, self.asked_by(), "start", outcome.told.clone());
    }

    fn failed(&self, failing: &Failing<'_>) -> Failed {
        if failing.is_saved {
            // What was saved is kept for another try.
            return Failed::Instead(OperationKind::Rest(Rest {
                reason: failing.reason.to_owned(),
            }));
        }
        failing.abandon(self.name(), MachineState::Failed)
    }

    fn lost_vm(&self, draft: &mut Transaction, _: &LostVm) {
        draft.go_back();
    }

    fn found(&self, draft: &mut Transaction, found: &FoundVm) {
        // What was not written through to the disk before the host went down may have been a start.
        let spoiled = self.spoiled || found.rebooted;
        draft.becomes(OperationKind::Resume(Self { spoiled, ..self.clone() }));
        let is_launching =
            draft.row.operation.as_ref().and_then(Operation::current) == Some(Step::Launch);
        if is_launching && found.vm.is_some_and(|kind| kind != StartKind::Resume) {
            // It could not be resumed, and the server ended before it noted that this is another
            // boot.
            draft.row.boot = draft.now.as_u64();
        }
    }
}
