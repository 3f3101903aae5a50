//! What is recorded of a snapshot.

use std::time::Duration;

use caddis_api::{
    AppName, SnapshotId, UnixMillis, VolumeId,
    volume::{Filesystem, SnapshotStatus},
};
use caddis_snapshot::{Snapshot, SnapshotName};
use serde::{Deserialize, Serialize};

use super::job::Taken;
use crate::volumes::row::VolumeRow;

/// Version of the record's format. Fields are only ever added, with defaults.
pub const FORMAT: u32 = 1;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A snapshot as recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// [`FORMAT`] when it was written.
    pub format: u32,
    /// Id.
    pub id: SnapshotId,
    /// The volume that it is of, which may be gone.
    pub volume: VolumeId,
    /// Name of that volume.
    pub name: String,
    /// App that the volume belongs to.
    pub app: AppName,
    /// The app's organisation, by slug.
    pub org: String,
    /// What is on the volume.
    pub filesystem: Filesystem,
    /// Whether the volume is encrypted.
    pub encrypted: bool,
    /// State as the API shows it.
    pub status: SnapshotStatus,
    /// The volume that is to be made from it, and alone: it is deleted then, and not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<VolumeId>,
    /// It is to be removed from the store, and not shown any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_deleted: bool,
    /// When it was asked for; once it is there, the instant that it is of.
    pub created_at: UnixMillis,
    /// Days for which it is kept from then on.
    pub retention_days: u32,
    /// Tries that have failed for reasons that may pass.
    #[serde(default)]
    pub tries: u32,
    /// When it is tried next, where that is not at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<UnixMillis>,
    /// Why it waits or has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// All of the volume is to be read: the previous snapshot can't be used.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_full: bool,
    /// Bytes that it takes in the store.
    #[serde(default)]
    pub size: u64,
    /// Bytes that were new in the store with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added_size: Option<u64>,
    /// For how long the guest held its file systems still, milliseconds, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// Bytes of the volume.
    #[serde(default)]
    pub volume_size: u64,
    /// Digest of its contents.
    #[serde(default)]
    pub digest: String,
    /// Generation of the volume, which nobody had open: at the same one nothing has changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

impl SnapshotRow {
    /// One that is to be taken.
    pub fn new(id: SnapshotId, volume: &VolumeRow, now: UnixMillis) -> Self {
        Self {
            format: FORMAT,
            id,
            volume: volume.id.clone(),
            name: volume.name.clone(),
            app: volume.app.clone(),
            org: volume.org.clone(),
            filesystem: volume.filesystem,
            encrypted: volume.encrypted,
            status: SnapshotStatus::Waiting,
            fork: None,
            is_deleted: false,
            created_at: now,
            retention_days: volume.snapshot_retention,
            tries: 0,
            next_try: None,
            error: None,
            is_full: false,
            size: 0,
            added_size: None,
            frozen_ms: None,
            volume_size: u64::from(volume.size_gb) << 30,
            digest: String::new(),
            generation: None,
        }
    }

    /// One that is in the store and was not recorded, of a volume that is as it was then but for
    /// what the store knows.
    pub(super) fn found(volume: &VolumeRow, snapshot: &Snapshot) -> Self {
        let id = snapshot.name.id.clone();
        let mut row = Self::new(id, volume, snapshot.created_at.into());
        row.encrypted = snapshot.encrypted;
        let (generation, still) = (None, None);
        row.is_taken(&Taken { snapshot: snapshot.clone(), generation, still });
        row
    }

    /// Where it is in the store.
    pub fn stored_as(&self) -> SnapshotName {
        SnapshotName {
            organization: self.org.clone(),
            volume: self.volume.clone(),
            id: self.id.clone(),
        }
    }

    /// Whether it is to be taken, or is being taken.
    pub fn is_pending(&self) -> bool {
        !self.is_deleted && matches!(self.status, SnapshotStatus::Waiting | SnapshotStatus::Running)
    }

    /// Whether it is there.
    pub fn is_created(&self) -> bool {
        !self.is_deleted && self.status == SnapshotStatus::Created
    }

    /// Whether users see it.
    pub fn is_shown(&self) -> bool {
        !self.is_deleted && self.fork.is_none()
    }

    /// Whether its time is over.
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        let is_over = matches!(self.status, SnapshotStatus::Created | SnapshotStatus::Failed);
        is_over && !self.is_deleted && self.created_at + DAY * self.retention_days <= now
    }

    /// It is in the store.
    pub(super) fn is_taken(&mut self, taken: &Taken) {
        let Taken { snapshot: taken, generation, still } = taken;
        self.status = SnapshotStatus::Created;
        self.created_at = taken.created_at.into();
        (self.size, self.volume_size) = (taken.stored_size, taken.volume_size);
        self.added_size = Some(taken.added_size);
        let milliseconds = still.map(|still| still.as_micros().div_ceil(1000));
        self.frozen_ms = milliseconds.and_then(|milliseconds| milliseconds.try_into().ok());
        self.digest.clone_from(&taken.digest);
        (self.generation, self.error, self.next_try) = (*generation, None, None);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_of_an_earlier_release_does_not_say_what_was_not_recorded() {
        let record = json!({
            "format": 1, "id": "vs_1", "volume": "vol_1", "name": "data", "app": "app",
            "org": "personal", "filesystem": "ext4", "encrypted": false, "status": "created",
            "created_at": 1, "retention_days": 5, "size": 3, "volume_size": 4, "digest": "blake3:0",
        });
        let row: SnapshotRow = serde_json::from_value(record.clone()).unwrap();
        assert_eq!((row.added_size, row.frozen_ms, row.size), (None, None, 3));
        // An earlier release that reads it again finds nothing new in it.
        let fields = serde_json::to_value(&row).unwrap();
        assert!(
            fields
                .as_object()
                .unwrap()
                .keys()
                .all(|key| record.get(key).is_some() || key == "tries")
        );
    }
}
