//! Growth of volumes. The new size is reserved and recorded first; the file follows.

use std::sync::Arc;

use super::{Inner, VolumeStore, blocking};
use crate::{
    Growth, SizeGib, VolumeError, VolumeId, VolumeKey, lock::FileLock, qcow2, record::Record,
};

/// A growth that is recorded.
struct Recorded {
    before: SizeGib,
    record: Record,
    /// Of a volume that nobody uses.
    closed: Option<(super::Busy, Option<VolumeKey>)>,
}

impl VolumeStore {
    /// Grows a volume. What is on it is the guest's to grow. It goes on when this is dropped.
    ///
    /// # Errors
    /// When it is deleted or larger, its key can't be had, or there is no room: then it keeps its
    /// size.
    pub async fn grow(&self, id: &VolumeId, size: SizeGib) -> Result<Growth, VolumeError> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        let growth = tokio::spawn(async move { inner.grow(id, size).await });
        let interrupted = || VolumeError::Interrupted("grow the volume".to_owned());
        growth.await.unwrap_or_else(|_| Err(interrupted()))
    }
}

impl Inner {
    async fn grow(self: Arc<Self>, id: VolumeId, size: SizeGib) -> Result<Growth, VolumeError> {
        let inner = Arc::clone(&self);
        let recorded = blocking("grow the volume", move || inner.record_growth(&id, size)).await?;
        let Recorded { before, record, closed } = recorded;
        let Some((busy, key)) = closed else {
            return Ok(Growth::Resize { bytes: size.bytes() });
        };
        let inner = Arc::clone(&self);
        let failed = self.grow_file(&record, key.as_ref()).await.err();
        blocking("grow the volume", move || {
            let _busy = busy;
            let Some(error) = failed else { return Ok(Growth::Done) };
            let disk = inner.disk(&record.volume());
            // Else it has grown all the same, and the error is of something after that.
            if qcow2::virtual_size(&disk).is_ok_and(|bytes| bytes <= before.bytes()) {
                let mut state = inner.state.lock();
                inner.change(&mut state, &record.id, |record| record.size_gib = before)?;
            }
            Err(error)
        })
        .await
    }

    fn record_growth(
        self: &Arc<Self>,
        id: &VolumeId,
        size: SizeGib,
    ) -> Result<Recorded, VolumeError> {
        let mut state = self.state.lock();
        let current = self.live(&state, id)?.clone();
        let before = current.size_gib;
        if size < before {
            return Err(VolumeError::CannotShrink { id: id.clone(), from: before, to: size });
        }
        self.expect_room(&state, u64::from(size.get() - before.get()))?;
        let lock = match self.lock(&mut state, &current, "its growth") {
            Ok(lock) => Some(lock),
            Err(VolumeError::InUse { .. }) => None,
            Err(error) => return Err(error),
        };
        let changed = self.key_if(lock.is_some(), &current).and_then(|key| {
            let record = self.change(&mut state, id, |record| {
                record.size_gib = size;
                record.generation += 1;
            })?;
            Ok((key, record))
        });
        let busy = |lock: FileLock| super::Busy {
            inner: Arc::clone(self),
            id: id.clone(),
            lock: Some(lock),
        };
        // Given up outside of the lock of the state, which that takes.
        drop(state);
        let busy = lock.map(busy);
        let (key, record) = changed?;
        Ok(Recorded { before, record, closed: busy.map(|busy| (busy, key)) })
    }

    fn key_if(&self, needed: bool, record: &Record) -> Result<Option<VolumeKey>, VolumeError> {
        if needed { self.key(record) } else { Ok(None) }
    }

    /// Makes the file of a volume that this process has locked as large as its record says.
    pub(super) async fn grow_file(
        &self,
        record: &Record,
        key: Option<&VolumeKey>,
    ) -> Result<(), VolumeError> {
        let disk = self.disk(&record.volume());
        let bytes =
            qcow2::virtual_size(&disk).map_err(|error| VolumeError::io("read", &disk, error))?;
        if bytes >= record.size_gib.bytes() {
            return Ok(());
        }
        self.disks.grow(&disk, record.size_gib.bytes(), key).await
    }
}
