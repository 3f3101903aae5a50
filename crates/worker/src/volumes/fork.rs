//! Copies of volumes, also of one that is in use.
//!
//! ```text
//!   nobody uses it ─▶ copied by the files, by reflink where the host's file system can
//!   a VM has it ────▶ by reflink, the guest holding its file systems still
//!                      └ the host can't ─▶ a snapshot of it, for this alone ─▶ restored from that
//! ```

use std::{io, os::fd::OwnedFd, pin::pin, sync::Arc, time::Duration};

use caddis_api::{SnapshotId, VolumeId, volume::SnapshotStatus};
use caddis_bus::message::SnapshotSource;
use caddis_vmm::{Vm, VmmError};
use caddis_volume::{CloneError, NewCopy, Progress, SizeGib, Volume, VolumeError};
use tokio::{sync::watch, time::Instant};

use super::{
    Attachment, Volumes,
    in_use::once_free,
    make::{Unmade, reserved},
    requests, restore,
    row::VolumeRow,
    snapshots::{self, SnapshotRow, held_still},
};
use crate::{engine::Shared, requests::quiet_session};

/// Progress is told of at most this often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How often a source is tried that is being opened or let go of, or whose guest does not answer.
const TRIES: u32 = 5;
/// The wait before it is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Makes a copy of a volume, whoever has that.
pub(super) async fn make(
    shared: &Arc<Shared>,
    row: &VolumeRow,
    source: &VolumeId,
) -> Result<Volume, Unmade> {
    if let Some(from) = &row.restore {
        return by_snapshot(shared, row, from).await;
    }
    let mut tries = 0;
    loop {
        tries += 1;
        let outcome = match running(shared, source) {
            Some((attached, vm)) => by_reflink(shared, row, &attached, vm.as_ref()).await,
            None => by_files(shared, row, source).await.map_err(Uncopied::Files),
        };
        let error = match outcome {
            Ok(volume) => return Ok(volume),
            Err(Uncopied::Unsupported) => {
                let from = use_snapshot(shared, row, source).await?;
                return by_snapshot(shared, row, &from).await;
            }
            Err(Uncopied::Files(error @ VolumeError::InUse { .. })) => Unmade::Files(error),
            Err(Uncopied::Files(error)) => return Err(error.into()),
            Err(Uncopied::Later(reason)) => Unmade::Restore(reason),
        };
        if tries >= TRIES {
            return Err(error);
        }
        shared.clock.sleep(RETRY).await;
    }
}

/// Why a volume was not copied.
enum Uncopied {
    /// The host's file system has no reflinks.
    Unsupported,
    /// The files say so.
    Files(VolumeError),
    /// The guest or the VM could not.
    Later(String),
}

fn running(shared: &Shared, volume: &VolumeId) -> Option<(Attachment, Arc<dyn Vm>)> {
    let attached = shared.volumes.attached(volume)?;
    let vm = shared.vm(&attached.machine)?;
    Some((attached, vm))
}

fn new_copy(row: &VolumeRow) -> Result<NewCopy, VolumeError> {
    let size = Some(SizeGib::new(row.size_gb)?);
    Ok(NewCopy { id: row.id.clone(), size, created_at: row.created_at.into() })
}

/// Copies what nobody uses.
async fn by_files(
    shared: &Shared,
    row: &VolumeRow,
    source: &VolumeId,
) -> Result<Volume, VolumeError> {
    // Never closed; and without a turn it would only take longer.
    let _turn = shared.volumes.making[1].acquire().await;
    let _wanted = shared.volumes.background.want(source).await;
    let (progress, mut told) = watch::channel(Progress::default());
    // The VM of its machine, which was stopped, may still have the source.
    let copies = once_free(&shared.clock, async || {
        let copy = shared.volumes.files.copy(source, new_copy(row)?, &progress);
        reserved(shared, &row.id, copy).await
    });
    let mut copies = pin!(copies);
    loop {
        tokio::select! {
            copied = &mut copies => return copied.map(|copied| copied.volume),
            Ok(()) = told.changed() => {
                let progress = *told.borrow_and_update();
                shared.volumes.note_progress(&row.id, progress);
                let next = Instant::now() + PROGRESS_INTERVAL;
                if let Ok(copied) = tokio::time::timeout_at(next, &mut copies).await {
                    return copied.map(|copied| copied.volume);
                }
            }
        }
    }
}

/// Copies what a VM uses, in the moment in which its guest holds still.
async fn by_reflink(
    shared: &Shared,
    row: &VolumeRow,
    attached: &Attachment,
    vm: &dyn Vm,
) -> Result<Volume, Uncopied> {
    let source = row.source.as_ref().unwrap_or(&row.id);
    let session = quiet_session(shared, &attached.machine).await;
    let session = session.ok_or_else(|| Uncopied::Later("the guest does not answer".to_owned()))?;
    let clone = async |to: OwnedFd| {
        let cloned = held_still(&session, async {
            Ok::<_, String>(vm.clone_volume(attached.index, to).await)
        });
        match cloned.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if is_unsupported(&error) => Err(Uncopied::Unsupported),
            Ok(Err(error)) => Err(Uncopied::Later(error.to_string())),
            Err(reason) => Err(Uncopied::Later(reason)),
        }
    };
    let new = new_copy(row).map_err(Uncopied::Files)?;
    let copied = shared.volumes.files.clone_open(source, new, clone);
    let copied = reserved(shared, &row.id, copied).await;
    shared.reach("cloned").await;
    copied.map_err(|error| match error {
        CloneError::Volume(error) => Uncopied::Files(error),
        CloneError::Clone(uncopied) => uncopied,
    })
}

fn is_unsupported(error: &VmmError) -> bool {
    let kind = match error {
        VmmError::Io { source, .. } => source.kind(),
        _ => return false,
    };
    matches!(kind, io::ErrorKind::Unsupported | io::ErrorKind::CrossesDevices)
}

/// Records that a volume is made by way of a snapshot, so that the next worker goes on with that.
async fn use_snapshot(
    shared: &Shared,
    row: &VolumeRow,
    source: &VolumeId,
) -> Result<SnapshotSource, Unmade> {
    let from = SnapshotSource { snapshot: SnapshotId::random(), volume: source.clone() };
    let refused = |error: caddis_api::ApiError| Unmade::Restore(error.message);
    shared.volumes.snapshots.check_store().map_err(refused)?;
    let _turn = shared.volumes.turn(&row.id).await;
    let mut row = shared.volumes.row(&row.id).unwrap_or_else(|| row.clone());
    row.restore = Some(from.clone());
    let recorded = requests::record(shared, row, None, crate::store::Room::Reserve).await;
    recorded.map_err(refused)?;
    Ok(from)
}

/// Has a snapshot be taken for this alone, and makes the copy from that.
async fn by_snapshot(
    shared: &Arc<Shared>,
    row: &VolumeRow,
    from: &SnapshotSource,
) -> Result<Volume, Unmade> {
    let snapshots = &shared.volumes.snapshots;
    let mut changes = shared.volumes.changes();
    snapshots::take_for(shared, from, &row.id).await.map_err(Unmade::Restore)?;
    shared.reach("forking").await;
    loop {
        changes.borrow_and_update();
        let taken = snapshots.row(&from.snapshot).filter(|row| !row.is_deleted);
        let Some(SnapshotRow { status, error, .. }) = taken else {
            return Err(Unmade::Restore("its snapshot is gone".to_owned()));
        };
        match status {
            SnapshotStatus::Created => break,
            SnapshotStatus::Failed => {
                return Err(Unmade::Restore(error.unwrap_or_default()));
            }
            SnapshotStatus::Waiting | SnapshotStatus::Running => {
                shared.volumes.note_trouble(&row.id, error);
            }
        }
        // The sender is ours. Each change of a snapshot is one of its volume.
        let _ = changes.changed().await;
    }
    shared.volumes.note_trouble(&row.id, None);
    restore::make(shared, row, from).await
}

impl Volumes {
    fn note_progress(&self, volume: &VolumeId, progress: Progress) {
        self.edit(volume, |entry| entry.progress = progress);
    }
}
