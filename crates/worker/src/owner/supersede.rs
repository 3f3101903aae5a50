//! The end of a copy: the machine was placed on another host since, as after a move that this host
//! has missed.

use caddis_api::{MachineState, Signal};
use caddis_bus::message::{WorkerReply, WorkerResult};
use serde_json::json;

use super::{Owner, Transaction};
use crate::{
    event::Source,
    operations::{Exit, OperationKind, Stop, StopPlan},
    restart::Verdict,
    store::Durability,
};

/// What it would still write elsewhere must not be written twice: it is not asked for its consent.
const KILL: OperationKind =
    OperationKind::Stop(Stop(StopPlan { signal: Signal::KILL, timeout_ms: 0, is_default: false }));

impl Owner {
    /// Stops this copy, for good. Its files stay: who moved the machine may need them.
    pub(super) async fn supersede(&mut self, epoch: u64) -> WorkerResult {
        if epoch > self.row.superseded_by.unwrap_or(self.row.placement_epoch) {
            tracing::warn!(machine = %self.row.id, epoch, "the machine was placed on another host: \
                this copy stops");
            // In one change, so that no restart of anything finds it in between.
            self.change(Durability::Synced, |draft| draft.supersede(epoch)).await;
            self.break_off_what_may_be();
        }
        Ok(WorkerReply::Done { record: self.status() })
    }

    /// The step of what was under way; of a stop that goes on, only its wait.
    fn break_off_what_may_be(&mut self) {
        let is_kill = self.row.operation.as_ref().is_some_and(|operation| operation.kind == KILL);
        if !is_kill {
            return;
        }
        let begins = self.row.operation.as_ref().is_some_and(|operation| operation.step == 0);
        if begins || self.step.as_ref().is_some_and(|running| running.step.may_be_dropped()) {
            self.break_off_step();
        }
        self.turns.end();
    }
}

impl Transaction {
    fn supersede(&mut self, epoch: u64) {
        use MachineState as S;
        self.row.superseded_by = Some(epoch);
        self.row.drained = false;
        self.forget_next();
        let told = json!({
            "placement_epoch": epoch,
            "message": "the machine was placed on another host: this copy stops and is not started \
                        again",
        });
        self.event(Source::Worker, "supersede", self.row.state, told);
        match self.row.state {
            S::Starting
            | S::Started
            | S::Restarting
            | S::Suspending
            | S::Updating
            | S::Replacing => {
                self.begin(KILL, Source::Worker);
            }
            S::Stopping => {
                if let Some(operation) = &mut self.row.operation {
                    match &mut operation.kind {
                        OperationKind::Exit(Exit { then }) => *then = Verdict::Stop,
                        kind @ OperationKind::Stop(_) => *kind = KILL,
                        _ => {}
                    }
                }
            }
            S::Failed if self.row.is_quarantined && self.row.has_vm => {
                self.begin(KILL, Source::Worker);
            }
            // It is stopped, or will be.
            _ => {}
        }
    }
}
