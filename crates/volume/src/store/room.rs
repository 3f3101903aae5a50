//! Space is counted by declared size, so that a volume can always be filled.

use std::sync::Arc;

use super::{Inner, State};
use crate::{SizeGib, Space, VolumeError, VolumeId};

/// Reserves the id and space of a volume that is being made, until dropped.
pub(super) struct Reservation {
    /// None: there is nothing left to do.
    inner: Option<Arc<Inner>>,
    id: VolumeId,
}

impl Inner {
    pub(super) fn space(&self, state: &State) -> Space {
        let sizes = |deleted: bool| -> u64 {
            let volumes = state.volumes.values();
            let counted = volumes.filter(|record| record.deleted_at.is_some() == deleted);
            counted.map(|record| u64::from(record.size_gib.get())).sum()
        };
        let reserved: u64 = state.reserved.values().map(|size| u64::from(size.get())).sum();
        let damaged: u64 = state.problems.values().map(|(_, gib)| gib).sum();
        let deleted = sizes(true);
        let declared = sizes(false) + deleted + reserved + damaged + state.fleecing;
        Space { limit: self.config.limit, declared, deleted }
    }

    /// Fails when so many GiB more are beyond the limit.
    pub(super) fn expect_room(&self, state: &State, needed: u64) -> Result<(), VolumeError> {
        let Space { limit, declared, deleted } = self.space(state);
        match limit {
            Some(limit) if declared + needed > limit => {
                Err(VolumeError::LimitReached { needed, declared, deleted, limit })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn reserve(
        self: &Arc<Self>,
        id: &VolumeId,
        size: SizeGib,
    ) -> Result<Reservation, VolumeError> {
        let mut state = self.state.lock();
        let is_known = state.volumes.contains_key(id)
            || state.problems.contains_key(id.as_str())
            || state.reserved.contains_key(id);
        if is_known {
            return Err(VolumeError::Exists(id.clone()));
        }
        self.expect_room(&state, u64::from(size.get()))?;
        state.reserved.insert(id.clone(), size);
        Ok(Reservation { inner: Some(Arc::clone(self)), id: id.clone() })
    }
}

impl Reservation {
    /// It is made, and counted as such from now on.
    pub(super) fn fulfil(mut self, state: &mut State) {
        state.reserved.remove(&self.id);
        // Dropping it would wait for the lock that the caller has.
        self.inner = None;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(inner) = &self.inner {
            inner.state.lock().reserved.remove(&self.id);
        }
    }
}
