//! Opening a volume for the one that writes to it.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::{JoinHandle, spawn_blocking};

use super::VolumeStore;
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
        let (mut writer, recorded) = self.begin_writer(id, holder).await?;
        match recorded.done().await {
            Ok((volume, previous_generation)) => {
                (writer.volume, writer.previous_generation) = (volume, previous_generation);
                Ok(writer)
            }
            Err(error) => {
                writer.release();
                Err(error)
            }
        }
    }

    /// As [`Self::open_writer`], which waits until it is recorded that the volume is open. Nothing
    /// may be written to it before that.
    ///
    /// # Errors
    /// See [`Self::open_writer`].
    pub async fn begin_writer(
        &self,
        id: &VolumeId,
        holder: &str,
    ) -> Result<(Writer, Recorded), VolumeError> {
        let inner = Arc::clone(&self.inner);
        inner.settled(id).await;
        let (mut busy, mut record) = inner.take(id, holder)?;
        let key = inner.key(&record)?;
        inner.grow_file(&record, key.as_ref()).await?;
        let file = busy.lock.take().and_then(FileLock::into_file);
        let file = file.ok_or_else(|| VolumeError::NotFound(id.clone()))?;
        let (previous_generation, holder) = (record.generation, holder.to_owned());
        record.generation += 1;
        record.last_writer = Some(holder.clone());
        let volume = record.volume();
        let path = inner.disk(&volume);
        let recorded = spawn_blocking(move || {
            let mut state = inner.state.lock();
            let changed = inner.change(&mut state, &record.id, |record| {
                record.generation += 1;
                record.last_writer = Some(holder);
            });
            drop(state);
            // Its holder is now in the record, where a later server finds it too.
            drop(busy);
            changed.map(|record| (record.volume(), record.generation - 1))
        });
        Ok((Writer { file, path, volume, previous_generation, key }, Recorded(recorded)))
    }
}

/// The record of a volume that is being opened, on its way to the disk; goes on when dropped.
#[derive(Debug)]
pub struct Recorded(JoinHandle<Result<(Volume, u64), VolumeError>>);

impl Recorded {
    /// Waits until it is durable. Gives the volume as it is recorded, and the generation before.
    ///
    /// # Errors
    /// When it can't be written; the writer is to be dropped then.
    pub async fn done(self) -> Result<(Volume, u64), VolumeError> {
        let interrupted = |_| VolumeError::Interrupted("open the volume".to_owned());
        self.0.await.map_err(interrupted)?
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
