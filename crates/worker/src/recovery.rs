//! Recovery: a worker that starts finds out what became of its machines while no server ran.

use std::{fs, io, os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc};

use caddis_api::{MachineConfig, MachineState, WorkerId, event::MachineEvent};
use caddis_bus::Bus;
use caddis_vmm::{StartKind, Vm};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    StepHook, WorkerConfig, WorkerError,
    engine::{Drivers, Shared},
    event::Source,
    live::RunningVm,
    logs::Logs,
    operations::{FoundVm, LostVm, OperationKind, Start, StartReason},
    owner::{RECENT_EVENTS, Transaction},
    publish::Publisher,
    row::{EndCause, MachineRow, ProgramEnd},
    steps::{self, Step},
    store::{Change, Durability, Room, Store},
    volumes,
};

/// How many machines are looked for at once: finding a VM is mostly waiting for it.
const LOOKS: usize = 16;

const WORKER_ID: &str = "worker_id";
const BOOT_ID: &str = "boot_id";

/// Opens the worker's files.
pub async fn open(
    config: WorkerConfig,
    bus: Arc<dyn Bus>,
    drivers: Drivers,
    hook: Option<Arc<dyn StepHook>>,
) -> Result<Arc<Shared>, WorkerError> {
    let directory = config.directory.clone();
    let failed = |source| WorkerError::Directory { path: directory.clone(), source };
    make_directory(&directory).map_err(failed)?;
    // Half-received archives of an earlier process.
    remove_directory(&directory.join("uploads")).map_err(failed)?;
    let store = Store::open(&directory.join("worker.db"), config.reserve.clone())?;
    let logs = Logs::open(directory.join("logs"), config.log_bytes_per_machine).map_err(failed)?;
    let worker = match store.meta(WORKER_ID).await? {
        Some(id) => WorkerId::from_trusted(id),
        None => {
            let id = WorkerId::generate();
            store.set_meta(WORKER_ID, id.to_string()).await?;
            id
        }
    };
    let publisher = Publisher::new(worker.clone(), bus);
    let mut shared = Shared::new(worker, config, store, logs, publisher, drivers);
    shared.hook = hook;
    Ok(Arc::new(shared))
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Takes up every machine: adopts its VM where one runs, and notes what ended meanwhile.
pub async fn resume(shared: &Arc<Shared>) -> Result<(), WorkerError> {
    let rebooted =
        shared.store.meta(BOOT_ID).await?.is_some_and(|last| last != shared.config.boot_id);
    volumes::load(shared).await?;
    volumes::snapshots::load(shared).await?;
    volumes::serve(shared);
    let machines = shared.store.load(RECENT_EVENTS).await?;
    let count = machines.len();
    let (destroyed, others): (Vec<_>, Vec<_>) =
        machines.into_iter().partition(|(row, _)| row.state == MachineState::Destroyed);
    for (row, events) in destroyed {
        shared.logs.catch_up(&row.id, events.iter().rev().cloned().collect());
        shared.publish_destroyed(&row, events);
    }
    let found: Vec<_> = stream::iter(others)
        .map(|(row, events)| Found::look(shared, row, events, rebooted))
        .buffered(LOOKS)
        .try_collect()
        .await?;
    let adopted = found.iter().filter(|found| found.vm.is_some()).count();
    let changes = found.iter().map(|found| found.change.clone()).collect();
    shared.store.commit(changes, Durability::Synced, Room::Reserve).await?;
    for found in found {
        found.recover(shared).await;
    }
    volumes::resume(shared);
    shared.store.set_meta(BOOT_ID, shared.config.boot_id.clone()).await?;
    tracing::info!(machines = count, running = adopted, rebooted, "adopted machines");
    Ok(())
}

/// A machine that is about to get its owner.
pub struct Found {
    /// It, with what is noted of it.
    pub change: Change,
    /// Its configuration, read.
    pub config: MachineConfig,
    /// Its events before the change, newest first.
    pub events: Vec<MachineEvent>,
    /// Its VM, if one runs.
    pub vm: Option<Arc<dyn Vm>>,
}

impl Found {
    /// Looks what became of it.
    async fn look(
        shared: &Shared,
        row: MachineRow,
        events: Vec<MachineEvent>,
        rebooted: bool,
    ) -> Result<Self, WorkerError> {
        let id = row.id.clone();
        let failed = |reason: String| WorkerError::Machine { machine: id.clone(), reason };
        let config = caddis_api::validate::read(&row.config).map_err(|e| failed(e.message))?;
        let mut vm = if row.has_vm { find_vm(shared, &row).await.map_err(failed)? } else { None };
        let is_settled =
            row.operation.is_none() && row.state != MachineState::Started && !row.is_quarantined;
        if let Some(killed) = vm.take_if(|_| is_settled) {
            // An earlier server has killed it and ended before it was gone.
            killed.kill().await.map_err(|e| failed(e.to_string()))?;
            steps::gone(shared, killed.as_ref(), &row).await.map_err(|e| failed(e.message))?;
        }
        let mut draft = Transaction::new(row, shared.clock.unix_now());
        // Above all that an earlier process may have published without recording it.
        draft.row.revision = draft.row.revision.max(draft.now.as_u64()) + 1;
        recover(&mut draft, vm.as_deref().map(|vm| vm.start().kind), rebooted);
        Ok(Self { change: draft.into_change(), config, events, vm })
    }

    /// Gives it its owner.
    pub async fn recover(self, shared: &Arc<Shared>) {
        let Self { change: Change { row, events: new, .. }, config, mut events, vm } = self;
        for event in new {
            events.insert(0, event);
        }
        events.truncate(RECENT_EVENTS);
        shared.logs.catch_up(&row.id, events.iter().rev().cloned().collect());
        shared.capacity.restore(&row.id, &config, row.addresses.ipv4);
        shared.volumes.restore(&row.id, config.mounts.as_deref().unwrap_or_default());
        let live = match vm {
            Some(vm) => {
                let (logs, id, boot) = (shared.logs.clone(), row.id.clone(), row.boot);
                let acknowledged =
                    tokio::task::spawn_blocking(move || logs.acknowledged(&id, boot)).await;
                Some(RunningVm::adopted(
                    vm,
                    row.boot,
                    acknowledged.unwrap_or(0),
                    shared.config.guest_pace,
                ))
            }
            None => None,
        };
        shared.adopt(row, config, events, live);
    }
}

/// The VM that runs for a machine, if one does, connected to its network.
pub async fn find_vm(shared: &Shared, row: &MachineRow) -> Result<Option<Arc<dyn Vm>>, String> {
    let files = shared.machine_files(&row.id);
    let found =
        shared.vmm.adopt(row.id.as_str(), files.directory()).await.map_err(|e| e.to_string())?;
    if let Some(vm) = &found {
        let tap = vm.slot().tap_name();
        // One that can't be connected is no reason to leave all others without a server.
        if let Err(error) = shared.network.adopt(&tap, &row.addresses).await {
            let (machine, error) = (&row.id, error.message);
            tracing::error!(%machine, error, "can't connect the VM to the network: restart the \
                machine");
        }
    }
    Ok(found)
}

/// Notes what became of a machine. Pure.
fn recover(draft: &mut Transaction, vm: Option<StartKind>, rebooted: bool) {
    if draft.row.has_vm && vm.is_none() {
        lose_vm(draft, rebooted);
    }
    if let Some(operation) = draft.row.operation.clone() {
        operation.kind.rules().found(draft, &FoundVm { vm, rebooted });
    }
    if draft.row.drained && draft.row.operation.is_none() {
        draft.row.drained = false;
        if draft.row.state == MachineState::Stopped {
            draft.begin(Start::because(StartReason::Recovery), Source::Worker);
        }
    }
}

fn lose_vm(draft: &mut Transaction, rebooted: bool) {
    let end = if rebooted {
        ProgramEnd::unreported(EndCause::HostReboot, Some("the host was rebooted".to_owned()))
    } else {
        let text = "the VM ended while no server was running";
        ProgramEnd::unreported(EndCause::VmmCrashed, Some(text.to_owned()))
    };
    let lost = LostVm { end, rebooted };
    draft.row.has_vm = false;
    let Some(operation) = &mut draft.row.operation else {
        if draft.row.state == MachineState::Started {
            draft.lose_running(&lost);
        }
        return;
    };
    if operation.current() == Some(Step::Launch) {
        // How long it has waited for its turn is not recorded.
        operation.deadline = operation.deadline.max(OperationKind::START.deadline(draft.now));
    }
    operation.kind.clone().rules().lost_vm(draft, &lost);
}
