//! Suspending: programs stand still, and memory and devices are saved. And the way back.

use std::time::Duration;

use caddis_guest_protocol::host::SessionError;

use super::{Context, Done, Failure, RunningVmHandle, blocking, boot::entropy, no_vm, volumes};
use crate::{engine::Shared, row::MachineRow};

/// How long programs may take to stand still, and to go on.
const FREEZE_DEADLINE: Duration = Duration::from_secs(20);

pub(super) async fn freeze(context: Context) -> Result<Done, Failure> {
    let live = context.live.ok_or_else(no_vm)?;
    live.guest.send_modify(|guest| guest.frozen = true);
    live.told(live.session.freeze(FREEZE_DEADLINE))
        .await
        .map_err(|e| Failure::last(format!("can't freeze the programs: {e}")))?;
    let guest = live.guest.borrow();
    if guest.ended.is_some() || guest.failed.is_some() {
        return Err(Failure::last("its program has ended"));
    }
    Ok(Done::Next)
}

pub(super) async fn save(context: Context) -> Result<Done, Failure> {
    let files = context.files();
    let live = context.live.clone().ok_or_else(no_vm)?;
    let (shared, needed) = (&context.shared, context.config.memory_mib() << 20);
    let free = shared
        .free_disk()
        .map_err(|e| Failure::last(format!("can't read the free disk space: {e}")))?;
    if free < needed {
        let text = format!(
            "disk is full: its memory may take {} MiB, {} MiB are free",
            needed >> 20,
            free >> 20
        );
        return Err(Failure::last(text));
    }
    let _wanted = volumes::wanted(&context).await;
    live.guest.send_modify(|guest| guest.halted = true);
    let volumes = volumes::saved(&context);
    live.vm.save(files.directory()).await.map_err(Failure::last)?;
    Ok(if volumes.is_empty() { Done::Next } else { Done::Saved(volumes) })
}

/// Has a VM go on, if it may stand still.
pub(super) async fn unpause(live: &RunningVmHandle) -> Result<(), Failure> {
    if live.guest.borrow().halted && live.guest.borrow().gone.is_none() {
        live.vm.unpause().await.map_err(Failure::retry)?;
        live.guest.send_modify(|guest| guest.halted = false);
    }
    Ok(())
}

/// Has the programs of a VM go on that may stand still.
pub(super) async fn thaw(live: &RunningVmHandle, resumed: bool) -> Result<(), Failure> {
    unpause(live).await?;
    let thawed = live.told(live.session.thaw(entropy(), resumed, FREEZE_DEADLINE)).await;
    thawed.map_err(|error| {
        // A guest that says nothing is not asked over and over: it has been told. One that was
        // resumed may be slow.
        let silent = error == SessionError::NoAnswer(FREEZE_DEADLINE).to_string();
        Failure { message: error, retry: resumed || !silent }
    })?;
    live.guest.send_modify(|guest| guest.frozen = false);
    Ok(())
}

/// Where the VM is gone, what follows is its end's business.
pub(super) async fn thaw_or_gone(context: Context) -> Result<Done, Failure> {
    let Some(mut live) = context.live else { return Ok(Done::Next) };
    let thawing = live.clone();
    tokio::select! {
        thawed = thaw(&thawing, false) => match thawed {
            Err(_) if live.guest.borrow().gone.is_some() => {}
            outcome => outcome?,
        },
        _ = live.until(|guest| guest.gone.is_some()) => {}
    }
    forget_snapshot(&context.shared, &context.row).await?;
    Ok(Done::Next)
}

/// What was saved is of the past.
pub async fn forget_snapshot(shared: &Shared, row: &MachineRow) -> Result<(), Failure> {
    let (files, vmm) = (shared.machine_files(&row.id), shared.vmm.clone());
    blocking(move || vmm.remove_saved(files.directory()))
        .await
        .map_err(|e| Failure::retry(format!("can't remove a snapshot: {e}")))
}
