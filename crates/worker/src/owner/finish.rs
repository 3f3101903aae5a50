//! How operations end, and what follows.

use caddis_api::MachineState;
use serde_json::json;

use super::{Owner, Transaction};
use crate::{
    event::Source,
    operations::{Failed, Failing, OperationKind, Outcome, Start},
    restart::{self, Verdict},
    row::{EndCause, ProgramEnd},
    steps::end_of_vm,
    store::Durability,
};

impl Owner {
    /// Records the outcome of an operation whose steps are all done, in one change with what is to
    /// be noted of the last.
    pub(super) async fn finish(&mut self, note: impl Fn(&mut Transaction)) {
        let Some(operation) = self.row.operation.clone() else { return };
        self.turns.end();
        let outcome = self.outcome();
        self.change(Durability::Synced, |draft| {
            note(draft);
            draft.row.operation = None;
            operation.kind.rules().done(draft, &outcome);
            let is_start = |next: &OperationKind| {
                matches!(next, OperationKind::Start(Start { suspend_after: false, .. }))
            };
            if draft.row.state == MachineState::Started
                && draft.row.next.as_ref().is_some_and(is_start)
            {
                // It runs already.
                draft.row.next = None;
            }
            // In the same change: nobody shall see it rest in between.
            if draft.row.operation.is_none()
                && let Some(next) = draft.row.next.take()
            {
                let by = next.rules().asked_by();
                draft.begin(next, by);
            }
        })
        .await;
    }

    /// How the VM came to run that an operation has started, and where its time went.
    fn outcome(&mut self) -> Outcome {
        let timing = std::mem::take(&mut self.timing);
        let auto_destroy = self.config.auto_destroy == Some(true);
        let Some(live) = &self.live else {
            let told = json!({ "timing": timing.steps() });
            return Outcome { start_kind: None, told, auto_destroy };
        };
        let caddis_vmm::Start { kind, reason, pool } = live.vm.start();
        let mut told = json!({ "start_kind": kind.as_str(), "timing": timing.finish(live) });
        let reason = live.not_resumed.as_ref().unwrap_or(reason);
        if !reason.is_empty() {
            told["start_reason"] = json!(reason);
        }
        if let Some(pool) = pool {
            told["pool"] = json!(pool);
        }
        Outcome { start_kind: Some(kind.as_str().to_owned()), told, auto_destroy }
    }

    /// Stops trying: what follows depends on the operation, and ends in a state that says so.
    pub(super) async fn give_up(&mut self, reason: String) {
        let Some(operation) = &self.row.operation else { return };
        let failed = operation.kind.rules().failed(&Failing {
            row: &self.row,
            reason: &reason,
            has_vm: self.live.is_some(),
            vm_runs: self.live.as_ref().is_some_and(|live| live.guest.borrow().runs()),
            is_saved: self.shared.vmm.is_saved(self.shared.machine_files(&self.row.id).directory()),
        });
        match failed {
            Failed::Revert(replaced) => self.revert(*replaced, reason).await,
            Failed::StaysUnheard(reason) => self.stays_unheard(reason).await,
            Failed::Instead(kind) => {
                self.turns.end();
                self.change(Durability::Synced, |draft| {
                    draft.forget_next();
                    draft.begin(kind.clone(), Source::Worker);
                })
                .await;
            }
            Failed::AtOnce { of, reason } => {
                self.turns.end();
                self.change(Durability::Synced, |draft| {
                    draft.row.operation = None;
                    let told = json!({ "error": reason });
                    draft.reach(MachineState::Failed, Source::Worker, &of, told);
                })
                .await;
            }
        }
    }

    /// Begins what is due without anyone asking. False when nothing is.
    pub(super) async fn begin_what_follows(&mut self) -> bool {
        if let Some(next) = self.row.next.clone() {
            self.change(Durability::Synced, |draft| {
                draft.row.next = None;
                draft.begin(next.clone(), next.rules().asked_by());
            })
            .await;
            return true;
        }
        if self.row.state != MachineState::Started {
            return false;
        }
        if !self.drained.is_empty() {
            // Its suspend came to nothing.
            self.stop_for_drain().await;
            return true;
        }
        let end = match &self.live {
            Some(live) => {
                let guest = live.guest.borrow();
                guest.ended.clone().or_else(|| guest.gone.as_ref().map(end_of_vm))
            }
            None => {
                let text = "the VM ended while no server was running";
                Some(ProgramEnd::unreported(EndCause::VmmCrashed, Some(text.to_owned())))
            }
        };
        let Some(end) = end else { return false };
        self.program_ended_by_itself(end).await;
        true
    }

    async fn program_ended_by_itself(&mut self, end: ProgramEnd) {
        let config = self.config.clone();
        self.change(Durability::Synced, |draft| {
            let then = match draft.row.superseded_by {
                Some(_) => Verdict::Stop,
                None => restart::decide(&config, &end, &draft.row.restarts, draft.now),
            };
            draft.begin_exit(end.clone(), then, config.max_retries());
        })
        .await;
    }
}
