//! Launching a VM: the driver prepares a seat, the network is connected to that, and the VM starts
//! or resumes there.

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc};

use caddis_api::{ApiError, MachineConfig};
use caddis_image::RootDisk;
use caddis_vmm::{IoLimits, LaunchSpec, Seat, StartKind, Vm, VmmError};

use super::{
    Context, Done, Failure, blocking, root,
    volumes::{self, Opened},
};
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
    let (shared, row, config) = (&context.shared, &context.row, &context.config);
    let mut volumes = volumes::open(&context).await?;
    let recorded = if is_resume(row) { volumes.recorded().await } else { Ok(()) };
    let changed = volumes.changed_since(&row.saved_volumes).filter(|_| is_resume(row));
    let launched = match recorded {
        Ok(()) => launch_with(&context, &disk, &mut volumes, changed.is_some()).await,
        Err(failure) => Err(failure),
    };
    let vm = match launched {
        Ok(vm) => vm,
        Err(failure) => {
            volumes.give_back(&context).await;
            return Err(failure);
        }
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
    let (memory_mib, start) = (config.memory_mib(), vm.start());
    tracing::debug!(machine = %row.id, memory_mib, ?start, "VM launched");
    // A machine that was to be resumed and is not begins a boot that was not foreseen.
    let boot = if is_resume(row) { shared.clock.unix_now().as_u64() } else { row.boot };
    let mut live = RunningVm::open(vm, boot, shared.config.guest_pace);
    live.not_resumed = changed.map(|why| format!("the machine could not be resumed: {why}"));
    Ok(Done::Launched(live))
}

pub(super) fn is_resume(row: &MachineRow) -> bool {
    row.operation.as_ref().is_some_and(|operation| operation.kind.rules().resumes())
}

/// Where a machine is saved that is to resume. Where its disk is lost, or its volumes are others
/// than they were, there is nothing to resume.
async fn saved_in(
    context: &Context,
    base: &RootDisk,
    volumes_changed: bool,
) -> Result<Option<PathBuf>, Failure> {
    let kind = context.row.operation.as_ref().map(|operation| &operation.kind);
    let Some(OperationKind::Resume(Resume { spoiled, .. })) = kind else { return Ok(None) };
    let (files, disk) = (context.files(), root::own_disk(context, base));
    let spoiled = *spoiled || volumes_changed;
    let vmm = context.shared.vmm.clone();
    let prepared = blocking(move || {
        let is_lost = !disk.path.exists();
        if spoiled || is_lost {
            vmm.remove_saved(files.directory())?;
        }
        if is_lost {
            files.make_directory()?;
            // Its files are the guest's to write: it is to be resumed.
            vmm.create_disk(&disk, &[])?;
        }
        Ok(files.directory().to_owned())
    });
    prepared
        .await
        .map(Some)
        .map_err(|e| Failure::retry(format!("can't prepare the machine's snapshot: {e}")))
}

/// What no second try changes is not tried again.
fn failure(error: VmmError) -> Failure {
    match error {
        VmmError::Unusable { .. } | VmmError::InvalidDisk { .. } => Failure::last(error),
        _ => Failure::retry(error),
    }
}

async fn launch_with(
    context: &Context,
    base: &RootDisk,
    volumes: &mut Opened,
    volumes_changed: bool,
) -> Result<Arc<dyn Vm>, Failure> {
    let saved = saved_in(context, base, volumes_changed).await?;
    let (shared, row, config) = (&context.shared, &context.row, &context.config);
    let spec = LaunchSpec {
        machine_id: row.id.to_string(),
        directory: context.files().directory().to_owned(),
        vcpus: config.cpus(),
        memory_mib: config.memory_mib(),
        cpu_weight: cpu_weight(config),
        disks: vec![root::own_disk(context, base)],
        volumes: std::mem::take(&mut volumes.disks),
        volume_limits: shared.config.volume_throttle.then(|| volume_limits(config)),
        mac: row.addresses.mac.clone(),
        kernel_args: config.kernel_args(),
        not_warm: false,
        saved,
    };
    let mut seat = shared.vmm.prepare(spec.clone()).await.map_err(failure)?;
    let mut connected = connect(context, seat.as_ref()).await;
    if let Some(error) = connected.as_ref().err().filter(|_| seat.has_tap()) {
        tracing::warn!(machine = %row.id, error = error.message, "can't connect a warm VM, \
            launching another");
        detach(context, &seat.slot().tap_name()).await;
        drop(seat);
        let spec = LaunchSpec { not_warm: true, ..spec };
        seat = shared.vmm.prepare(spec).await.map_err(failure)?;
        connected = connect(context, seat.as_ref()).await;
    }
    // Held until the network is detached, should it come to that: its tap must not be another's by
    // then.
    let slot = seat.slot().clone();
    let launched = match (connected, volumes.recorded().await) {
        (Ok(tap), Ok(())) => seat.launch(tap).await.map_err(failure),
        (Err(e), _) => Err(e.into()),
        (_, Err(failure)) => Err(failure),
    };
    if launched.is_err() {
        detach(context, &slot.tap_name()).await;
    }
    launched
}

/// Disconnects a VM that did not start.
async fn detach(context: &Context, tap: &str) {
    let (network, row) = (&context.shared.network, &context.row);
    if let Err(e) = network.detach(tap, &row.addresses).await {
        tracing::warn!(machine = %row.id, error = %e.message, "can't detach the network of a VM \
            that did not start");
    }
}

/// Connects the machine's network with the tap of a seat, which is made where it is not there.
async fn connect(context: &Context, seat: &dyn Seat) -> Result<Option<OwnedFd>, ApiError> {
    let (network, tap) = (&context.shared.network, seat.slot().tap_name());
    if seat.has_tap() {
        network.adopt(&tap, &context.row.addresses).await?;
        return Ok(None);
    }
    network.attach(&tap, &context.row.addresses).await
}

/// What a machine of this size may read and write of its volumes, as Fly Machines have it for
/// their sizes; what is between two of them counts as the larger one.
fn volume_limits(config: &MachineConfig) -> IoLimits {
    let (iops, mib) = match (config.has_dedicated_cpus(), config.cpus()) {
        (false, ..=2) => (4_000, 16),
        (false, _) => (8_000, 32),
        (true, ..=1) => (12_000, 48),
        (true, ..=4) => (16_000, 64),
        (true, _) => (32_000, 128),
    };
    IoLimits { iops, bytes_per_second: mib << 20 }
}

/// Weight of a VM against the others: dedicated processors count double, and more processors count
/// more.
fn cpu_weight(config: &MachineConfig) -> u32 {
    let each = if config.has_dedicated_cpus() { 200 } else { 100 };
    config.cpus().saturating_mul(each).min(10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_guests_may_read_and_write_more_of_their_volumes() {
        let limits = |kind: &str, cpus: u32| {
            let guest = serde_json::json!({ "guest": { "cpu_kind": kind, "cpus": cpus } });
            let limits = volume_limits(&serde_json::from_value(guest).unwrap());
            (limits.iops, limits.bytes_per_second >> 20)
        };
        for (kind, cpus, expected) in [
            ("shared", 1, (4_000, 16)),
            ("shared", 2, (4_000, 16)),
            ("shared", 4, (8_000, 32)),
            ("shared", 8, (8_000, 32)),
            ("performance", 1, (12_000, 48)),
            ("performance", 2, (16_000, 64)),
            ("performance", 4, (16_000, 64)),
            ("performance", 8, (32_000, 128)),
            ("performance", 16, (32_000, 128)),
        ] {
            assert_eq!(limits(kind, cpus), expected, "{kind}-cpu-{cpus}x");
        }
    }
}
