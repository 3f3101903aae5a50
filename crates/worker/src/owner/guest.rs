//! What init tells of the guest.

use std::time::Duration;

use caddis_guest_protocol::host::GuestEvent;
use serde_json::json;
use tokio::sync::mpsc;

use super::Owner;
use crate::{
    event::{self, Source},
    live::Guest,
    store::Durability,
};

/// Processes that are killed for want of memory within this time after an event about one are only
/// in the log.
const OOM_INTERVAL: Duration = Duration::from_secs(10);

impl Owner {
    pub(super) async fn guest_event(&mut self, event: GuestEvent) {
        let Some(live) = &self.live else { return };
        match event {
            GuestEvent::Welcome { status, init_version, machine_id } => {
                tracing::debug!(machine = %self.row.id, init_version, "guest is up");
                match machine_id {
                    Some(id) if id != self.row.id.as_str() => {
                        tracing::error!(machine = %self.row.id, claimed = id, "guest claims to be \
                            another machine");
                    }
                    _ => live.note_status(status),
                }
            }
            GuestEvent::Started { steps, .. } => self.note(|guest| {
                guest.configured = true;
                guest.started = true;
                guest.boot_steps = steps;
            }),
            GuestEvent::Log { sequence, source, time_ns, dropped_before, partial, text } => {
                let session = live.session.clone();
                let record = (sequence, source, time_ns, dropped_before, partial);
                let done = move || session.acknowledge_logs(sequence);
                self.shared.logs.append_record(&self.row.id, live.boot, record, &text, done);
            }
            GuestEvent::OutOfMemory { pid, name } => self.child_out_of_memory(pid, &name).await,
            GuestEvent::Finished(status) => live.note_status(status),
            GuestEvent::Disconnected { reason } => {
                tracing::debug!(machine = %self.row.id, reason, "guest disconnected");
            }
            GuestEvent::Hold { id, ttl_seconds } => self.hold_from_inside(id, ttl_seconds).await,
            // They are events of the machine, too.
            GuestEvent::Silent | GuestEvent::Heard => {}
        }
    }

    /// A child of the program was killed for want of memory, which the program may well survive.
    /// The log tells of each.
    async fn child_out_of_memory(&mut self, pid: i32, name: &str) {
        let now = self.shared.clock.unix_now();
        let told =
            self.events.iter().find(|event| event.kind == event::OOM).map(|event| event.timestamp);
        if told.is_some_and(|at| now < at + OOM_INTERVAL) {
            return;
        }
        self.change(Durability::Process, |draft| {
            let request = json!({ "pid": pid, "process": name });
            draft.event(Source::Worker, event::OOM, draft.row.state, request);
        })
        .await;
    }

    /// The session gave up, which it only does when closed or when the VM is gone.
    pub(super) fn session_lost(&mut self) {
        if let Some(live) = &mut self.live {
            let (_, never) = mpsc::channel(1);
            live.events = never;
            live.events.close();
        }
    }

    pub(super) fn note(&self, edit: impl FnOnce(&mut Guest)) {
        if let Some(live) = &self.live {
            live.guest.send_modify(edit);
        }
    }
}
