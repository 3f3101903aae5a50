//! What is recorded of a volume.

use caddis_api::{
    AppName, RegionCode, UnixMillis, VolumeId,
    volume::{Filesystem, VolumeOperation, VolumeState},
};
use caddis_bus::message::SnapshotSource;
use serde::{Deserialize, Serialize};

/// Version of the record's format. Fields are only ever added, with defaults.
pub const FORMAT: u32 = 1;

/// A volume as recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeRow {
    /// [`FORMAT`] when it was written.
    pub format: u32,
    /// Id.
    pub id: VolumeId,
    /// Name.
    pub name: String,
    /// App it belongs to.
    pub app: AppName,
    /// The app's organisation, by slug.
    #[serde(default = "personal")]
    pub org: String,
    /// Region it was placed in.
    pub region: RegionCode,
    /// Size, GiB.
    pub size_gb: u32,
    /// The size that it is being extended to, GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extend_to: Option<u32>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// What is on it.
    pub filesystem: Filesystem,
    /// What it is made a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VolumeId>,
    /// The snapshot that it is restored from, until it has all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<SnapshotSource>,
    /// Days for which snapshots are kept.
    pub snapshot_retention: u32,
    /// Whether a snapshot is taken each day.
    pub auto_backup_enabled: bool,
    /// When it was asked for.
    pub created_at: UnixMillis,
    /// When it was last changed.
    pub updated_at: UnixMillis,
    /// State as the API shows it.
    pub state: VolumeState,
    /// What was last tried with it and failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<VolumeOperation>,
    /// When it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<UnixMillis>,
    /// How full its file system was when its machine was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Before volumes knew it there was one.
fn personal() -> String {
    "personal".to_owned()
}

impl VolumeRow {
    /// Notes that something has failed, and why.
    pub fn fail(&mut self, kind: &str, error: impl ToString) {
        let (kind, error) = (kind.to_owned(), Some(error.to_string()));
        self.failure = Some(VolumeOperation { kind, bytes_done: None, bytes_total: None, error });
    }

    /// What makes it, as the API calls it.
    pub fn making(&self) -> &'static str {
        match (&self.source, &self.restore) {
            (Some(_), _) => "fork",
            (None, Some(_)) => "restore",
            (None, None) => "create",
        }
    }
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks.
    pub blocks: u64,
    /// Free ones.
    pub blocks_free: u64,
    /// Free ones that any user may take.
    pub blocks_avail: u64,
}

impl Usage {
    /// Bytes that its files take.
    pub fn bytes_used(&self) -> u64 {
        self.blocks.saturating_sub(self.blocks_free).saturating_mul(self.block_size)
    }

    /// Bytes that it has.
    pub fn bytes_total(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }
}

/// A volume of a suspended machine, as it was when its memory was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVolume {
    /// Which.
    pub id: VolumeId,
    /// Its generation; none: it was being extended.
    pub generation: Option<u64>,
    /// Its size, GiB.
    pub size_gb: u32,
}
