//! Growth of volumes. The new size is reserved and recorded first; the file follows.

use std::{fs, path::PathBuf, sync::Arc};

use super::{Busy, Inner, VolumeStore, blocking};
use crate::{
    Growth, SizeGib, VolumeError, VolumeId, VolumeKey, files, qcow2,
    record::{self, Record},
};

/// A growth that is recorded.
struct Recorded {
    previous: Record,
    record: Record,
    /// None: the volume is open.
    closed: Option<Closed>,
}

/// A volume that nobody uses, while it grows.
struct Closed {
    busy: Busy,
    key: Option<VolumeKey>,
    /// A link to the file of the previous record, which is put back when the file of the volume
    /// can't grow: on a full disk another could not be written.
    undo: PathBuf,
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
        self.settled(&id).await;
        let inner = Arc::clone(&self);
        let recorded = blocking("grow the volume", move || inner.record_growth(&id, size)).await?;
        let Recorded { previous, record, closed } = recorded;
        let Some(Closed { busy, key, undo }) = closed else {
            return Ok(Growth::Resize { bytes: size.bytes() });
        };
        let failed = self.grow_file(&record, key.as_ref()).await.err();
        blocking("grow the volume", move || {
            let outcome = match failed {
                None => Ok(Growth::Done),
                Some(error) => self.undo_growth(previous, &undo).and(Err(error)),
            };
            files::remove(&undo);
            drop(busy);
            outcome
        })
        .await
    }

    fn record_growth(
        self: &Arc<Self>,
        id: &VolumeId,
        size: SizeGib,
    ) -> Result<Recorded, VolumeError> {
        // Dropped after the lock of the state, which it takes then.
        let mut busy = None;
        let mut state = self.state.lock();
        let previous = self.live(&state, id)?.clone();
        let before = previous.size_gib;
        if size < before {
            return Err(VolumeError::CannotShrink { id: id.clone(), from: before, to: size });
        }
        self.expect_room(&state, u64::from(size.get() - before.get()))?;
        match (self.lock(&mut state, &previous, "its growth")?, state.busy.get(id)) {
            (Some(lock), _) => busy = Some(Busy::new(self, id, lock)),
            (None, None) => {}
            (None, operation) => return Err(self.in_use(&previous, operation.cloned())),
        }
        let key = if busy.is_some() { self.key(&previous)? } else { None };
        let undo = self.scratch().join(format!("undo-{id}"));
        let mut record = previous.clone();
        if size > before {
            let current = self.place(id.as_str(), false).join(record::FILE);
            files::remove(&undo);
            fs::hard_link(&current, &undo)
                .map_err(|error| VolumeError::io("link", &undo, error))?;
            let changed = self.change(&mut state, id, |record| {
                record.size_gib = size;
                record.generation += 1;
            });
            if changed.is_err() || busy.is_none() {
                files::remove(&undo);
            }
            record = changed?;
        }
        Ok(Recorded { previous, record, closed: busy.map(|busy| Closed { busy, key, undo }) })
    }

    /// Puts the previous record back, unless the file has grown all the same, and what failed came
    /// after that.
    fn undo_growth(&self, previous: Record, undo: &PathBuf) -> Result<(), VolumeError> {
        let bytes = qcow2::virtual_size(&self.disk(&previous.volume()));
        if !undo.exists() || bytes.is_ok_and(|bytes| bytes > previous.size_gib.bytes()) {
            return Ok(());
        }
        let place = self.place(previous.id.as_str(), false);
        let mut state = self.state.lock();
        fs::rename(undo, place.join(record::FILE))
            .map_err(|error| VolumeError::io("restore a record in", &place, error))?;
        state.volumes.insert(previous.id.clone(), previous);
        files::sync_directory(&place)
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
