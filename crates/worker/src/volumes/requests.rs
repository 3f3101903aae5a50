//! Requests about volumes.

use std::{path::Path, sync::Arc};

use caddis_api::{
    ApiError, ErrorCode, UnixMillis, VolumeId,
    volume::{Filesystem, VolumeState},
};
use caddis_bus::message::{CreateVolume, SnapshotSource, VolumeAction, WorkerReply, WorkerResult};
use caddis_volume::{SizeGib, VolumeError};

use super::{
    Entry, Page, delete,
    error::{check_created, not_found},
    extend, make,
    row::{FORMAT, VolumeRow},
    usage, volume_error,
};
use crate::{
    engine::Shared,
    owner::RequestId,
    requests::check_disk,
    store::{Durability, Room, StoreError},
};

/// Makes a volume. One that is there already is told as it is: a gateway that got no answer asks
/// again.
pub async fn create(
    shared: &Arc<Shared>,
    create: CreateVolume,
    request: RequestId,
) -> WorkerResult {
    let volumes = &shared.volumes;
    let id = create.id.clone();
    let _turn = volumes.turn(&id).await;
    if volumes.row(&id).is_some() {
        return reply(shared, &id);
    }
    check_disk(shared).await?;
    let row = new_row(shared, create)?;
    let promise = shared.promise(&id, u64::from(row.size_gb))?;
    record(shared, row, request, Room::Free).await?;
    promise.keep();
    make::begin(shared, &id);
    reply(shared, &id)
}

/// Changes a volume.
pub async fn act(
    shared: &Arc<Shared>,
    volume: &VolumeId,
    action: VolumeAction,
    request: RequestId,
) -> WorkerResult {
    match action {
        VolumeAction::Extend { size_gb } => {
            extend::extend(shared, volume, size_gb, request).await?
        }
        VolumeAction::Update { snapshot_retention, auto_backup_enabled } => {
            let _turn = shared.volumes.turn(volume).await;
            let mut row = shared.volumes.row(volume).ok_or_else(|| not_found(volume))?;
            if row.state.is_deleted() {
                check_created(&row)?;
            }
            row.snapshot_retention = snapshot_retention.unwrap_or(row.snapshot_retention);
            row.auto_backup_enabled = auto_backup_enabled.unwrap_or(row.auto_backup_enabled);
            record(shared, row, request, Room::Free).await?;
        }
        VolumeAction::Delete => delete::delete(shared, volume, request).await?,
        VolumeAction::Purge => delete::purge_now(shared, volume, request).await?,
        VolumeAction::Undelete => delete::undelete(shared, volume, request).await?,
    }
    reply(shared, volume)
}

/// One volume, with its use as its machine tells it now.
pub async fn get(shared: &Arc<Shared>, volume: &VolumeId) -> WorkerResult {
    usage::refresh(shared, volume).await;
    reply(shared, volume)
}

/// Volumes after `after` in id order.
pub fn list(shared: &Shared, after: Option<&VolumeId>) -> WorkerReply {
    let Page { records, more, revision } = shared.volumes.page(shared, after);
    let incarnation = shared.publisher.incarnation().to_owned();
    WorkerReply::Volumes { records, more, incarnation, revision }
}

fn reply(shared: &Shared, volume: &VolumeId) -> WorkerResult {
    let record = shared.volumes.record(shared, volume).ok_or_else(|| not_found(volume))?;
    Ok(WorkerReply::Volume { record: Box::new(record) })
}

/// Records a volume, which is known as such from then on. Its turn is the caller's.
pub(super) async fn record(
    shared: &Shared,
    row: VolumeRow,
    request: RequestId,
    room: Room,
) -> Result<(), ApiError> {
    try_record(shared, row, request, room).await.map_err(|error| {
        tracing::error!(%error, "can't record a volume");
        if error.is_full() {
            return ApiError::disk_full();
        }
        ApiError::internal(
            "can't record the volume; see the server's log, and free space if its disk is full",
        )
    })
}

/// The same.
pub(super) async fn try_record(
    shared: &Shared,
    mut row: VolumeRow,
    request: RequestId,
    room: Room,
) -> Result<(), StoreError> {
    let now = shared.clock.unix_now();
    row.updated_at = now.max(row.updated_at);
    let request = request.map(|id| (id, now));
    shared.store.record_volumes(vec![row.clone()], request, Durability::Synced, room).await?;
    {
        let mut state = shared.volumes.state();
        let entry = state.entries.entry(row.id.clone()).or_insert_with(|| Entry::new(row.clone()));
        entry.row = row;
        shared.volumes.touch(entry);
    }
    // One may have waited for it.
    shared.volumes.snapshots.wake.notify_one();
    shared.announce();
    Ok(())
}

fn new_row(shared: &Shared, create: CreateVolume) -> Result<VolumeRow, ApiError> {
    let size = SizeGib::new(create.size_gb).map_err(|error| volume_error(error.into()))?;
    let now = shared.clock.unix_now();
    let mut row = VolumeRow {
        format: FORMAT,
        id: create.id,
        name: create.name,
        app: create.app,
        org: create.org,
        region: create.region,
        size_gb: size.get(),
        extend_to: None,
        encrypted: create.encrypted,
        filesystem: create.filesystem,
        source: create.source,
        restore: create.snapshot,
        snapshot_retention: create.snapshot_retention,
        auto_backup_enabled: create.auto_backup_enabled,
        created_at: now,
        updated_at: UnixMillis::EPOCH,
        state: VolumeState::Creating,
        failure: None,
        deleted_at: None,
        usage: None,
    };
    match (row.source.clone(), row.restore.clone()) {
        (Some(_), Some(_)) => {
            let text = "a volume is made from a snapshot or from a volume, not from both";
            return Err(ApiError::invalid(text));
        }
        (Some(source), None) => {
            (row.encrypted, row.filesystem) = copied(shared, &row, &source)?;
        }
        (None, Some(from)) => {
            row.state = VolumeState::Restoring;
            row.filesystem = restored(shared, &row, &from)?;
        }
        (None, None) => {}
    }
    Ok(row)
}

/// What a copy of `source` is like, where there can be one now.
fn copied(
    shared: &Shared,
    row: &VolumeRow,
    source: &VolumeId,
) -> Result<(bool, Filesystem), ApiError> {
    let mut state = shared.volumes.state();
    let entry = state.of_app(source, &row.app).ok_or_else(|| not_found(source))?;
    check_created(&entry.row)?;
    if entry.row.state == VolumeState::Hydrating {
        let text = format!("volume {source} is being restored: try again when it is created");
        return Err(ApiError::precondition(text));
    }
    let (id, from) = (source.clone(), entry.row.size_gb);
    if row.size_gb < from {
        let text = format!("volume {id} has {from} GB, its copy can't be smaller");
        return Err(ApiError::invalid(text));
    }
    Ok((entry.row.encrypted, entry.row.filesystem))
}

/// The file system of what is restored from a snapshot, as far as this worker knows the snapshot:
/// the rest is found out when it is looked up in the store.
fn restored(
    shared: &Shared,
    row: &VolumeRow,
    from: &SnapshotSource,
) -> Result<Filesystem, ApiError> {
    let snapshots = &shared.volumes.snapshots;
    snapshots.check_store()?;
    let id = &from.snapshot;
    let known = snapshots.row(id).filter(|known| known.volume == from.volume);
    let Some(known) = known else { return Ok(row.filesystem) };
    if known.is_deleted || known.org != row.org {
        return Err(ApiError::new(ErrorCode::NotFound, format!("snapshot {id} not found")));
    }
    if !known.is_created() {
        let status = known.status.as_str();
        let text = format!("snapshot {id} is {status}: try again when it is created");
        return Err(ApiError::precondition(text));
    }
    let gib = known.volume_size.div_ceil(1 << 30);
    if u64::from(row.size_gb) < gib {
        let text = format!("snapshot {id} is of {gib} GB, a volume of it can't be smaller");
        return Err(ApiError::invalid(text));
    }
    Ok(known.filesystem)
}

/// Space that was found to be free, until this is dropped.
pub(super) struct Promise<'a> {
    shared: &'a Shared,
    volume: Option<VolumeId>,
}

impl Promise<'_> {
    /// Until [`Shared::fulfil`].
    pub(super) fn keep(mut self) {
        self.volume = None;
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        if let Some(volume) = &self.volume {
            self.shared.fulfil(volume);
        }
    }
}

impl Shared {
    /// Promises so many GiB more to a volume, until its files have reserved them.
    pub(super) fn promise(&self, volume: &VolumeId, gib: u64) -> Result<Promise<'_>, ApiError> {
        let mut state = self.volumes.state();
        let space = self.volumes.files.space();
        if let (Some(free), Some(limit)) = (state.free(&space), space.limit)
            && gib > free
        {
            let (declared, deleted) = (limit - free, space.deleted);
            let error = VolumeError::LimitReached { needed: gib, declared, deleted, limit };
            return Err(ApiError::new(ErrorCode::InsufficientCapacity, error.to_string()));
        }
        if let Some(reserve) = self.config.volume_reserve {
            check_room(&self.config.directory, gib, reserve)?;
        }
        state.promised.insert(volume.clone(), gib);
        Ok(Promise { shared: self, volume: Some(volume.clone()) })
    }

    /// The files have reserved it, or it is not needed.
    pub(super) fn fulfil(&self, volume: &VolumeId) {
        self.volumes.state().promised.remove(volume);
    }
}

/// Whether the host's disk has room for so many GiB more, beyond what is to be kept free. What
/// other volumes have not taken yet counts as free: they are counted by the limit.
fn check_room(directory: &Path, gib: u64, reserve: u64) -> Result<(), ApiError> {
    // A disk that can't be asked is no reason to refuse.
    let free = caddis_disk::free(directory).unwrap_or(u64::MAX);
    if free.saturating_sub(reserve) >> 30 >= gib {
        return Ok(());
    }
    let (free, kept) = (free >> 20, reserve >> 20);
    let text = format!(
        "the host's disk has {free} MiB free, {kept} MiB of which are kept, and the volume needs \
         {gib} GiB: make room, or allow it by setting the server's volume-gb"
    );
    Err(ApiError::new(ErrorCode::InsufficientCapacity, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_the_disk_has_no_room_for_is_refused_with_the_figures() {
        let directory = tempfile::tempdir().unwrap();
        assert!(check_room(directory.path(), 0, 0).is_ok());
        let refused = check_room(directory.path(), u64::MAX >> 30, 5 << 20).unwrap_err();
        assert_eq!(refused.code, ErrorCode::InsufficientCapacity);
        assert!(refused.message.contains("5 MiB of which are kept"), "{}", refused.message);
        assert!(check_room(directory.path(), 1, u64::MAX).is_err());
        assert!(check_room(&directory.path().join("missing"), 1, 0).is_ok());
    }
}
