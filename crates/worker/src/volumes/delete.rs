//! Deleting volumes, taking that back, and removing them for good.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use caddis_api::{ApiError, UnixMillis, VolumeId, volume::VolumeState};
use caddis_volume::VolumeError;

use super::{
    Volumes,
    error::{check_created, in_use, not_found},
    in_use::once_free,
    record::kept_until,
    requests::{record, try_record},
    restore,
    row::VolumeRow,
    snapshots::abandon,
    volume_error,
};
use crate::{
    clock,
    engine::Shared,
    owner::RequestId,
    store::{Room, StoreError},
};

/// How often it is looked whether a volume is still being put in its place, which takes
/// milliseconds.
const MAKING_INTERVAL: Duration = Duration::from_millis(5);
/// How often deleted volumes are looked through for those to be removed.
const PURGE_INTERVAL: Duration = Duration::from_secs(60);

pub(super) async fn delete(
    shared: &Arc<Shared>,
    id: &VolumeId,
    request: RequestId,
) -> Result<(), ApiError> {
    // Nothing is broken off for what is refused.
    drop(Going::begin(&shared.volumes, id)?);
    // What is broken off may wait for its turn before it ends.
    let _wanted = shared.volumes.background.want(id).await;
    let _turn = shared.volumes.turn(id).await;
    let mut row = shared.volumes.row(id).ok_or_else(|| not_found(id))?;
    match row.state {
        VolumeState::PendingDestroy | VolumeState::Destroyed => return Ok(()),
        VolumeState::Extending => check_created(&row)?,
        _ => {}
    }
    let _going = Going::begin(&shared.volumes, id)?;
    if matches!(row.state, VolumeState::Creating | VolumeState::Restoring) {
        shared.volumes.stop_making(id).await;
        shared.fulfil(id);
        // At its very end nothing stops it, nor tells of that end.
        while shared.volumes.files.is_being_made(id) {
            tokio::time::sleep(MAKING_INTERVAL).await;
        }
    }
    shared.volumes.restores.stop(id).await;
    let now = shared.clock.unix_now();
    let deleting = || {
        let (files, volume) = (shared.volumes.files.clone(), id.clone());
        blocking(move || files.delete(&volume, now.into()))
    };
    match once_free(&shared.clock, deleting).await {
        Ok(_) | Err(VolumeError::Deleted(_)) => {}
        // There is nothing of it.
        Err(VolumeError::NotFound(_)) => {
            abandon(shared, id).await;
            return gone(shared, row, request).await.map_err(unrecorded);
        }
        Err(error) => {
            if row.state == VolumeState::Hydrating {
                restore::begin(shared, id);
            }
            return Err(volume_error(error));
        }
    }
    abandon(shared, id).await;
    row.state = VolumeState::PendingDestroy;
    row.deleted_at = Some(now);
    row.failure = None;
    record(shared, row, request, Room::Reserve).await
}

/// Deletes a volume for good, at once, whether it is deleted already or not.
pub(super) async fn purge_now(
    shared: &Arc<Shared>,
    id: &VolumeId,
    request: RequestId,
) -> Result<(), ApiError> {
    // The request is carried out when it is gone.
    delete(shared, id, None).await?;
    let _turn = shared.volumes.turn(id).await;
    let row = shared.volumes.row(id).ok_or_else(|| not_found(id))?;
    if row.state == VolumeState::Destroyed {
        return Ok(());
    }
    if row.deleted_at.is_none() {
        let text = format!("volume {id} was undeleted at the same time");
        return Err(ApiError::precondition(text));
    }
    remove_files(shared, id).await.map_err(volume_error)?;
    gone(shared, row, request).await.map_err(unrecorded)?;
    tracing::info!(volume = %id, "removed a volume for good, as was asked for");
    Ok(())
}

pub(super) async fn undelete(
    shared: &Arc<Shared>,
    id: &VolumeId,
    request: RequestId,
) -> Result<(), ApiError> {
    let _turn = shared.volumes.turn(id).await;
    let mut row = shared.volumes.row(id).ok_or_else(|| not_found(id))?;
    match row.state {
        VolumeState::PendingDestroy => {}
        VolumeState::Destroyed => return Err(not_found(id)),
        _ => return Ok(()),
    }
    let (files, volume) = (shared.volumes.files.clone(), id.clone());
    match blocking(move || files.undelete(&volume)).await {
        Ok(_) | Err(VolumeError::NotDeleted(_)) => {}
        Err(error) => return Err(volume_error(error)),
    }
    let volume = shared.volumes.files.get(id).map_err(volume_error)?;
    row.is_made(&volume);
    row.deleted_at = None;
    record(shared, row, request, Room::Reserve).await?;
    if volume.restoring {
        restore::begin(shared, id);
    }
    Ok(())
}

/// The host's clock was set ahead by so many milliseconds, or back: deleted volumes are kept for as
/// long as they were to be.
pub async fn clock_was_set(shared: &Shared, by_ms: i64) {
    for id in shared.volumes.deleted() {
        let _turn = shared.volumes.turn(&id).await;
        let row = shared.volumes.row(&id).filter(|row| row.deleted_at.is_some());
        let Some(mut row) = row else { continue };
        row.deleted_at = row.deleted_at.map(|at| at.moved_by(by_ms));
        if let Err(error) = try_record(shared, row, None, Room::Reserve).await {
            tracing::warn!(volume = %id, %error, "can't record a volume");
        }
    }
}

/// Removes for good what was deleted a day ago, and forgets what is gone; never ends.
pub async fn purge(shared: Arc<Shared>) {
    let mut rounds = Rounds::default();
    loop {
        shared.volumes.forget_destroyed(&shared);
        let due = shared.volumes.deleted().into_iter().filter(|id| due(&shared, id).is_some());
        for id in rounds.next(clock::offset_ms(), due.collect()) {
            purge_if_due(&shared, &id).await;
        }
        shared.clock.sleep(PURGE_INTERVAL).await;
    }
}

/// What was found due the last time, and by which clock: one that was wrongly set ahead, as at the
/// boot of a host, must not have anything removed before it is set right.
pub(super) struct Rounds<Id = VolumeId> {
    clock_offset: i64,
    due: BTreeSet<Id>,
}

impl<Id> Default for Rounds<Id> {
    fn default() -> Self {
        Self { clock_offset: 0, due: BTreeSet::new() }
    }
}

impl<Id: Clone + Ord> Rounds<Id> {
    /// What is due now and was the last time, where the clock was not set in between. Pure.
    pub(super) fn next(&mut self, clock_offset: i64, due: BTreeSet<Id>) -> Vec<Id> {
        let is_steady = (clock_offset - self.clock_offset).abs() < clock::SET_MS;
        let twice = due.intersection(&self.due).filter(|_| is_steady).cloned().collect();
        *self = Self { clock_offset, due };
        twice
    }
}

/// A volume that is to be removed by now.
fn due(shared: &Shared, id: &VolumeId) -> Option<VolumeRow> {
    let is_due = |at: UnixMillis| kept_until(at) <= shared.clock.unix_now();
    shared.volumes.row(id).filter(|row| row.deleted_at.is_some_and(is_due))
}

async fn purge_if_due(shared: &Shared, id: &VolumeId) {
    let _turn = shared.volumes.turn(id).await;
    let Some(row) = due(shared, id) else { return };
    if let Err(error) = remove_files(shared, id).await {
        tracing::warn!(volume = %id, %error, "can't remove a deleted volume");
        return;
    }
    match gone(shared, row, None).await {
        Ok(()) => tracing::info!(volume = %id, "removed a deleted volume"),
        Err(error) => tracing::warn!(volume = %id, %error, "can't forget a removed volume"),
    }
}

/// Removes what is left of a deleted volume, if there is anything. Its turn is the caller's.
async fn remove_files(shared: &Shared, id: &VolumeId) -> Result<(), VolumeError> {
    let (files, volume) = (shared.volumes.files.clone(), id.clone());
    match blocking(move || files.purge(&volume)).await {
        Err(VolumeError::NotFound(_)) => Ok(()),
        removed => removed,
    }
}

/// There is nothing left of a volume: it is shown as destroyed once more, and then forgotten.
async fn gone(shared: &Shared, mut row: VolumeRow, request: RequestId) -> Result<(), StoreError> {
    let now = shared.clock.unix_now();
    shared.store.forget_volume(&row.id, request.map(|id| (id, now))).await?;
    row.state = VolumeState::Destroyed;
    row.updated_at = now;
    (row.failure, row.deleted_at) = (None, None);
    let id = row.id.clone();
    shared.volumes.edit(&id, |entry| entry.row = row);
    shared.announce();
    Ok(())
}

fn unrecorded(error: StoreError) -> ApiError {
    tracing::error!(%error, "can't forget a volume");
    ApiError::internal("can't record that the volume is deleted; see the server's log")
}

/// Runs what blocks on the files of volumes.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let interrupted = || VolumeError::Interrupted("change the volume".to_owned());
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(interrupted()))
}

impl Volumes {
    async fn stop_making(&self, id: &VolumeId) {
        let making = self.state().entries.get_mut(id).and_then(|entry| entry.making.take());
        if let Some(making) = making {
            making.abort();
            // Whether it was ended or had ended.
            let _ = making.await;
        }
    }

    fn deleted(&self) -> Vec<VolumeId> {
        let state = self.state();
        let deleted = state.entries.values().filter(|entry| entry.row.deleted_at.is_some());
        deleted.map(|entry| entry.row.id.clone()).collect()
    }

    /// Those that were shown as such.
    fn forget_destroyed(&self, shared: &Shared) {
        let is_there = |entry: &super::Entry| entry.row.state != VolumeState::Destroyed;
        let has_forgotten = {
            let mut state = self.state();
            let before = state.entries.len();
            state.entries.retain(|_, entry| is_there(entry));
            before != state.entries.len() && {
                self.changed.send_modify(|revision| *revision += 1);
                true
            }
        };
        if has_forgotten {
            shared.announce();
        }
    }
}

/// A volume that no machine gets until this is dropped.
struct Going<'a> {
    volumes: &'a Volumes,
    id: VolumeId,
}

impl<'a> Going<'a> {
    /// Fails where a machine has it.
    fn begin(volumes: &'a Volumes, id: &VolumeId) -> Result<Self, ApiError> {
        let mut state = volumes.state();
        let entry = state.entries.get_mut(id).ok_or_else(|| not_found(id))?;
        if let Some(attached) = &entry.attached {
            return Err(in_use(id, &attached.machine, ": destroy the machine first"));
        }
        entry.is_going = true;
        Ok(Self { volumes, id: id.clone() })
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.volumes.state().entries.get_mut(&self.id) {
            entry.is_going = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_due_twice_by_the_same_clock_is_removed() {
        let mut rounds = Rounds::<VolumeId>::default();
        let volumes = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect();
        let mut round = |offset, due: &[&str]| rounds.next(offset, volumes(due));
        let day = 24 * 3600 * 1000;
        assert_eq!(round(5, &["vol_a"]), [], "the first one after a start");
        assert_eq!(round(5 + day, &["vol_a", "vol_b"]), [], "the clock was set ahead");
        assert_eq!(round(5, &["vol_a"]), [], "and back");
        assert_eq!(round(7, &["vol_a", "vol_b"]), ["vol_a".parse().unwrap()]);
        assert_eq!(round(7, &["vol_b"]), ["vol_b".parse().unwrap()]);
        assert_eq!(round(7, &[]), []);
    }
}
