//! Images that take what a guest overwrites while a snapshot of its volume is taken.
//!
//! `qemu-img` takes its time, and when it makes a LUKS header, it measures the CPU for seconds. So
//! it makes an empty image of the largest size once per volume, which is kept beside the disk, and
//! copied with its size changed. That of an encrypted volume opens with the volume's passphrase;
//! the key that LUKS encrypts data with is its own, not that of the disk, and the same for all
//! images of one volume.

use std::{
    fs::{self, File, OpenOptions},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
    sync::Arc,
};

use tempfile::TempDir;

use super::{DISK, Inner, VolumeStore, blocking};
use crate::{SizeGib, VolumeError, VolumeId, VolumeKey, files, qcow2, record::Record};

/// Beside the disk.
const TEMPLATE: &str = "fleecing.qcow2";

/// Tables of the image, and its header, bytes.
const METADATA: u64 = 16 << 20;

/// A snapshot is usually done before more than this is overwritten, bytes; and before this part of
/// a large volume is.
const USUAL: u64 = 1 << 30;
const USUAL_PART: u64 = 4;

/// An empty qcow2 of the size of a volume, encrypted if the volume is.
#[derive(Debug)]
pub struct FleecingImage {
    /// The file, which has no name any more: it is gone when all copies are closed.
    pub file: OwnedFd,
    /// What opens its LUKS layer, if it is encrypted.
    pub key: Option<VolumeKey>,
    /// Its space.
    pub space: FleecingSpace,
}

/// The space that a fleecing image may take, which is reserved until this is dropped.
#[derive(Debug)]
pub struct FleecingSpace {
    file: File,
    bytes: u64,
    _reserved: Reserved,
}

/// Counted with the volumes until it is dropped.
#[derive(Debug)]
struct Reserved {
    inner: Arc<Inner>,
    gib: u64,
}

impl VolumeStore {
    /// Makes an image for a snapshot of a volume, which may be in use. Takes milliseconds, but
    /// seconds the first time for an encrypted volume. Space is reserved for all that the volume
    /// has, but beyond 1 GiB only for a quarter of it.
    ///
    /// # Errors
    /// When it is deleted, its key can't be had, or there is no room.
    pub async fn fleecing_image(&self, id: &VolumeId) -> Result<FleecingImage, VolumeError> {
        let inner = &self.inner;
        let record = inner.live(&inner.state.lock(), id)?.clone();
        let key = inner.key(&record)?;
        let size = record.size_gib;
        let bytes = needed(self.usage(id)?.allocated_bytes).min(size.bytes() + METADATA);
        let reserved = inner.reserve_fleecing(bytes)?;
        let directory = inner.temporary()?;
        let path = directory.path().join(DISK);
        let template = inner.template(&record, key.as_ref(), &directory).await?;
        let to = path.clone();
        let copied = move || copy_template(&template, &to, size);
        blocking("make an image for a snapshot", copied).await?;
        let failed = |error| VolumeError::io("open", &path, error);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let copy = file.try_clone().map_err(failed)?;
        let space = FleecingSpace { file: copy, bytes, _reserved: reserved };
        Ok(FleecingImage { file: file.into(), key, space })
    }
}

impl FleecingSpace {
    /// Bytes.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.bytes
    }

    /// Whether the image has become larger than that. Then the snapshot is to be given up: what
    /// the image takes is missing elsewhere.
    #[must_use]
    pub fn is_exceeded(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.blocks() * 512 > self.bytes)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.inner.state.lock().fleecing -= self.gib;
    }
}

/// Of a volume that has so many bytes.
fn needed(allocated: u64) -> u64 {
    allocated.min(USUAL.max(allocated / USUAL_PART)) + METADATA
}

impl Inner {
    fn reserve_fleecing(self: &Arc<Self>, bytes: u64) -> Result<Reserved, VolumeError> {
        let directory = &self.config.directory;
        let found = rustix::fs::statvfs(directory)
            .map_err(|error| VolumeError::io("look for space in", directory, error.into()))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if free < bytes {
            let what = "keep what is overwritten while the volume is read".to_owned();
            let reason = format!("{bytes} bytes are needed and {free} are free");
            return Err(VolumeError::NoSpace { what, reason });
        }
        let gib = bytes.div_ceil(1 << 30);
        let mut state = self.state.lock();
        self.expect_room(&state, gib)?;
        state.fleecing += gib;
        Ok(Reserved { inner: Arc::clone(self), gib })
    }

    fn temporary(&self) -> Result<TempDir, VolumeError> {
        let scratch = self.scratch();
        let made = tempfile::Builder::new().prefix("fleecing-").tempdir_in(&scratch);
        made.map_err(|error| VolumeError::io("write to", &scratch, error))
    }

    /// The empty image of a volume, open; it is made if it is not there.
    async fn template(
        &self,
        record: &Record,
        key: Option<&VolumeKey>,
        directory: &TempDir,
    ) -> Result<File, VolumeError> {
        let place = self.place(record.id.as_str(), false);
        let template = place.join(TEMPLATE);
        match File::open(&template) {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(VolumeError::io("open", &template, error)),
        }
        let new = directory.path().join(TEMPLATE);
        self.disks.create(&new, SizeGib::MAX.bytes(), key).await?;
        blocking("make an image for a snapshot", move || {
            let failed = |error| VolumeError::io("sync", &template, error);
            let file = File::open(&new).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            fs::rename(&new, &template).map_err(failed)?;
            files::sync_directory(&place)?;
            Ok(file)
        })
        .await
    }
}

fn copy_template(mut template: &File, path: &Path, size: SizeGib) -> Result<(), VolumeError> {
    let mut copy = crate::disk::new_file(path)?;
    std::io::copy(&mut template, &mut copy)
        .and_then(|_| qcow2::shrink(&copy, size.bytes()))
        .map_err(|error| VolumeError::io("write", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_for_all_of_a_small_volume_and_a_quarter_of_a_large_one() {
        const GIB: u64 = 1 << 30;
        assert_eq!(needed(0), METADATA);
        assert_eq!(needed(GIB / 2), GIB / 2 + METADATA);
        assert_eq!(needed(3 * GIB), GIB + METADATA);
        assert_eq!(needed(100 * GIB), 25 * GIB + METADATA);
    }
}
