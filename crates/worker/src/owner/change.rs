//! Recording changes: first to the database, then in memory, then to the gateways.

use std::{sync::Arc, time::Duration};

use caddis_api::{ApiError, MachineState, event::MachineEvent};
use serde_json::{Value, json};

use super::{Owner, record::RECENT_EVENTS};
use crate::{
    clock::now_ms,
    event::{self, Source},
    operation::{Operation, OperationKind, Step},
    restart::{self, Verdict},
    row::{MachineRow, ProgramEnd},
    store::{Change, Durability, Room, VersionChange},
};

/// Wait before a change that must be recorded is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// A change in the making.
pub struct Transaction {
    /// The machine as it will be.
    pub row: MachineRow,
    /// When: milliseconds since the Unix epoch.
    pub now: u64,
    events: Vec<MachineEvent>,
    versions: Vec<VersionChange>,
}

impl Transaction {
    /// A change of `row`, now.
    pub fn new(row: MachineRow) -> Self {
        Self { row, now: now_ms(), events: Vec::new(), versions: Vec::new() }
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

    /// Begins an operation, with the state and the event that go with it.
    pub fn begin(&mut self, mut kind: OperationKind, source: Source) {
        if let OperationKind::Start { suspend_after, .. } = &mut kind
            && std::mem::take(suspend_after)
        {
            self.row.next = Some(OperationKind::Suspend);
        }
        self.row.state = kind.state();
        if !matches!(kind, OperationKind::Update { .. }) {
            // An update that is broken off leaves the new version behind.
            self.row.replaced = None;
        }
        let event = match &kind {
            OperationKind::Create => Some("launch"),
            OperationKind::Start { .. }
            | OperationKind::Resume { .. }
            | OperationKind::CancelSuspend { failure: None } => Some("start"),
            OperationKind::Suspend => Some("suspend"),
            OperationKind::Stop(_) => Some("stop"),
            OperationKind::Restart(_) => Some("restart"),
            OperationKind::Update { .. } => Some("update"),
            OperationKind::Destroy => Some("destroy"),
            // The exit event came before, the reason of an abandoned operation comes with its end.
            OperationKind::Exit { .. }
            | OperationKind::CancelSuspend { .. }
            | OperationKind::Rest { .. }
            | OperationKind::Abandon { .. } => None,
        };
        if let Some(event) = event {
            let status =
                if kind == OperationKind::Create { MachineState::Pending } else { self.row.state };
            let request = self.restart_request(&kind);
            self.event(source, event, status, request);
        }
        self.row.operation = Some(Operation::begin(kind, self.now));
    }

    /// What the event of a start tells that the restart policy begins.
    fn restart_request(&self, kind: &OperationKind) -> Value {
        match kind {
            // A schedule's start, and one after the host was down, have no time to wait for.
            OperationKind::Start { not_before, automatic: true, .. } if *not_before > 0 => json!({
                "delay_ms": not_before.saturating_sub(self.now),
                "restart_count": restart::recent(&self.row.restarts, self.now).count(),
            }),
            _ => Value::Null,
        }
    }

    /// Goes on to the next step.
    pub fn next_step(&mut self) {
        let now = self.now;
        if let Some(operation) = &mut self.row.operation {
            operation.step += 1;
            operation.retry_at = None;
            if matches!(operation.kind, OperationKind::Update { .. }) {
                // What it runs is there: from here on there is no way back.
                self.row.replaced = None;
            }
            if operation.current() == Some(Step::Launch) {
                // Recorded before it happens, so that a VM is looked for whenever there may be one.
                self.row.has_vm = true;
                if !matches!(operation.kind, OperationKind::Resume { .. }) {
                    self.row.boot = now;
                }
            }
        }
    }

    /// Notes the end of a program that the operation under way brought about.
    pub fn program_ended(&mut self, end: ProgramEnd) {
        let restarting = matches!(
            self.row.operation.as_ref().map(|operation| &operation.kind),
            Some(OperationKind::Restart(_) | OperationKind::Update { run: true, .. })
        );
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
        self.begin(OperationKind::Exit { then }, Source::Worker);
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
        let mut draft = Transaction::new(self.row.clone());
        edit(&mut draft);
        draft.row.updated_at = draft.now.max(self.row.updated_at);
        draft.row.revision += 1;
        let rests = matches!(draft.row.state, MachineState::Stopped | MachineState::Failed);
        if rests && draft.row.state != self.row.state {
            draft.row.rested_at = draft.now;
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
        self.row = change.row;
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
            tokio::time::sleep(STORE_RETRY).await;
        }
    }
}

/// Whether a change leads to less on the disk: a stop, a destroy, or that nothing follows them.
fn frees_room(before: &MachineRow, after: &MachineRow) -> bool {
    let ends =
        |kind: &OperationKind| matches!(kind, OperationKind::Stop(_) | OperationKind::Destroy);
    let begins = after.operation.as_ref().is_some_and(|operation| ends(&operation.kind));
    begins
        || after.next.as_ref().is_some_and(ends)
        || (before.next.is_some() && after.next.is_none())
}
