//! Clearing away what there is of a VM and of a machine.

use caddis_api::ApiError;
use caddis_vmm::Vm;

use super::{Context, Done, Failure, blocking, stop, suspend, volumes};
use crate::{engine::Shared, row::MachineRow};

pub(super) async fn end_vm(context: &Context) -> Result<Done, Failure> {
    let Some(live) = &context.live else { return Ok(Done::Released) };
    live.vm.kill().await.map_err(Failure::retry)?;
    if context
        .row
        .operation
        .as_ref()
        .is_some_and(|operation| operation.kind.rules().settles_at_once())
    {
        return Ok(Done::Killed);
    }
    gone(&context.shared, live.vm.as_ref(), &context.row).await?;
    Ok(Done::Released)
}

/// Waits until the process of a VM that was killed is gone, and takes its network away.
pub async fn gone(shared: &Shared, vm: &dyn Vm, row: &MachineRow) -> Result<(), ApiError> {
    vm.wait().await;
    shared.network.detach(&vm.slot().tap_name(), &row.addresses).await
}

/// Ends a program that runs still, as at a forced destroy: with its VM alone it would lose what it
/// has written to volumes and not synced.
async fn unmount(context: &Context) {
    let Some(live) = context.live.clone() else { return };
    let is_over = {
        let guest = live.guest.borrow();
        guest.ended.is_some() || guest.failed.is_some() || guest.gone.is_some()
    };
    if is_over || !volumes::has_any(context) {
        return;
    }
    if live.guest.borrow().may_be_frozen()
        && let Err(error) = suspend::thaw(&live, false).await
    {
        tracing::warn!(machine = %context.row.id, error = %error.message, "can't resume the \
            machine to unmount its volumes");
        return;
    }
    stop::kill_program(live, &context.shared.clock, true).await;
}

pub(super) async fn release(context: Context) -> Result<Done, Failure> {
    unmount(&context).await;
    let done = end_vm(&context).await?;
    let (files, vmm) = (context.files(), context.shared.vmm.clone());
    let remove = move || {
        vmm.remove_saved(files.directory())?;
        files.remove_root_disk()
    };
    blocking(remove).await.map_err(|e| Failure::retry(format!("can't clean up the VM: {e}")))?;
    Ok(done)
}

pub(super) async fn remove_files(context: Context) -> Result<Done, Failure> {
    // Its private addresses are another machine's afterwards.
    context.shared.egress.forget(&context.shared, &context.row).await.map_err(Failure::retry)?;
    let files = context.files();
    blocking(move || files.remove_all())
        .await
        .map_err(|e| Failure::retry(format!("can't remove the machine's directory: {e}")))?;
    Ok(Done::Next)
}
