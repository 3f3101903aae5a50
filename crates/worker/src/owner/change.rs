//! Recording changes: first to the database, then in memory, then to the gateways.

use std::{sync::Arc, time::Duration};

use caddis_api::{ApiError, MachineState, UnixMillis, event::MachineEvent};
use serde_json::{Value, json};

use super::{Owner, record::RECENT_EVENTS};
use crate::{
    event::{self, Source},
    operations::{Exit, LostVm, Operation, OperationKind, Outcome, Start, StartReason},
    restart::Verdict,
    row::{MachineRow, ProgramEnd},
    steps::Step,
    store::{Change, Durability, Room, VersionChange},
};

/// Wait before a change that must be recorded is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// A change in the making.
pub struct Transaction {
    /// The machine as it will be.
    pub row: MachineRow,
    /// When.
    pub now: UnixMillis,
    events: Vec<MachineEvent>,
    versions: Vec<VersionChange>,
}

impl Transaction {
    /// A change of `row` at `now`.
    pub fn new(row: MachineRow, now: UnixMillis) -> Self {
        Self { row, now, events: Vec::new(), versions: Vec::new() }
    }

    /// What is to be recorded.
    pub fn into_change(self) -> Change {
        Change { row: self.row, events: self.events, versions: self.versions, request: None }
    }

    /// Changes which versions are kept.
    pub fn version(&mut self, change: VersionChange) {
        self.versions.push(change);
    }

    /// Adds an event. `status` is the state after it, `told` what it tells beyond its kind, or
    /// null.
    pub fn event(&mut self, source: Source, kind: &str, status: MachineState, told: Value) {
        let event = event::new(self.row.last_event.as_ref(), self.now, source, kind, status, told);
        self.row.last_event = Some(event.id.clone());
        self.events.push(event);
    }

    /// Adds to the last event why it came about.
    pub fn explain(&mut self, reason: &str) {
        if let Some(event) = self.events.pop() {
            self.events.push(event.telling(json!({ "reason": reason })));
        }
    }

    /// Begins an operation, with the state and the event that go with it.
    pub fn begin(&mut self, kind: OperationKind, source: Source) {
        self.row.state = kind.rules().state();
        // An update that is broken off leaves the new version behind.
        self.row.replaced = None;
        self.row.is_quarantined = false;
        self.row.operation = Some(Operation::begin(kind.clone(), self.now));
        kind.rules().begun(self, source);
    }

    /// What is under way is this from now on, at the same step.
    pub fn becomes(&mut self, kind: OperationKind) {
        if let Some(operation) = &mut self.row.operation {
            operation.kind = kind;
        }
    }

    /// What is under way goes back to where nothing is left of an earlier VM. False where it has
    /// not come that far.
    pub fn go_back(&mut self) -> bool {
        let Some(operation) = &mut self.row.operation else { return false };
        let before = operation.step;
        operation.step = operation.retry_from();
        operation.step < before
    }

    /// What is under way has all its time from now on.
    pub fn renew_deadline(&mut self) {
        if let Some(operation) = &mut self.row.operation {
            operation.deadline = operation.kind.deadline(self.now);
        }
    }

    /// The machine is in a state, of which an event tells.
    pub fn reach(&mut self, state: MachineState, source: Source, kind: &str, told: Value) {
        self.row.state = state;
        self.event(source, kind, state, told);
    }

    /// A VM was booted for the machine.
    pub fn launched(&mut self, outcome: &Outcome) {
        self.row.launched = true;
        self.row.start_kind.clone_from(&outcome.start_kind);
    }

    /// Goes on to the next step.
    pub fn next_step(&mut self) {
        let now = self.now;
        if let Some(operation) = &mut self.row.operation {
            operation.step += 1;
            operation.retry_at = None;
            // What the new version of an update runs is there: from here on there is no way back.
            self.row.replaced = None;
            if operation.current() == Some(Step::Launch) {
                // Recorded before it happens, so that a VM is looked for whenever there may be one.
                self.row.has_vm = true;
                if !operation.kind.rules().resumes() {
                    self.row.boot = now.as_u64();
                }
            }
        }
    }

    /// Notes the end of a program that the operation under way brought about.
    pub fn program_ended(&mut self, end: ProgramEnd) {
        let operation = self.row.operation.as_ref();
        let restarting =
            operation.is_some_and(|operation| operation.kind.rules().runs_afterwards());
        let request = event::exit_request(&self.row, &end, true, restarting, self.now);
        self.event(Source::Worker, "exit", MachineState::Stopped, request);
        self.row.ended = Some(end);
    }

    /// Begins to clear up after a program that ended by itself. `limit` is how often it may be
    /// restarted.
    pub fn begin_exit(&mut self, end: ProgramEnd, then: Verdict, limit: u32) {
        let mut request =
            event::exit_request(&self.row, &end, false, event::restarts(then), self.now);
        if then == Verdict::GiveUp {
            request["max_restart_count"] = json!(limit);
        }
        self.event(Source::Worker, "exit", MachineState::Stopped, request);
        self.row.ended = Some(end);
        self.begin(OperationKind::Exit(Exit { then }), Source::Worker);
    }

    /// What was to follow was to follow something else; but a destroy that was accepted comes.
    pub fn forget_next(&mut self) {
        self.row.next = self.row.next.take().filter(|next| *next == OperationKind::Destroy);
    }

    /// The program that the operation under way was to end went down with its VM, unless it had
    /// ended before.
    pub fn program_lost(&mut self, lost: &LostVm) {
        if self.row.ended.is_none() {
            self.program_ended(lost.end.clone());
        }
    }

    /// A machine that was running went down with its VM while no server ran; what was under way
    /// with it is over.
    pub fn lose_running(&mut self, lost: &LostVm) {
        self.row.operation = None;
        self.row.state = MachineState::Started;
        if lost.rebooted {
            // Whatever its restart policy says: nothing that it did made it end.
            self.begin_exit(lost.end.clone(), Verdict::Restart { after_ms: 0 }, 0);
            self.row.operation = None;
            self.row.ended = None;
            self.begin(Start::because(StartReason::Recovery), Source::Worker);
        }
        // Without a reboot the owner finds a started machine without VM, and its restart policy
        // decides.
    }
}

impl Owner {
    /// Records a change that a client asked for.
    ///
    /// # Errors
    /// When it could not be recorded; then nothing has changed.
    pub(super) async fn try_change(
        &mut self,
        durability: Durability,
        edit: impl FnOnce(&mut Transaction),
    ) -> Result<(), ApiError> {
        self.record_change(durability, Room::Free, edit).await
    }

    async fn record_change(
        &mut self,
        durability: Durability,
        room: Room,
        edit: impl FnOnce(&mut Transaction),
    ) -> Result<(), ApiError> {
        let mut draft = Transaction::new(self.row.clone(), self.shared.clock.unix_now());
        edit(&mut draft);
        draft.row.updated_at = draft.now.max(self.row.updated_at);
        draft.row.revision += 1;
        let is_stopped = matches!(draft.row.state, MachineState::Stopped | MachineState::Failed);
        if is_stopped && draft.row.state != self.row.state {
            draft.row.rested_at = draft.now;
        }
        if draft.row.state == MachineState::Started && self.row.state != MachineState::Started {
            draft.row.started_at = draft.now;
        }
        // There is nothing to be kept awake any more.
        if draft.row.state.is_settled() && draft.row.state != MachineState::Started {
            draft.row.hold = None;
        }
        let room = if frees_room(&self.row, &draft.row) { Room::Reserve } else { room };
        let now = draft.now;
        let mut change = draft.into_change();
        change.request = self.request.clone().map(|id| (id, now));
        let commit = self.shared.store.commit(vec![change.clone()], durability, room);
        commit.await.map_err(|e| {
            tracing::error!(machine = %self.row.id, error = %e, "can't record a change");
            if e.is_full() {
                return ApiError::disk_full();
            }
            ApiError::internal(
                "can't record the change; see the server's log, and free space if its disk is full",
            )
        })?;
        self.request = None;
        let is_started = change.row.state == MachineState::Started;
        if is_started && self.row.state != MachineState::Started {
            self.started_at = self.shared.clock.now();
        }
        self.row = change.row;
        if self.row.state == MachineState::Destroyed {
            // Who sees that it is gone can use its volumes.
            self.shared.detach_volumes(&self.row.id);
        }
        self.shared.logs.append_events(&self.row.id, &change.events);
        for event in change.events {
            self.events.push_front(Arc::new(event));
        }
        self.events.truncate(RECENT_EVENTS);
        self.publish();
        Ok(())
    }

    /// Records a change that has happened. While the database refuses, nothing else happens to this
    /// machine; health tells of it.
    pub(super) async fn change(&mut self, durability: Durability, edit: impl Fn(&mut Transaction)) {
        while self.record_change(durability, Room::Reserve, &edit).await.is_err() {
            self.shared.clock.sleep(STORE_RETRY).await;
        }
    }
}

/// Whether a change leads to less on the disk: a stop, a destroy, or that nothing follows them.
fn frees_room(before: &MachineRow, after: &MachineRow) -> bool {
    let ends = |kind: &OperationKind| kind.rules().frees_disk();
    let begins = after.operation.as_ref().is_some_and(|operation| ends(&operation.kind));
    begins
        || after.next.as_ref().is_some_and(ends)
        || (before.next.is_some() && after.next.is_none())
}
