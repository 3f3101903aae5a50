//! Deleting, which can be undone for a day.

use std::fs;

use jiff::Timestamp;

use super::{Busy, VolumeStore};
use crate::{KEPT_AFTER_DELETE, Volume, VolumeError, VolumeId, files};

impl VolumeStore {
    /// Deletes a volume that nobody uses. Its space stays reserved until it is
    /// [purged](Self::purge_expired). Blocking.
    ///
    /// # Errors
    /// When it is in use or deleted already.
    pub fn delete(&self, id: &VolumeId, now: Timestamp) -> Result<Volume, VolumeError> {
        self.move_between(id, Some(now))
    }

    /// Undoes [`Self::delete`]. Blocking.
    ///
    /// # Errors
    /// When it is not deleted, or no longer there.
    pub fn undelete(&self, id: &VolumeId) -> Result<Volume, VolumeError> {
        self.move_between(id, None)
    }

    /// Removes for good what was deleted [`KEPT_AFTER_DELETE`] ago or longer. What can't be removed
    /// is tried again the next time. Blocking.
    pub fn purge_expired(&self, now: Timestamp) -> Vec<VolumeId> {
        let is_expired = |at: Timestamp| now.duration_since(at) >= KEPT_AFTER_DELETE;
        let deleted = self.list().into_iter();
        let expired = deleted.filter(|volume| volume.deleted_at.is_some_and(is_expired));
        let purged = expired.filter_map(|volume| match self.purge(&volume.id) {
            Ok(()) => Some(volume.id),
            Err(error) => {
                tracing::warn!(volume = %volume.id, %error, "could not remove a deleted volume");
                None
            }
        });
        purged.collect()
    }

    /// Removes a deleted volume for good. Blocking.
    ///
    /// # Errors
    /// When it is not deleted, or its directory can't be moved.
    pub fn purge(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let inner = &self.inner;
        let remains = inner.scratch().join(format!("purged-{id}"));
        {
            let mut state = inner.state.lock();
            if inner.record(&state, id)?.deleted_at.is_none() {
                return Err(VolumeError::NotDeleted(id.clone()));
            }
            // Of an earlier one with this id, which could not be removed.
            files::remove(&remains);
            files::move_directory(&inner.place(id.as_str(), true), &remains)?;
            state.volumes.remove(id);
        }
        files::remove(&remains);
        Ok(())
    }

    /// The record says where a volume belongs; it is moved there afterwards, here or at the next
    /// open.
    fn move_between(
        &self,
        id: &VolumeId,
        deleted_at: Option<Timestamp>,
    ) -> Result<Volume, VolumeError> {
        let inner = &self.inner;
        let _busy;
        let mut state = inner.state.lock();
        let record = inner.record(&state, id)?.clone();
        match (record.deleted_at, deleted_at) {
            (Some(_), Some(_)) => return Err(VolumeError::Deleted(id.clone())),
            (None, None) => return Err(VolumeError::NotDeleted(id.clone())),
            (None, Some(_)) => {
                let Some(lock) = inner.lock(&mut state, &record, "its deletion")? else {
                    let operation = state.busy.get(id).cloned();
                    drop(state);
                    return Err(inner.in_use(&record, operation));
                };
                _busy = Busy::new(inner, id, lock);
            }
            (Some(_), None) => {}
        }
        let changed = inner.change(&mut state, id, |record| record.deleted_at = deleted_at);
        let volume = changed?.volume();
        let place = |deleted| inner.place(id.as_str(), deleted);
        let (from, to) = (place(deleted_at.is_none()), place(deleted_at.is_some()));
        if let Err(error) = files::move_directory(&from, &to) {
            // Its directory may have been moved without that being durable.
            let _ = fs::rename(&to, &from);
            record.write(&from, &inner.scratch())?;
            state.volumes.insert(id.clone(), record);
            return Err(error);
        }
        Ok(volume)
    }
}
