//! VMs that stand still because their disk can't be used: shown, and let go on as soon as there
//! is room. Nothing tells when there is, so it is looked at, but only while a VM waits for it.

use std::time::Duration;

use caddis_api::{ApiError, MachineState};
use caddis_vmm::Pause;
use serde_json::json;
use tokio::time::Instant;

use super::{Owner, Transaction};
use crate::{event::Source, live::HostReason, store::Durability};

/// What `host_status` is of a machine that stands still.
const UNKNOWN: &str = "unknown";
/// Room on the disk with which a VM is let go on, bytes: with less it would stand still again at
/// once.
const ROOM: u64 = 16 << 20;
/// First and longest wait between two looks. It is doubled each time that the VM stands still
/// again.
const LOOKS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// A VM that was not paused for so long begins with the first wait again.
const CALM: Duration = Duration::from_secs(120);

/// A VM that is paused.
pub struct Paused {
    /// Why.
    pause: Pause,
    /// When to look next.
    pub look_at: Instant,
}

/// Why, as it is shown.
pub fn reason(pause: Pause) -> HostReason {
    match pause {
        Pause::DiskFull => HostReason::DiskFull,
        Pause::DiskError => HostReason::DiskError,
    }
}

fn explain(pause: Pause) -> &'static str {
    match pause {
        Pause::DiskFull => {
            "the disk of the host is full: the machine is paused until there is free space, \
             nothing is lost"
        }
        Pause::DiskError => {
            "the host can't read or write the machine's disk: the machine is paused until it \
             can"
        }
    }
}

impl Owner {
    /// Why its VM stands still, if it does.
    pub(super) fn paused(&self) -> Option<Pause> {
        let live = self.live.as_ref().filter(|live| live.guest.borrow().gone.is_none())?;
        self.paused.as_ref().filter(|_| live.pause.borrow().is_some()).map(|paused| paused.pause)
    }

    /// Refuses what a guest would have to answer while it stands still.
    pub(super) fn check_not_paused(&self) -> Result<(), ApiError> {
        self.paused().map_or(Ok(()), |pause| Err(ApiError::precondition(explain(pause))))
    }

    pub(super) async fn pause_changed(&mut self) {
        let Some(live) = &mut self.live else { return };
        let now = *live.pause.borrow_and_update();
        let before = self.paused.as_ref().map(|paused| paused.pause);
        if now == before {
            return;
        }
        let state = self.row.state;
        match now {
            Some(pause) => {
                let calm = self.calm_at.is_none_or(|at| self.shared.clock.now() > at + CALM);
                self.pauses = if calm { 0 } else { self.pauses + 1 };
                let wait = LOOKS.1.min(LOOKS.0 * 2_u32.saturating_pow(self.pauses));
                self.paused = Some(Paused { pause, look_at: self.shared.clock.now() + wait });
                self.follow_checks();
                let reason = reason(pause).as_str();
                tracing::warn!(machine = %self.row.id, reason, "machine paused");
                let request = json!({
                    "host_status": UNKNOWN, "host_status_reason": reason, "message": explain(pause),
                });
                self.tell_pause(state, request).await;
            }
            None => {
                self.paused = None;
                self.calm_at = Some(self.shared.clock.now());
                tracing::info!(machine = %self.row.id, "machine continues");
                let message = "the machine continues: its disk can be used";
                let request = json!({ "host_status": "ok", "message": message, "level": "info" });
                self.tell_pause(state, request).await;
            }
        }
    }

    async fn tell_pause(&mut self, state: MachineState, request: serde_json::Value) {
        let tell = |draft: &mut Transaction| {
            draft.event(Source::Worker, "host_status", state, request.clone())
        };
        self.change(Durability::Process, tell).await;
    }

    /// Has its VM go on where it may be able to.
    pub(super) fn look_at_disk(&mut self) {
        let Some(paused) = &mut self.paused else { return };
        let wait = LOOKS.1.min(LOOKS.0 * 2_u32.saturating_pow(self.pauses));
        paused.look_at = self.shared.clock.now() + wait;
        let Some(live) = self.live.as_ref().filter(|live| live.guest.borrow().gone.is_none())
        else {
            self.paused = None;
            return;
        };
        let room = paused.pause != Pause::DiskFull
            || self.shared.free_disk().is_ok_and(|free| free >= ROOM);
        if !room {
            return;
        }
        let (vm, machine) = (live.vm.clone(), self.row.id.clone());
        // Whether it does is heard of: QEMU may be slow to answer, and the machine can be stopped
        // meanwhile.
        tokio::spawn(async move {
            if let Err(error) = vm.unpause().await {
                tracing::warn!(%machine, %error, "can't unpause a machine");
            }
        });
    }
}
