//! Requests about snapshots.

use std::{cmp::Reverse, sync::Arc};

use caddis_api::{ApiError, ErrorCode, SnapshotId, VolumeId, volume::SnapshotStatus};
use caddis_bus::message::{SnapshotRecord, SnapshotSource, WorkerReply, WorkerResult};

use super::{MOST_WAITING, Snapshots, record::record, row::SnapshotRow, try_record};
use crate::{
    engine::Shared,
    owner::RequestId,
    store::{Durability, Room, StoreError},
    volumes::{
        error::{check_created, not_found},
        row::VolumeRow,
    },
};

/// Has a snapshot be taken. One that is there already is told as it is: a gateway that got no
/// answer asks again.
pub async fn take(
    shared: &Arc<Shared>,
    volume: &VolumeId,
    snapshot: &SnapshotId,
    request: RequestId,
) -> WorkerResult {
    let snapshots = &shared.volumes.snapshots;
    let _turn = shared.volumes.turn(volume).await;
    if let Some(known) = snapshots.row(snapshot) {
        if known.volume != *volume {
            let text = format!("snapshot {snapshot} is of another volume");
            return Err(ApiError::new(ErrorCode::AlreadyExists, text));
        }
        return Ok(get(shared, snapshot));
    }
    let row = shared.volumes.row(volume).ok_or_else(|| not_found(volume))?;
    snapshots.check_may_wait(&row)?;
    let row = SnapshotRow::new(snapshot.clone(), &row, shared.clock.unix_now());
    let recorded = try_record(shared, row, request, Durability::Synced, Room::Free).await;
    recorded.map_err(unrecorded)?;
    Ok(get(shared, snapshot))
}

/// The snapshots of a volume, newest first.
pub fn list(shared: &Shared, volume: &VolumeId) -> WorkerReply {
    let snapshots = &shared.volumes.snapshots;
    let mut rows = snapshots.select(|row| row.volume == *volume && row.is_shown());
    rows.sort_by_key(|row| Reverse((row.created_at, row.id.clone())));
    WorkerReply::Snapshots { records: snapshots.records(&rows) }
}

/// One snapshot, or none.
pub fn get(shared: &Shared, snapshot: &SnapshotId) -> WorkerReply {
    let snapshots = &shared.volumes.snapshots;
    let row = snapshots.row(snapshot).filter(SnapshotRow::is_shown);
    WorkerReply::Snapshots { records: snapshots.records(row.as_slice()) }
}

/// Has a snapshot be deleted, which is not shown from then on.
pub async fn delete(
    shared: &Arc<Shared>,
    volume: &VolumeId,
    snapshot: &SnapshotId,
    request: RequestId,
) -> WorkerResult {
    let snapshots = &shared.volumes.snapshots;
    let none = Ok(WorkerReply::Snapshots { records: Vec::new() });
    let is_it = |row: &SnapshotRow| row.volume == *volume && row.is_shown();
    let Some(row) = snapshots.row(snapshot).filter(is_it) else { return none };
    let wanted = match row.is_pending() {
        true => Some(shared.volumes.background.want(volume).await),
        false => None,
    };
    let _turn = shared.volumes.turn(volume).await;
    let Some(mut row) = snapshots.row(snapshot).filter(is_it) else { return none };
    row.is_deleted = true;
    let recorded = try_record(shared, row, request, Durability::Synced, Room::Reserve).await;
    drop(wanted);
    recorded.map_err(unrecorded)?;
    none
}

/// Has a snapshot be taken that only the volume that is made from it needs, unless that was begun.
pub async fn take_for(
    shared: &Shared,
    from: &SnapshotSource,
    fork: &VolumeId,
) -> Result<(), String> {
    let _turn = shared.volumes.turn(&from.volume).await;
    if shared.volumes.snapshots.row(&from.snapshot).is_some() {
        return Ok(());
    }
    let source = shared.volumes.row(&from.volume);
    let source = source.ok_or_else(|| not_found(&from.volume).message)?;
    let mut row = SnapshotRow::new(from.snapshot.clone(), &source, shared.clock.unix_now());
    row.fork = Some(fork.clone());
    let recorded = try_record(shared, row, None, Durability::Synced, Room::Reserve).await;
    recorded.map_err(|error| unrecorded(error).message)
}

/// A volume is deleted: what is to be taken of it can't be. The volume's turn is the caller's, and
/// nothing is being done with it.
pub async fn abandon(shared: &Shared, volume: &VolumeId) {
    let snapshots = &shared.volumes.snapshots;
    for mut row in snapshots.select(|row| row.volume == *volume && row.is_pending()) {
        row.status = SnapshotStatus::Failed;
        (row.error, row.next_try) = (Some("the volume was deleted".to_owned()), None);
        let recorded = try_record(shared, row, None, Durability::Process, Room::Reserve).await;
        if let Err(error) = recorded {
            // Its job finds out.
            tracing::warn!(%volume, %error, "can't record a snapshot");
        }
    }
}

impl Snapshots {
    fn records(&self, rows: &[SnapshotRow]) -> Vec<SnapshotRecord> {
        let known = self.rows();
        let progress = |row: &SnapshotRow| known.progress.get(&row.id).map(|told| *told.borrow());
        rows.iter().map(|row| record(row, progress(row))).collect()
    }

    /// Whether one more may wait.
    fn check_may_wait(&self, volume: &VolumeRow) -> Result<(), ApiError> {
        self.check_store()?;
        // Of one that is being made it waits until that is there.
        if !volume.state.is_mountable() {
            check_created(volume)?;
        }
        let rows = self.rows();
        let waiting = rows.of(&volume.id).iter().filter(|row| row.is_pending()).count();
        if waiting >= MOST_WAITING {
            let id = &volume.id;
            let text = format!(
                "{waiting} snapshots of volume {id} are waiting already: wait until one is created"
            );
            return Err(ApiError::precondition(text));
        }
        Ok(())
    }

    /// Where there is no store, there are no snapshots.
    pub fn check_store(&self) -> Result<(), ApiError> {
        if self.store.is_some() {
            return Ok(());
        }
        Err(ApiError::precondition("this server has no snapshot store"))
    }
}

fn unrecorded(error: StoreError) -> ApiError {
    tracing::error!(%error, "can't record a snapshot");
    if error.is_full() {
        return ApiError::disk_full();
    }
    ApiError::internal(
        "can't record the snapshot; see the server's log, and free space if its disk is full",
    )
}
