//! A panic in the task of one machine is a fault of this program: the machine is set aside, and
//! everything else goes on.
//!
//! ```text
//! owner task ──panics──▶ failed, with the reason, nothing under way ──▶ new owner task
//! ```
//!
//! Nothing of the machine is touched. Its files stay, and a VM that runs is left running, which the
//! new owner looks after: its program goes on, its log is kept, and it can be asked to end by a
//! stop, a start or an update. Killing it would lose what is on its root disk. Nothing happens to
//! the machine until somebody asks for it.

use std::{any::Any, sync::Arc, time::Duration};

use caddis_api::{MachineId, MachineState};
use serde_json::json;

use crate::{
    engine::Shared,
    event::Source,
    owner::{Owner, RECENT_EVENTS, Transaction},
    recovery::{Found, find_vm},
    steps::Step,
    store::{Durability, Room, StoreError},
};

/// Kind of the event that tells of it.
const EVENT: &str = "machine";
/// Wait before another try to record it, and before a machine that was quarantined already, and has
/// done nothing since, gets its next owner.
const BACKOFF: Duration = Duration::from_secs(1);

/// Runs the owner of a machine, and quarantines the machine when that panics.
pub async fn supervise(shared: Arc<Shared>, machine: MachineId, owner: Owner) {
    let Err(error) = tokio::spawn(owner.run()).await else { return };
    let Ok(panic) = error.try_into_panic() else { return };
    let panic = text(panic.as_ref());
    tracing::error!(%machine, panic, "internal error in a machine's task: quarantining the \
                                      machine");
    while let Err(error) = quarantine(&shared, &machine).await {
        tracing::error!(%machine, %error, "can't record that a machine is quarantined");
        if shared.is_ending() {
            return;
        }
        shared.clock.sleep(BACKOFF).await;
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = || panic.downcast_ref::<String>().map(String::as_str);
    panic.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("no message")
}

/// Sets a machine aside as it is recorded: what its owner had in memory may be wrong.
async fn quarantine(shared: &Arc<Shared>, machine: &MachineId) -> Result<(), StoreError> {
    let Some((row, events)) = shared.store.machine(machine, RECENT_EVENTS).await? else {
        return Ok(());
    };
    if row.state == MachineState::Destroyed {
        shared.publish_destroyed(&row, events);
        shared.retire(machine);
        return Ok(());
    }
    // Its configuration was read before.
    let config = caddis_api::validate::read(&row.config).unwrap_or_default();
    let known = shared.vm(machine);
    let found = match known {
        Some(vm) => Ok(Some(vm)),
        None if row.has_vm => find_vm(shared, &row).await,
        None => Ok(None),
    };
    let vm = found.as_ref().ok().cloned().flatten();
    if let Err(error) = &found {
        tracing::error!(%machine, error, "can't look for the VM of a quarantined machine");
    }
    let is_again = row.is_quarantined && row.operation.is_none();
    let mut draft = Transaction::new(row, shared.clock.unix_now());
    // Above all that was published without being recorded.
    draft.row.revision = draft.row.revision.max(draft.now.as_u64()) + 1;
    draft.row.has_vm = vm.is_some() || found.is_err();
    if is_again {
        shared.clock.sleep(BACKOFF).await;
    } else {
        draft.quarantine();
    }
    let change = draft.into_change();
    shared.store.commit(vec![change.clone()], Durability::Synced, Room::Reserve).await?;
    Found { change, config, events, vm }.recover(shared).await;
    Ok(())
}

impl Transaction {
    fn quarantine(&mut self) {
        let operation = self.row.operation.take();
        let doing = match &operation {
            Some(operation) => {
                let step = operation.current().map_or("finish", Step::as_str);
                format!("during {}, at step {step}", operation.kind.rules().name())
            }
            None => format!("while the machine was {}", self.row.state),
        };
        // Nothing follows by itself.
        (self.row.next, self.row.replaced, self.row.drained) = (None, None, false);
        if !self.row.has_vm {
            self.row.ended = None;
        }
        self.row.is_quarantined = true;
        let left = match self.row.has_vm {
            true => "the machine's files and its VM were left as they are",
            false => "the machine's files were left as they are",
        };
        let reason = format!("internal error in the server {doing}; {left}; see the server's log");
        self.reach(MachineState::Failed, Source::Worker, EVENT, json!({ "error": reason }));
    }
}
