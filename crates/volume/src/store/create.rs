//! New volumes: made below `tmp/` and renamed into place when they are whole and durable.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
};

use tempfile::TempDir;

use super::{DISK, Inner, VolumeStore, blocking, room::Reservation};
use crate::{
    Filesystem, NewVolume, SizeGib, Volume, VolumeError, VolumeId, VolumeKey, files,
    key::WrappedKey, record::Record,
};

/// A directory in which a volume is made; it is removed when dropped.
pub(super) struct Work {
    directory: TempDir,
    reservation: Reservation,
}

impl VolumeStore {
    /// Makes a volume. Takes seconds when it is encrypted, since `qemu-img` measures the CPU, so it
    /// has no place in a start. Dropping it leaves nothing behind, or, at the very end, the volume.
    ///
    /// # Errors
    /// When there is one with this id, or no room. Nothing is left of it.
    pub async fn create(&self, new: NewVolume) -> Result<Volume, VolumeError> {
        let NewVolume { id, size, filesystem, encrypted, created_at } = new;
        let inner = &self.inner;
        let work = inner.work(&id, size)?;
        let key = if encrypted { Some(inner.new_key(&id)?) } else { None };
        let (key, wrapped) = key.unzip();
        let (disks, disk) = (&inner.disks, work.disk());
        let create = disks.create(&disk, size.bytes(), key.as_ref());
        match filesystem {
            Filesystem::Raw => create.await?,
            Filesystem::Ext4 => {
                let scratch = work.directory.path();
                let (raw, configuration) = (scratch.join("raw"), scratch.join("mke2fs.conf"));
                tokio::try_join!(create, disks.make_ext4(&raw, &configuration, size.bytes()))?;
                disks.fill(&raw, &disk, key.as_ref()).await?;
            }
        }
        let record = Record::new(id, size, filesystem, wrapped, created_at);
        inner.publish(work, record).await
    }
}

impl Inner {
    /// Reserves a volume and makes the directory to make it in.
    pub(super) fn work(
        self: &Arc<Self>,
        id: &VolumeId,
        size: SizeGib,
    ) -> Result<Work, VolumeError> {
        let reservation = self.reserve(id, size)?;
        self.make_places()?;
        let scratch = self.scratch();
        let made = tempfile::Builder::new().prefix("volume-").tempdir_in(&scratch);
        let directory = made.map_err(|error| VolumeError::io("write to", &scratch, error))?;
        let work = Work { directory, reservation };
        files::make_directory(&work.volume())?;
        Ok(work)
    }

    /// A key for a volume.
    pub(super) fn new_key(&self, id: &VolumeId) -> Result<(VolumeKey, WrappedKey), VolumeError> {
        let key = VolumeKey::random()?;
        let wrapped = self.config.key.wrap(&key, id)?;
        Ok((key, wrapped))
    }

    /// Puts a volume in its place.
    pub(super) async fn publish(
        self: &Arc<Self>,
        work: Work,
        record: Record,
    ) -> Result<Volume, VolumeError> {
        let inner = Arc::clone(self);
        blocking("create a volume", move || {
            let (disk, made) = (work.disk(), work.volume());
            let sync = File::options().write(true).open(&disk).and_then(|file| file.sync_all());
            sync.map_err(|error| VolumeError::io("sync", &disk, error))?;
            record.write(&made, work.directory.path())?;
            let place = inner.place(record.id.as_str(), false);
            let mut state = inner.state.lock();
            if let Err(error) = files::move_directory(&made, &place) {
                // It may be there and not be durable.
                let _ = fs::rename(&place, &made);
                return Err(error);
            }
            let volume = record.volume();
            state.volumes.insert(record.id.clone(), record);
            work.reservation.fulfil(&mut state);
            Ok(volume)
        })
        .await
    }
}

impl Work {
    /// What becomes the directory of the volume.
    fn volume(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    /// The file to be made.
    pub(super) fn disk(&self) -> PathBuf {
        self.volume().join(DISK)
    }
}
