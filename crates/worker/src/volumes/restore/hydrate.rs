//! Has a volume that is there, but empty, get all of the snapshot that it is made from.

use std::{path::Path, sync::Arc, time::Duration};

use caddis_api::{VolumeId, volume::VolumeState};
use caddis_bus::message::SnapshotSource;
use caddis_snapshot::{SnapshotError, nbd};
use caddis_vmm::{Hydration, Vm};
use caddis_volume::{Progress, VolumeError};
use serde_json::json;
use tokio::sync::watch;

use super::{Hydrating, Readable, make, serve};
use crate::{
    engine::Shared,
    store::Room,
    volumes::{
        Attachment, Volumes,
        background::Work,
        delete::blocking,
        requests::try_record,
        row::VolumeRow,
        snapshots::{backoff, mark_deleted},
    },
};

/// How often a VM is asked how far it is, and how long is waited before what failed is tried again.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is damaged, once something was found to be.
type Damaged = watch::Receiver<Option<String>>;

/// Begins to serve a volume's snapshot and to copy it, until it is whole.
pub(in crate::volumes) fn begin(shared: &Arc<Shared>, volume: &VolumeId) {
    let restores = &shared.volumes.restores;
    let socket = serve::socket(&restores.directory, volume);
    let (told, readable) = watch::channel(Readable::Unknown(None));
    let (worker, id) = (shared.clone(), volume.clone());
    let mut hydrating = restores.hydrating.lock();
    let task = shared.volumes.spawn(async move { run(&worker, &id, told).await });
    hydrating.insert(volume.clone(), Hydrating { socket, readable, task });
}

async fn run(shared: &Arc<Shared>, id: &VolumeId, readable: watch::Sender<Readable>) {
    let Some(row) = shared.volumes.row(id) else { return };
    let Some(from) = row.restore.clone() else {
        fail(shared, id, "it is not known any more which snapshot it is of".to_owned()).await;
        return;
    };
    match restore(shared, &row, &from, &readable).await {
        Ok(()) => {}
        Err(reason) => fail(shared, id, reason).await,
    }
    shared.volumes.restores.hydrating.lock().remove(id).map(|hydrating| hydrating.task.detach());
    serve::remove_directory(&shared.volumes.restores.directory.join(id.as_str()));
}

/// Serves and copies a snapshot to its end, or tells why that is never going to come.
async fn restore(
    shared: &Arc<Shared>,
    row: &VolumeRow,
    from: &SnapshotSource,
    readable: &watch::Sender<Readable>,
) -> Result<(), String> {
    let store = shared.volumes.snapshots.store.clone();
    let store = store.ok_or("this server has no snapshot store")?;
    let socket = serve::socket(&shared.volumes.restores.directory, &row.id);
    let listener = serve::listen(&socket)
        .map_err(|error| format!("can't listen at {}: {error}", socket.display()))?;
    let mut tries = 0;
    let reader = loop {
        match store.reader(&make::name(row, from)).await {
            Ok(reader) => break reader,
            Err(error @ SnapshotError::Store(_)) => {
                tries += 1;
                shared.volumes.note_trouble(&row.id, Some(error.to_string()));
                readable.send_replace(Readable::Unknown(Some(error.to_string())));
                shared.clock.sleep(backoff::wait(tries)).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    shared.volumes.note_trouble(&row.id, None);
    readable.send_replace(Readable::Yes);
    shared.reach("served").await;
    let (found, damaged) = watch::channel(None);
    let on_damage = move |error: SnapshotError| {
        found.send_replace(Some(error.to_string()));
    };
    let served = nbd::serve(listener, reader, on_damage, shared.volumes.ending.child_token());
    tokio::select! {
        () = served => Err("the server of the snapshot has ended".to_owned()),
        copied = copy(shared, &row.id, &socket, damaged) => copied,
    }
}

/// Copies all, by whoever has the volume.
async fn copy(
    shared: &Arc<Shared>,
    id: &VolumeId,
    socket: &Path,
    damaged: Damaged,
) -> Result<(), String> {
    let volumes = &shared.volumes;
    let mut freed = volumes.background.changes();
    loop {
        freed.borrow_and_update();
        let attached = volumes.attached(id);
        let vm = attached.as_ref().and_then(|attached| shared.vm(&attached.machine));
        let is_done = if let Some((attached, vm)) = attached.zip(vm) {
            ask_vm(shared, id, &attached, vm.as_ref(), &damaged).await
        } else if let Some(work) = volumes.background.begin(id) {
            by_files(shared, id, socket, damaged.clone(), &work).await?
        } else {
            false
        };
        if is_done {
            break;
        }
        shared.clock.sleep(INTERVAL).await;
    }
    shared.reach("hydrated").await;
    finish(shared, id).await;
    Ok(())
}

/// Has the VM copy it, and notes how far it is. True when it has all.
async fn ask_vm(
    shared: &Shared,
    id: &VolumeId,
    attached: &Attachment,
    vm: &dyn Vm,
    damaged: &Damaged,
) -> bool {
    let damage = damaged.borrow().clone();
    match vm.hydrate(attached.index).await {
        Ok(Hydration::Done) => return true,
        Ok(Hydration::Running { done, total }) => {
            shared.volumes.note_hydration(id, Progress { done, total }, damage.clone());
        }
        Ok(Hydration::Stalled { reason }) => {
            shared.volumes.note_trouble(id, Some(damage.clone().unwrap_or(reason)));
        }
        Err(error) => tracing::debug!(volume = %id, %error, "can't ask a VM for a volume"),
    }
    if let Some(reason) = damage {
        let message = format!(
            "Volume {id} can't be read in part, restoring it stands still: \
            {reason}"
        );
        let details = json!({ "volume": id, "level": "error" });
        shared.tell_machine_of(id, message, details).await;
    }
    false
}

/// Has the files copy it while nobody uses them. True when they have all.
///
/// # Errors
/// When it never will be.
async fn by_files(
    shared: &Shared,
    id: &VolumeId,
    socket: &Path,
    mut damaged: Damaged,
    work: &Work,
) -> Result<bool, String> {
    let volumes = &shared.volumes;
    let (progress, mut told) = watch::channel(Progress::default());
    let copied = async {
        // Never closed.
        let _turn = volumes.restores.turns.acquire().await;
        volumes.files.hydrate(id, socket, &progress).await
    };
    let noted = async {
        while told.changed().await.is_ok() {
            let progress = *told.borrow_and_update();
            volumes.note_hydration(id, progress, None);
            shared.clock.sleep(INTERVAL).await;
        }
        std::future::pending::<()>().await;
    };
    let copied = tokio::select! {
        copied = copied => copied,
        () = noted => return Ok(false),
        () = work.cancelled.cancelled() => return Ok(false),
        Ok(found) = damaged.wait_for(Option::is_some) => {
            return Err(found.clone().unwrap_or_default());
        }
    };
    // QEMU leaves out a part of which it is not told what is there, so that it has not copied all.
    let damage = damaged.borrow().clone();
    if let Some(damage) = damage {
        return Err(damage);
    }
    match copied {
        Ok(()) => Ok(true),
        Err(VolumeError::InUse { .. } | VolumeError::Interrupted(_)) => Ok(false),
        Err(error) => {
            tracing::warn!(volume = %id, %error, "can't copy a snapshot to a volume");
            volumes.note_trouble(id, Some(error.to_string()));
            Ok(false)
        }
    }
}

/// A volume has all of it.
async fn finish(shared: &Shared, id: &VolumeId) {
    while !shared.volumes.is_ending() {
        let (files, volume) = (shared.volumes.files.clone(), id.clone());
        match blocking(move || files.mark_whole(&volume)).await {
            Ok(()) => break,
            Err(error) => tracing::error!(volume = %id, %error, "can't record a volume"),
        }
        shared.clock.sleep(INTERVAL).await;
    }
    shared.reach("whole").await;
    let from = shared.volumes.row(id).and_then(|row| row.restore);
    change(shared, id, |row| {
        (row.state, row.restore) = (VolumeState::Created, None);
    })
    .await;
    shared.volumes.note_trouble(id, None);
    tracing::info!(volume = %id, "a volume has all of its snapshot");
    if let Some(from) = from {
        let is_for_it = |row: crate::volumes::snapshots::SnapshotRow| row.fork.as_ref() == Some(id);
        if shared.volumes.snapshots.row(&from.snapshot).is_some_and(is_for_it) {
            mark_deleted(shared, &from.snapshot).await;
        }
    }
}

async fn fail(shared: &Shared, id: &VolumeId, reason: String) {
    tracing::error!(volume = %id, reason, "can't restore a volume");
    change(shared, id, |row| {
        row.state = VolumeState::Failed;
        row.fail(row.making(), &reason);
    })
    .await;
}

/// Changes the record of a volume that is being restored, again and again until that is recorded.
async fn change(shared: &Shared, id: &VolumeId, change: impl Fn(&mut VolumeRow)) {
    let _turn = shared.volumes.turn(id).await;
    let is_it = |row: &VolumeRow| row.state == VolumeState::Hydrating;
    while let Some(mut row) = shared.volumes.row(id).filter(is_it) {
        change(&mut row);
        match try_record(shared, row, None, Room::Reserve).await {
            Ok(()) => return,
            Err(error) => tracing::error!(volume = %id, %error, "can't record a volume"),
        }
        shared.clock.sleep(INTERVAL).await;
    }
}

impl Volumes {
    /// Why what is copied to a volume does not go on, or that it does.
    pub(in crate::volumes) fn note_trouble(&self, volume: &VolumeId, trouble: Option<String>) {
        self.edit_if(volume, |entry| {
            let changes = entry.trouble != trouble;
            entry.trouble = trouble;
            changes
        });
    }

    fn note_hydration(&self, volume: &VolumeId, progress: Progress, trouble: Option<String>) {
        self.edit_if(volume, |entry| {
            let changes = (entry.progress, &entry.trouble) != (progress, &trouble);
            (entry.progress, entry.trouble) = (progress, trouble);
            changes
        });
    }
}
