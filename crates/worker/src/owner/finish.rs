//! How operations end, and what follows.

use caddis_api::MachineState;
use caddis_vmm::Start;
use serde_json::{Value, json};

use super::{Owner, Transaction};
use crate::{
    event::Source,
    operation::{OperationKind, Step},
    restart::{self, Verdict},
    row::{EndCause, ProgramEnd},
    step::{self, end_of_vm},
    store::Durability,
};

impl Owner {
    /// Records the outcome of an operation whose steps are all done, in one change with what is to
    /// be noted of the last.
    pub(super) async fn finish(&mut self, note: impl Fn(&mut Transaction)) {
        let Some(operation) = self.row.operation.clone() else { return };
        self.turns.end();
        let started = self.how_it_started();
        let auto_destroy = self.config.auto_destroy == Some(true);
        let is_superseded = self.row.superseded_by.is_some();
        self.change(Durability::Synced, |draft| {
            note(draft);
            draft.row.operation = None;
            match &operation.kind {
                OperationKind::Create => {
                    draft.row.state = MachineState::Created;
                    draft.event(Source::User, "launch", MachineState::Created, Value::Null);
                }
                OperationKind::Start { automatic, .. } => {
                    draft.row.state = MachineState::Started;
                    draft.row.launched = true;
                    draft.row.start_kind.clone_from(&started.0);
                    let source = if *automatic { Source::Worker } else { Source::User };
                    draft.event(source, "start", MachineState::Started, started.1.clone());
                }
                OperationKind::Resume { .. } => {
                    draft.row.state = MachineState::Started;
                    draft.row.start_kind.clone_from(&started.0);
                    draft.event(Source::User, "start", MachineState::Started, started.1.clone());
                }
                OperationKind::Suspend => {
                    draft.row.state = MachineState::Suspended;
                    draft.event(Source::User, "suspend", MachineState::Suspended, started.1.clone());
                }
                OperationKind::Rest { reason } => {
                    draft.row.state = MachineState::Suspended;
                    draft.event(Source::Worker, "suspend", MachineState::Suspended, json!({ "error": reason }));
                }
                OperationKind::CancelSuspend { failure: None } => {
                    draft.row.state = MachineState::Started;
                    // Nothing was started: it was never gone.
                    let request = json!({ "start_kind": "none", "start_reason": "its suspend was called off" });
                    draft.event(Source::User, "start", MachineState::Started, request);
                }
                OperationKind::CancelSuspend { failure: Some(reason) } => {
                    draft.row.state = MachineState::Started;
                    draft.event(Source::Worker, "suspend", MachineState::Started, json!({ "error": reason }));
                }
                OperationKind::Restart(_) => {
                    draft.row.state = MachineState::Started;
                    draft.row.launched = true;
                    draft.row.start_kind.clone_from(&started.0);
                    draft.event(Source::User, "restart", MachineState::Started, started.1.clone());
                }
                OperationKind::Update { run: true, .. } => {
                    draft.row.state = MachineState::Started;
                    draft.row.launched = true;
                    draft.row.start_kind.clone_from(&started.0);
                    draft.event(Source::User, "launch", MachineState::Created, Value::Null);
                    draft.event(Source::Worker, "start", MachineState::Started, started.1.clone());
                }
                OperationKind::Update { run: false, .. } => {
                    let state = if draft.row.launched { MachineState::Stopped } else { MachineState::Created };
                    draft.row.state = state;
                    draft.event(Source::User, "launch", MachineState::Created, Value::Null);
                    if state != MachineState::Created {
                        draft.event(Source::User, "update", state, Value::Null);
                    }
                }
                OperationKind::Stop(_) => {
                    draft.row.state = MachineState::Stopped;
                    if auto_destroy && !draft.row.drained && !is_superseded && draft.row.next.is_none() {
                        draft.row.next = Some(OperationKind::Destroy);
                    }
                }
                OperationKind::Exit { then } => draft.after_exit(*then),
                OperationKind::Destroy => {
                    draft.row.state = MachineState::Destroyed;
                    draft.row.destroyed_at = Some(draft.now);
                    draft.row.lease = None;
                    draft.row.next = None;
                    draft.event(Source::Worker, "destroy", MachineState::Destroyed, Value::Null);
                }
                OperationKind::Abandon { into, of, reason } => {
                    draft.row.state = *into;
                    draft.event(Source::Worker, of, *into, json!({ "error": reason }));
                }
            }
            if draft.row.state == MachineState::Started && draft.row.next == Some(OperationKind::START) {
                // It runs already.
                draft.row.next = None;
            }
            // In the same change: nobody shall see it rest in between.
            if draft.row.operation.is_none()
                && let Some(next) = draft.row.next.take()
            {
                draft.begin(next, Source::User);
            }
        })
        .await;
    }

    /// How the VM came to run that an operation has started, and what the event about it tells.
    fn how_it_started(&mut self) -> (Option<String>, Value) {
        let timing = std::mem::take(&mut self.timing);
        let Some(live) = &self.live else { return (None, json!({ "timing": timing.steps() })) };
        let Start { kind, reason, pool } = live.vm.start();
        let mut request = json!({ "start_kind": kind.as_str(), "timing": timing.finish(live) });
        if !reason.is_empty() {
            request["start_reason"] = json!(reason);
        }
        if let Some(pool) = pool {
            request["pool"] = json!(pool);
        }
        (Some(kind.as_str().to_owned()), request)
    }

    /// Stops trying: clears up, and rests in a state that says so.
    pub(super) async fn give_up(&mut self, reason: String) {
        let Some(operation) = &self.row.operation else { return };
        if let Some(replaced) = self.row.replaced.clone() {
            self.revert(*replaced, reason).await;
            return;
        }
        if let OperationKind::CancelSuspend { failure } = operation.kind.clone()
            && self.stays_unheard(failure.as_deref(), &reason).await
        {
            return;
        }
        let Some(operation) = &self.row.operation else { return };
        // A suspend that comes to nothing costs nothing: the machine goes on.
        let saved = step::snapshot(&self.shared, &self.row.id).exists();
        let instead = match operation.kind {
            OperationKind::Suspend
                if operation.current() != Some(Step::EndVm) && self.live.is_some() =>
            {
                Some(OperationKind::CancelSuspend { failure: Some(reason.clone()) })
            }
            // What was saved is kept for another try.
            OperationKind::Suspend | OperationKind::Resume { .. } if saved => {
                Some(OperationKind::Rest { reason: reason.clone() })
            }
            _ => None,
        };
        if let Some(instead) = instead {
            self.turns.end();
            self.change(Durability::Synced, |draft| {
                draft.forget_next();
                draft.begin(instead.clone(), Source::Worker);
            })
            .await;
            return;
        }
        let of = operation.kind.as_str().to_owned();
        let into = match operation.kind {
            OperationKind::Stop(_) | OperationKind::Exit { .. } | OperationKind::Suspend => {
                MachineState::Stopped
            }
            _ => MachineState::Failed,
        };
        // What clears up has failed itself: there is nothing more to try. The next start begins
        // with it again.
        let hopeless = matches!(
            operation.kind,
            OperationKind::Abandon { .. } | OperationKind::Rest { .. } | OperationKind::Destroy
        );
        let (of, reason) = match &operation.kind {
            OperationKind::Abandon { of, reason: first, .. } => {
                (of.clone(), format!("{first}; then: {reason}"))
            }
            _ => (of, reason),
        };
        self.turns.end();
        self.change(Durability::Synced, |draft| {
            if hopeless {
                draft.row.operation = None;
                draft.row.state = MachineState::Failed;
                draft.event(Source::Worker, &of, MachineState::Failed, json!({ "error": reason }));
                return;
            }
            draft.forget_next();
            let kind = OperationKind::Abandon { into, of: of.clone(), reason: reason.clone() };
            draft.begin(kind, Source::Worker);
        })
        .await;
    }

    /// Begins what is due without anyone asking. False when nothing is.
    pub(super) async fn begin_what_follows(&mut self) -> bool {
        if let Some(next) = self.row.next.clone() {
            self.change(Durability::Synced, |draft| {
                draft.row.next = None;
                draft.begin(next.clone(), Source::User);
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

impl Transaction {
    /// What was to follow was to follow something else; but a destroy that was accepted comes.
    pub(super) fn forget_next(&mut self) {
        self.row.next = self.row.next.take().filter(|next| *next == OperationKind::Destroy);
    }

    fn after_exit(&mut self, then: Verdict) {
        self.row.state = MachineState::Stopped;
        match then {
            Verdict::Stop | Verdict::GiveUp => {}
            // A stop or destroy that came meanwhile goes first.
            Verdict::Restart { .. } | Verdict::Destroy if self.row.next.is_some() => {}
            Verdict::Restart { after_ms } => {
                let now = self.now;
                self.row.restarts = restart::recent(&self.row.restarts, now).chain([now]).collect();
                let not_before = now + after_ms;
                self.begin(
                    OperationKind::Start {
                        not_before,
                        automatic: true,
                        recovery: false,
                        suspend_after: false,
                    },
                    Source::Worker,
                );
            }
            Verdict::Destroy => self.begin(OperationKind::Destroy, Source::Worker),
        }
    }
}
