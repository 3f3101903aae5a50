//! Launching a VM: from what the machine was saved to, from the warm pool, or anew.

use std::{path::PathBuf, sync::Arc};

use caddis_api::MachineConfig;
use caddis_image::RootDisk;
use caddis_vmm::{
    BindSpec, Disk, DiskFormat, DiskRole, LaunchSpec, Shape, StartKind, Vm, VmmError,
};

use super::{Context, Done, Failure, blocking, root};
use crate::{
    live::RunningVm,
    operations::{OperationKind, Resume},
    row::MachineRow,
};

pub(super) async fn launch(context: Context) -> Result<Done, Failure> {
    if context.live.is_some() {
        return Ok(Done::Next);
    }
    let disk = root::root_disk(&context).await?;
    let snapshot = snapshot_to_use(&context, &disk).await?;
    let (shared, row, config) = (&context.shared, &context.row, &context.config);
    let vm = match snapshot {
        None => match bind_waiting(&context, &disk).await? {
            Some(vm) => vm,
            None => launch_new(&context, disk, None).await?,
        },
        snapshot => launch_new(&context, disk, snapshot).await?,
    };
    if vm.start().kind == StartKind::Resume {
        let (logs, id, boot) = (shared.logs.clone(), row.id.clone(), row.boot);
        let acknowledged = blocking(move || Ok(logs.acknowledged(&id, boot))).await.unwrap_or(0);
        return Ok(Done::Launched(RunningVm::resumed(
            vm,
            boot,
            acknowledged,
            shared.config.guest_pace,
        )));
    }
    tracing::debug!(machine = %row.id, memory_mib = config.memory_mib(), start = ?vm.start(), "VM launched");
    // A machine that was to be resumed and is not begins a boot that was not foreseen.
    let boot = if is_resume(row) { shared.clock.now_ms() } else { row.boot };
    Ok(Done::Launched(RunningVm::open(vm, boot, shared.config.guest_pace)))
}

pub(super) fn is_resume(row: &MachineRow) -> bool {
    row.operation.as_ref().is_some_and(|operation| operation.kind.rules().resumes())
}

/// What a machine is to be resumed from, if it is. Where its disk is lost, there is nothing to
/// resume.
async fn snapshot_to_use(context: &Context, disk: &RootDisk) -> Result<Option<PathBuf>, Failure> {
    let kind = context.row.operation.as_ref().map(|operation| &operation.kind);
    let Some(OperationKind::Resume(Resume { spoiled })) = kind else { return Ok(None) };
    let files = context.files();
    let (spoiled, size) = (*spoiled, context.config.rootfs_gib() << 30);
    let (shared, disk) = (context.shared.clone(), disk.path.clone());
    let prepared = blocking(move || {
        let overlay = files.overlay();
        if spoiled || !overlay.exists() {
            files.remove_snapshot()?;
        }
        if !overlay.exists() {
            files.make_directory()?;
            // Its files are the guest's to write: it is to be resumed.
            shared.images.create_overlay(&overlay, size, &disk, &[])?;
        }
        Ok(files.snapshot())
    });
    prepared
        .await
        .map(Some)
        .map_err(|e| Failure::retry(format!("can't prepare the machine's snapshot: {e}")))
}

/// The machine's disks.
fn disks(context: &Context, base: &RootDisk) -> Vec<Disk> {
    vec![Disk {
        role: DiskRole::Root,
        format: DiskFormat::Overlay(base.path.clone()),
        path: context.files().overlay(),
        size: context.config.rootfs_gib() << 30,
    }]
}

/// Makes a VM that waits the machine's, if there is one for it.
async fn bind_waiting(context: &Context, disk: &RootDisk) -> Result<Option<Arc<dyn Vm>>, Failure> {
    let (shared, row, config) = (&context.shared, &context.row, &context.config);
    if !config.kernel_args().is_empty() {
        return Ok(None);
    }
    let shape = Shape { vcpus: config.cpus(), memory_mib: config.memory_mib() };
    let Some(waiting) = shared.vmm.take(shape).await else { return Ok(None) };
    // Held until the network is detached, should it come to that: its tap must not be another's by
    // then.
    let slot = waiting.slot().clone();
    let tap = slot.tap_name();
    let files = context.files();
    let spec = BindSpec {
        machine_id: row.id.to_string(),
        disks: disks(context, disk),
        directory: files.directory().to_owned(),
        cpu_weight: cpu_weight(config),
    };
    let connected = shared.network.adopt(&tap, &row.addresses).await;
    let bound = match connected {
        Ok(()) => waiting.bind(spec).await.map_err(|e| e.to_string()),
        Err(e) => Err(e.message),
    };
    match bound {
        Ok(vm) => Ok(Some(vm)),
        Err(error) => {
            // There is the longer way.
            tracing::warn!(machine = %row.id, error, "can't use a warm VM for the machine");
            detach_after_failure(context, &tap).await;
            drop(slot);
            Ok(None)
        }
    }
}

async fn detach_after_failure(context: &Context, tap: &str) {
    if let Err(e) = context.shared.network.detach(tap, &context.row.addresses).await {
        tracing::warn!(machine = %context.row.id, error = %e, "can't detach the network of a VM that did not start");
    }
}

async fn launch_new(
    context: &Context,
    disk: RootDisk,
    snapshot: Option<PathBuf>,
) -> Result<Arc<dyn Vm>, Failure> {
    let (shared, row, config) = (&context.shared, &context.row, &context.config);
    let files = context.files();
    let slot = shared.slots.lease().map_err(Failure::retry)?;
    // Held until the network is detached, should it come to that: its tap must not be another's by
    // then.
    let (held, tap_name) = (slot.clone(), slot.tap_name());
    let tap = shared.network.attach(&tap_name, &row.addresses).await?;
    let spec = LaunchSpec {
        machine_id: row.id.to_string(),
        disks: disks(context, &disk),
        directory: files.directory().to_owned(),
        slot,
        vcpus: config.cpus(),
        memory_mib: config.memory_mib(),
        cpu_weight: cpu_weight(config),
        tap,
        mac: row.addresses.mac.clone(),
        kernel_args: config.kernel_args(),
        snapshot,
    };
    match shared.vmm.launch(spec).await {
        Ok(vm) => Ok(vm),
        Err(e) => {
            detach_after_failure(context, &tap_name).await;
            drop(held);
            Err(match e {
                VmmError::Unusable { .. } => Failure::last(e),
                _ => Failure::retry(e),
            })
        }
    }
}

/// Weight of a VM against the others: dedicated processors count double, and more processors count
/// more.
fn cpu_weight(config: &MachineConfig) -> u32 {
    let each = if config.has_dedicated_cpus() { 200 } else { 100 };
    config.cpus().saturating_mul(each).min(10_000)
}
