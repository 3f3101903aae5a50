//! Clearing away what there is of a VM and of a machine.

use caddis_api::ApiError;
use caddis_vmm::Vm;

use super::{Context, Done, Failure, blocking};
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

pub(super) async fn release(context: Context) -> Result<Done, Failure> {
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
    let files = context.files();
    blocking(move || files.remove_all())
        .await
        .map_err(|e| Failure::retry(format!("can't remove the machine's directory: {e}")))?;
    Ok(Done::Next)
}
