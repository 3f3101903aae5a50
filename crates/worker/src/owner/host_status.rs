//! A running machine whose host can't vouch for it: its `host_status`, with an event and a line of
//! log at each change.

use std::time::Duration;

use caddis_api::{ApiError, MachineState};
use serde_json::{Value, json};

use super::Owner;
use crate::{event::Source, runner::Level, steps, store::Durability};

/// How long its programs may take to go on, once it is heard again.
const THAW_DEADLINE: Duration = Duration::from_secs(20);
const SILENT: &str = "The machine's init does not answer. Its program may still be running, but \
                      can't be reached; stop or restart the machine, or wait until it answers \
                      again";

impl Owner {
    /// Its init answers no questions. While something is done to the machine, that has deadlines of
    /// its own; and a VM that stands still on purpose can't answer.
    pub(super) async fn guest_fell_silent(&mut self) {
        let Some(live) = &self.live else { return };
        let explained = {
            let guest = live.guest.borrow();
            guest.host_reason().is_some() || guest.gone.is_some() || guest.ended.is_some()
        };
        // One that stands still because of its disk can't answer either, which has been told.
        if explained
            || self.paused().is_some()
            || self.row.operation.is_some()
            || self.row.state != MachineState::Started
        {
            return;
        }
        live.guest.send_modify(|guest| guest.silent = true);
        // Whoever waits for an answer waits in vain.
        live.session.renew();
        tracing::warn!(machine = %self.row.id, "the guest does not answer");
        self.tell_host_status(Level::Error, SILENT).await;
    }

    /// It does again.
    pub(super) async fn guest_was_heard(&mut self) {
        let Some(live) = self.live.as_ref().filter(|live| live.guest.borrow().silent) else {
            return;
        };
        live.guest.send_modify(|guest| guest.silent = false);
        if live.guest.borrow().may_be_frozen() && self.row.operation.is_none() {
            // It may not have heard that its programs were to go on.
            let (session, guest) = (live.session.clone(), live.guest.clone());
            tokio::spawn(async move {
                if session.thaw(steps::entropy(), false, THAW_DEADLINE).await.is_ok() {
                    guest.send_modify(|guest| guest.frozen = false);
                }
            });
        }
        tracing::info!(machine = %self.row.id, "the guest answers again");
        self.tell_host_status(Level::Info, "The machine's init answers again").await;
    }

    /// Records and publishes what `host_status` is now, and why.
    async fn tell_host_status(&mut self, level: Level, text: &str) {
        let request = self.host_status_request(level, text);
        self.change(Durability::Process, |draft| {
            draft.event(Source::Worker, "host_status", draft.row.state, request.clone());
        })
        .await;
    }

    fn host_status_request(&self, level: Level, text: &str) -> Value {
        let reason = self.live.as_ref().and_then(|live| live.guest.borrow().host_reason());
        json!({
            "host_status": if reason.is_some() { "unknown" } else { "ok" },
            "host_status_reason": reason.map(|reason| reason.as_str()),
            "message": text,
            "level": level.as_str(),
        })
    }

    /// Refuses what needs an answer of a guest that gives none.
    pub(super) fn check_answers(&self) -> Result<(), ApiError> {
        if self.live.as_ref().is_some_and(|live| live.guest.borrow().silent) {
            let text =
                "the machine's init does not answer (guest_silent), stop or restart the machine";
            return Err(ApiError::precondition(text));
        }
        Ok(())
    }

    /// A suspend has come to nothing, and its guest does not say that programs go on: the machine
    /// stays as it is, since its VM runs.
    pub(super) async fn stays_unheard(&mut self, reason: String) {
        let Some(live) = &self.live else { return };
        if let Err(error) = steps::forget_snapshot(&self.shared, &self.row).await {
            tracing::warn!(machine = %self.row.id, error = error.message, "can't remove a \
                snapshot, it stays until the next start");
        }
        self.turns.end();
        // In one change with the outcome: nobody shall take it for well in between. One whose disk
        // can't be written can't answer either, which has been told.
        let silent = self.paused().is_none() && !live.guest.borrow().silent;
        if silent {
            live.guest.send_modify(|guest| guest.silent = true);
            live.session.renew();
        }
        let status = self.host_status_request(Level::Error, SILENT);
        self.change(Durability::Synced, |draft| {
            draft.row.operation = None;
            draft.row.state = MachineState::Started;
            draft.forget_next();
            draft.event(
                Source::Worker,
                "suspend",
                MachineState::Started,
                json!({ "error": reason }),
            );
            if silent {
                draft.event(Source::Worker, "host_status", MachineState::Started, status.clone());
            }
        })
        .await;
    }
}
