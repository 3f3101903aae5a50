//! Copies of volumes that nobody uses, with keys of their own.

use std::{fs, os::unix::fs::MetadataExt as _};

use tokio::sync::watch;

use super::VolumeStore;
use crate::{NewCopy, Progress, Volume, VolumeError, VolumeId, record::Record};

impl VolumeStore {
    /// Copies a volume that nobody uses into a new one, which has a key of its own if the source is
    /// encrypted. Nobody can open the source meanwhile. Dropping it ends the copy and leaves
    /// nothing behind.
    ///
    /// # Errors
    /// When the source is in use, deleted or larger than the copy, its key can't be had, there is a
    /// volume with the copy's id, or no room. Nothing is left of the copy.
    pub async fn copy(
        &self,
        source: &VolumeId,
        new: NewCopy,
        progress: &watch::Sender<Progress>,
    ) -> Result<Volume, VolumeError> {
        let inner = &self.inner;
        let NewCopy { id, size, created_at } = new;
        let (busy, from) = inner.take(source, &format!("its copy to {id}"))?;
        let size = size.unwrap_or(from.size_gib);
        if size < from.size_gib {
            let (id, from) = (source.clone(), from.size_gib);
            return Err(VolumeError::CannotShrink { id, from, to: size });
        }
        let from_key = inner.key(&from)?;
        let work = inner.work(&id, size)?;
        let key = if from_key.is_some() { Some(inner.new_key(&id)?) } else { None };
        let (key, wrapped) = key.unzip();
        let from_disk = inner.disk(&from.volume());
        let metadata =
            fs::metadata(&from_disk).map_err(|error| VolumeError::io("read", &from_disk, error))?;
        let total = metadata.blocks() * 512;
        progress.send_replace(Progress { done: 0, total });
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
        let mut record = Record::new(id, size, from.filesystem, wrapped, created_at);
        record.copied_from = Some(source.clone());
        let volume = inner.publish(work, record).await?;
        progress.send_replace(Progress { done: total, total });
        Ok(volume)
    }
}
