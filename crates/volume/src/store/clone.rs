//! Clones, which share the blocks of their files until these are written (`FICLONE`): XFS and btrfs
//! can. An encrypted one has the key of its source, wrapped anew.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use rustix::io::Errno;

use super::{Inner, VolumeStore, create::Work};
use crate::{
    CloneError, NewCopy, SizeGib, Volume, VolumeError, VolumeId, VolumeKey, disk::new_file, qcow2,
    record::Record,
};

impl VolumeStore {
    /// Whether the file system has `FICLONE`, with which [`Self::clone_open`] is possible and
    /// [`Self::copy`] takes no time. Tried once. Blocking.
    ///
    /// # Errors
    /// When files can't be made.
    pub fn can_clone(&self) -> Result<bool, VolumeError> {
        self.inner.can_clone()
    }

    /// Clones a volume that is in use. `clone` has whoever has it open put its file into the empty
    /// one it is given, by `FICLONE`, at an instant at which the file is whole. Dropping it leaves
    /// nothing behind, or, at the very end, the clone. Whether the file system can is not asked.
    ///
    /// # Errors
    /// When the source is deleted, being restored or larger than the clone, its key can't be had,
    /// there is a volume with the clone's id, or no room; or what `clone` says. Nothing is left.
    pub async fn clone_open<E>(
        &self,
        source: &VolumeId,
        new: NewCopy,
        clone: impl AsyncFnOnce(OwnedFd) -> Result<(), E>,
    ) -> Result<Volume, CloneError<E>> {
        let inner = &self.inner;
        let from = inner.live(&inner.state.lock(), source)?.clone();
        let copy = inner.begin_copy(&from, new)?;
        let file = new_file(&copy.work.disk())?;
        clone(file.into()).await.map_err(CloneError::Clone)?;
        Ok(inner.finish_clone(copy).await?)
    }
}

/// A copy that is reserved, and has no file yet.
pub(super) struct Copy {
    pub(super) from: Record,
    pub(super) work: Work,
    pub(super) new: NewCopy,
    pub(super) size: SizeGib,
    pub(super) key: Option<VolumeKey>,
}

impl Inner {
    /// Reserves a copy of a volume.
    pub(super) fn begin_copy(
        self: &Arc<Self>,
        from: &Record,
        new: NewCopy,
    ) -> Result<Copy, VolumeError> {
        from.expect_whole()?;
        let size = new.size.unwrap_or(from.size_gib);
        if size < from.size_gib {
            let (id, from) = (from.id.clone(), from.size_gib);
            return Err(VolumeError::CannotShrink { id, from, to: size });
        }
        let key = self.key(from)?;
        let work = self.work(&new.id, size)?;
        Ok(Copy { from: from.clone(), work, new, size, key })
    }

    /// Publishes a copy whose file is a clone of its source's.
    pub(super) async fn finish_clone(self: &Arc<Self>, copy: Copy) -> Result<Volume, VolumeError> {
        let Copy { from, work, new, size, key } = copy;
        let disk = work.disk();
        let bytes =
            qcow2::virtual_size(&disk).map_err(|error| VolumeError::io("read", &disk, error))?;
        if bytes < size.bytes() {
            self.disks.grow(&disk, size.bytes(), key.as_ref()).await?;
        }
        let wrapped = key.map(|key| self.config.key.wrap(&key, &new.id)).transpose()?;
        let mut record = Record::new(new.id, size, from.filesystem, wrapped, new.created_at);
        record.copied_from = Some(from.id);
        self.publish(work, record).await
    }

    pub(super) fn can_clone(&self) -> Result<bool, VolumeError> {
        if let Some(known) = self.can_clone.get() {
            return Ok(*known);
        }
        let scratch = self.scratch();
        let tried = || {
            let mut from = tempfile::tempfile_in(&scratch)?;
            from.write_all(&[1; 4096])?;
            clone_file(&from, &tempfile::tempfile_in(&scratch)?)
        };
        let can = tried().map_err(|error| VolumeError::io("write to", &scratch, error))?;
        Ok(*self.can_clone.get_or_init(|| can))
    }
}

/// Clones a file to a new one; `false` where the file system can't.
pub(super) fn clone_path(from: &Path, to: &Path) -> Result<bool, VolumeError> {
    let failed = |error| VolumeError::io("clone", from, error);
    let source = OpenOptions::new().read(true).open(from).map_err(failed)?;
    let target: File = new_file(to)?;
    clone_file(&source, &target).map_err(failed)
}

fn clone_file(from: &impl AsFd, to: &impl AsFd) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
