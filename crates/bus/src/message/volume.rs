//! Volumes, as workers are told of them and tell of them.

use caddis_api::{
    AppName, RegionCode, SnapshotId, UnixMillis, Volume, VolumeId, WorkerId,
    volume::{Filesystem, VolumeSnapshot},
};
use serde::{Deserialize, Serialize};

/// A volume as its worker publishes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Whose truth this is.
    pub worker: WorkerId,
    /// The worker's process, as in `Delta::incarnation`.
    pub incarnation: String,
    /// The number of the worker's last change of a volume that this contains: of two records of a
    /// process the one with the higher is newer.
    pub revision: u64,
    /// Name of its app.
    pub app: AppName,
    /// When it last changed.
    pub updated_at: UnixMillis,
    /// The volume as the API shows it.
    pub volume: Volume,
}

/// Everything a worker must know to make a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// Its id, from the catalog.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Name of its app.
    pub app: AppName,
    /// The app's organisation, by slug: its snapshots are kept with those of it.
    #[serde(default = "personal")]
    pub org: String,
    /// Region it was placed in.
    pub region: RegionCode,
    /// Size, GiB.
    pub size_gb: u32,
    /// Whether it is encrypted. That of the source when there is one.
    pub encrypted: bool,
    /// What is on it. That of the source when there is one.
    pub filesystem: Filesystem,
    /// A volume of the same worker to copy.
    pub source: Option<VolumeId>,
    /// A snapshot to make it from.
    #[serde(default)]
    pub snapshot: Option<SnapshotSource>,
    /// Days for which snapshots are kept.
    pub snapshot_retention: u32,
    /// Whether a snapshot is taken each day.
    pub auto_backup_enabled: bool,
}

fn personal() -> String {
    "personal".to_owned()
}

/// Which snapshot a volume is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSource {
    /// Its id.
    pub snapshot: SnapshotId,
    /// The volume that it is of, of the same organisation.
    pub volume: VolumeId,
}

/// A snapshot as the worker of its volume tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// The volume that it is of, which may be gone.
    pub volume: VolumeId,
    /// That volume's name.
    pub name: String,
    /// Name of that volume's app.
    pub app: AppName,
    /// What is on it.
    pub filesystem: Filesystem,
    /// Whether the volume was encrypted.
    pub encrypted: bool,
    /// The snapshot as the API shows it.
    pub snapshot: VolumeSnapshot,
}

/// A change of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum VolumeAction {
    /// Make it larger, now or, where its machine runs, under it.
    Extend {
        /// The new size, GiB.
        size_gb: u32,
    },
    /// Absent ones stay as they are.
    Update {
        /// Days for which new snapshots are kept.
        snapshot_retention: Option<u32>,
        /// Whether a snapshot is taken each day.
        auto_backup_enabled: Option<bool>,
    },
    /// Delete it, unless a machine has it; it can be undeleted for a day. One that is deleted
    /// already is left as it is.
    Delete,
    /// Delete it for good, at once, whether it is deleted already or not, unless a machine has it:
    /// its space is free then.
    Purge,
    /// Take a delete back.
    Undelete,
}
