//! Opening a volume for the one that writes to it.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{VolumeStore, blocking};
use crate::{Volume, VolumeError, VolumeId, VolumeKey, lock::FileLock};

/// A volume that is open for its one writer.
///
/// As long as any copy of the descriptor is open, in any process, nobody else can open, copy or
/// delete the volume. Dropping this closes one copy; it does not take the volume from a process
/// that was handed another.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
    volume: Volume,
    previous_generation: u64,
    key: Option<VolumeKey>,
}

impl VolumeStore {
    /// Opens a volume that nobody uses. `holder` says who wants it, for those who are refused
    /// meanwhile. Finishes a growth that was interrupted, and raises the generation; otherwise it
    /// runs no program and takes one durable write. Waits for an [`Export`](crate::Export) and for
    /// [`Self::hydrate`] that were dropped and are just ending. A volume that is
    /// [restoring](Volume::restoring) must be given its backing.
    ///
    /// # Errors
    /// When it is in use, which names the holder, or deleted, or its key can't be had.
    pub async fn open_writer(&self, id: &VolumeId, holder: &str) -> Result<Writer, VolumeError> {
        let inner = Arc::clone(&self.inner);
        inner.settled(id).await;
        let (mut busy, record) = inner.take(id, holder)?;
        let key = inner.key(&record)?;
        inner.grow_file(&record, key.as_ref()).await?;
        let holder = holder.to_owned();
        blocking("open the volume", move || {
            let previous_generation = record.generation;
            let mut state = inner.state.lock();
            let changed = inner.change(&mut state, &record.id, |record| {
                record.generation += 1;
                record.last_writer = Some(holder);
            });
            // Its holder is now in the record, where a later server finds it too.
            let file = match &changed {
                Ok(_) => busy.lock.take().and_then(|lock| lock.into_file()),
                Err(_) => None,
            };
            drop(state);
            drop(busy);
            let volume = changed?.volume();
            let path = inner.disk(&volume);
            let file = file.ok_or_else(|| VolumeError::NotFound(volume.id.clone()))?;
            Ok(Writer { file, path, volume, previous_generation, key })
        })
        .await
    }
}

impl VolumeStore {
    /// Takes back that a volume was opened, for a writer of which is known that it has written
    /// nothing: `opened` is what that was told, `previous_generation` the generation before.
    /// Nothing is changed where the volume was opened or grown since. Blocking.
    ///
    /// # Errors
    /// When the record can't be written.
    pub fn unwritten(&self, opened: &Volume, previous_generation: u64) -> Result<(), VolumeError> {
        let mut state = self.inner.state.lock();
        if self.inner.record(&state, &opened.id)?.generation != opened.generation {
            return Ok(());
        }
        let changed = self.inner.change(&mut state, &opened.id, |record| {
            record.generation = previous_generation;
        });
        changed.map(drop)
    }
}

impl Writer {
    /// The volume, as it was opened.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// The generation before this was opened. A memory snapshot that was taken at another must not
    /// be resumed with this volume.
    #[must_use]
    pub fn previous_generation(&self) -> u64 {
        self.previous_generation
    }

    /// The file, a qcow2, for messages. QEMU is to be given the descriptor: who opens the path does
    /// not hold the lock.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key of an encrypted volume.
    #[must_use]
    pub fn key(&self) -> Option<&VolumeKey> {
        self.key.as_ref()
    }

    /// Gives the volume back at once. Only for a descriptor that no other process was handed: the
    /// lock ends for all copies.
    pub fn release(self) {
        drop(FileLock::from(self.file));
    }

    /// The descriptor, alone.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.file.into()
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
