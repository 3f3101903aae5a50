//! Copies of volumes that nobody uses: clones where the file system can, else with keys of their
//! own.

use std::{fs, os::unix::fs::MetadataExt as _};

use tokio::sync::watch;

use super::{
    VolumeStore, blocking,
    clone::{Copy, clone_path},
};
use crate::{Copied, NewCopy, Progress, VolumeError, VolumeId, record::Record};

impl VolumeStore {
    /// Copies a volume that nobody uses into a new one. Where the file system has `FICLONE`, that
    /// takes no time and no space, and the copy of an encrypted one has its source's key; else it
    /// has one of its own. Nobody can open the source meanwhile. Dropping it ends the copy and
    /// leaves nothing behind, or, at the very end, the copy.
    ///
    /// # Errors
    /// When the source is in use, deleted, being restored or larger than the copy, its key can't be
    /// had, there is a volume with the copy's id, or no room. Nothing is left of the copy.
    pub async fn copy(
        &self,
        source: &VolumeId,
        new: NewCopy,
        progress: &watch::Sender<Progress>,
    ) -> Result<Copied, VolumeError> {
        let inner = &self.inner;
        let (busy, from) = inner.take(source, &format!("its copy to {}", new.id))?;
        let copy = inner.begin_copy(&from, new)?;
        let from_disk = inner.disk(&from.volume());
        let metadata =
            fs::metadata(&from_disk).map_err(|error| VolumeError::io("read", &from_disk, error))?;
        let total = metadata.blocks() * 512;
        progress.send_replace(Progress { done: 0, total });
        if inner.can_clone()? {
            let (source, target) = (from_disk.clone(), copy.work.disk());
            let cloned = blocking("copy the volume", move || {
                let cloned = clone_path(&source, &target);
                drop(busy);
                cloned
            });
            if !cloned.await? {
                let source = std::io::Error::other("the file system refused");
                return Err(VolumeError::io("clone", &from_disk, source));
            }
            let volume = inner.finish_clone(copy).await?;
            progress.send_replace(Progress { done: total, total });
            return Ok(Copied { volume, is_clone: true });
        }
        let Copy { work, new, size, key: from_key, .. } = copy;
        let key = if from_key.is_some() { Some(inner.new_key(&new.id)?) } else { None };
        let (key, wrapped) = key.unzip();
        inner.disks.create(&work.disk(), size.bytes(), key.as_ref()).await?;
        let copied = |part: f64| {
            let done = (total as f64 * part) as u64;
            progress.send_if_modified(|progress| {
                let is_more = done > progress.done;
                progress.done = progress.done.max(done);
                is_more
            });
        };
        let keys = from_key.as_ref().zip(key.as_ref()).map(|(from, to)| [from, to]);
        inner.disks.copy(&from_disk, &work.disk(), keys, copied).await?;
        drop(busy);
        let mut record = Record::new(new.id, size, from.filesystem, wrapped, new.created_at);
        record.copied_from = Some(source.clone());
        let volume = inner.publish(work, record).await?;
        progress.send_replace(Progress { done: total, total });
        Ok(Copied { volume, is_clone: false })
    }
}
