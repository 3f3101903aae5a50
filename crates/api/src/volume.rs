//! Volumes.

use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Number;
use utoipa::ToSchema;

use crate::{
    AppName, MachineId, RegionCode, SnapshotId, VolumeId, WorkerId, config::Guest,
    requests::null_is_default,
};

/// Volumes that a machine can have.
pub const MAX_MOUNTS: usize = 2;
/// Largest volume, GiB.
pub const MAX_VOLUME_GIB: u16 = 500;
/// Size of a volume for which none is given, GiB.
pub const DEFAULT_VOLUME_GIB: u32 = 3;
/// Days for which snapshots can be kept.
pub const SNAPSHOT_RETENTION: RangeInclusive<u32> = 1..=60;
/// Days for which snapshots are kept where none are given.
pub const DEFAULT_SNAPSHOT_RETENTION: u32 = 5;

/// [`Volume::zone`] of the volumes of a host: the same for ever.
pub fn zone_of(worker: &WorkerId) -> String {
    // FNV-1a.
    let mixed = worker.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:04x}", (mixed ^ (mixed >> 32)) & 0xffff)
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Stable id.
    pub id: VolumeId,
    /// Need not be unique: volumes of one name are taken for one another.
    pub name: String,
    /// State.
    pub state: VolumeState,
    /// Declared size, GiB.
    pub size_gb: u32,
    /// Region.
    #[schema(value_type = String)]
    pub region: RegionCode,
    /// 4 hex digits that stand for its host.
    pub zone: String,
    /// Whether it is encrypted on the host.
    pub encrypted: bool,
    /// The machine that it belongs to, running or not.
    pub attached_machine_id: Option<MachineId>,
    /// Always null.
    #[serde(default)]
    pub attached_alloc_id: Option<String>,
    /// RFC 3339, milliseconds.
    pub created_at: String,
    /// `ext4` or `raw`.
    pub fstype: Filesystem,
    /// Bytes of a block of its file system. This and the other figures of use are those of the
    /// last time that a machine told them, 0 before. Left out by `summary` lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u64>,
    /// Blocks of its file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u64>,
    /// Free blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_free: Option<u64>,
    /// Free blocks that are not set aside for root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_avail: Option<u64>,
    /// Bytes in use.
    #[serde(default)]
    pub bytes_used: u64,
    /// Bytes that its file system has.
    #[serde(default)]
    pub bytes_total: u64,
    /// Days for which new snapshots are kept.
    pub snapshot_retention: u32,
    /// Whether a snapshot is taken each day.
    pub auto_backup_enabled: bool,
    /// `ok`, `unknown` or `unreachable`.
    #[serde(default = "ok")]
    pub host_status: String,
    /// Always `local`.
    #[serde(rename = "type", default = "local")]
    pub kind: String,
    /// Rises whenever its data may have been changed: at each start of its machine, when it is
    /// extended. Memory of a machine that was saved at another one is not resumed. Caddis
    /// extension.
    #[serde(default)]
    pub generation: u64,
    /// When the last snapshot was taken that is there, RFC 3339. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_snapshot_at: Option<String>,
    /// Bytes that have changed since, as far as that is known. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_since_snapshot: Option<u64>,
    /// When it is deleted for good, RFC 3339; until then it can be undeleted. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_until: Option<String>,
    /// What is in progress, or why it failed. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<VolumeOperation>,
}

fn ok() -> String {
    "ok".to_owned()
}

fn local() -> String {
    "local".to_owned()
}

impl Volume {
    /// Whether a machine can be given it: it is there, or soon, and no machine has it.
    pub fn is_free(&self) -> bool {
        self.attached_machine_id.is_none() && self.state.is_mountable()
    }
}

/// State of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// It is being made. Machines can have it: their start waits for it.
    Creating,
    /// It is there.
    Created,
    /// It is being made larger.
    Extending,
    /// It is being made from a snapshot.
    Restoring,
    /// It is there, and what it is a copy of is still being copied.
    Hydrating,
    /// It could not be made; `operation` says why.
    Failed,
    /// It is deleted and can be undeleted.
    PendingDestroy,
    /// It is gone.
    Destroyed,
}

impl VolumeState {
    /// As it is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Extending => "extending",
            Self::Restoring => "restoring",
            Self::Hydrating => "hydrating",
            Self::Failed => "failed",
            Self::PendingDestroy => "pending_destroy",
            Self::Destroyed => "destroyed",
        }
    }

    /// Whether a machine can have it.
    pub fn is_mountable(self) -> bool {
        use VolumeState as S;
        matches!(self, S::Creating | S::Created | S::Extending | S::Restoring | S::Hydrating)
    }

    /// Whether it is deleted.
    pub fn is_deleted(self) -> bool {
        matches!(self, Self::PendingDestroy | Self::Destroyed)
    }
}

/// Reads a size, GiB, and tells of one that can't be the same as of others.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = Number::deserialize(deserializer)?;
    let size = number.as_u64().and_then(|size| u32::try_from(size).ok());
    size.ok_or_else(|| D::Error::custom(format!("must be between 1 and {MAX_VOLUME_GIB}")))
}

fn wanted_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    struct Size(#[serde(deserialize_with = "size")] u32);
    Ok(Option::<Size>::deserialize(deserializer)?.map(|Size(size)| size))
}

/// What is on a new volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Filesystem {
    /// An empty ext4 file system, mounted at the path of the mount.
    #[default]
    Ext4,
    /// Zeroes: the path of the mount is a block device.
    Raw,
}

impl Filesystem {
    /// As it is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Raw => "raw",
        }
    }
}

/// What is in progress on a volume, or has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeOperation {
    /// `create`, `fork`, `restore`, `extend` or `snapshot`.
    pub kind: String,
    /// Bytes done, of `bytes_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Bytes to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Reply of a create or update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangedVolume {
    /// The volume.
    #[serde(flatten)]
    pub volume: Volume,
    /// Fields of the request that have no effect on this server. Caddis extension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A volume in the list of an organization's volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OrgVolume {
    /// The volume.
    #[serde(flatten)]
    pub volume: Volume,
    /// Name of its app.
    #[schema(value_type = String)]
    pub app_name: AppName,
    /// RFC 3339, milliseconds.
    pub updated_at: String,
}

/// Reply of `GET /v1/orgs/{org_slug}/volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OrgVolumes {
    /// The volumes of this page.
    pub volumes: Vec<OrgVolume>,
    /// For the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Id of the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_volume_id: Option<VolumeId>,
    /// `updated_at` of the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated_at: Option<String>,
}

/// Body of `POST /v1/apps/{app}/volumes`. Null counts as absent, and so do empty strings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({ "name": "data", "size_gb": 3 }))]
pub struct CreateVolumeRequest {
    /// Letters, digits and underscores, at most 30; required.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// Region expression; default is any.
    pub region: Option<String>,
    /// Size, GiB, 1 to 500; 3 when absent, or that of the source or snapshot.
    #[serde(deserialize_with = "wanted_size")]
    pub size_gb: Option<u32>,
    /// Default is true. That of the source or snapshot where there is one.
    pub encrypted: Option<bool>,
    /// Not on a host that has a volume of this name and app. Default is true, which is not insisted
    /// on where the region has one host.
    pub require_unique_zone: Option<bool>,
    /// Not on a host that has any volume of this app.
    pub unique_zone_app_wide: Option<bool>,
    /// Days for which snapshots are kept, 1 to 60; 5 when absent.
    pub snapshot_retention: Option<u32>,
    /// Whether a snapshot is taken each day; default is true.
    pub auto_backup_enabled: Option<bool>,
    /// What is on it; `ext4` when absent, or that of the source or snapshot.
    pub fstype: Option<String>,
    /// A snapshot to make it from, of any volume of the same organization.
    pub snapshot_id: Option<String>,
    /// A volume of the same app to copy.
    pub source_volume_id: Option<String>,
    /// The host must have room for such a machine as well.
    pub compute: Option<Guest>,
    /// Image that such a machine would run: a host that has it is preferred.
    pub compute_image: Option<String>,
    /// Ignored.
    pub machines_only: Option<bool>,
    /// How many such volumes are going to be created, this one included: refused where there is no
    /// room for all. One is created all the same. Caddis extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeSnapshot {
    /// `vs_` and letters and digits.
    pub id: SnapshotId,
    /// Bytes that it takes where it is stored, also those that it shares with others.
    pub size: u64,
    /// Bytes that it added to the store, where earlier ones did not have them; null until it is
    /// there, and where that was not recorded. Caddis extension.
    #[serde(default)]
    pub added_size: Option<u64>,
    /// Bytes of the volume.
    pub volume_size: u64,
    /// Digest of its contents.
    pub digest: String,
    /// RFC 3339.
    pub created_at: String,
    /// `waiting`, `running`, `created` or `failed`.
    pub status: SnapshotStatus,
    /// Days for which it is kept.
    pub retention_days: u32,
    /// For how long the volume's file system stood still for it in the machine, milliseconds,
    /// rounded up; null where none ran, and where that is not known. Caddis extension.
    #[serde(default)]
    pub frozen_ms: Option<u64>,
    /// While it is taken, how far; where it failed or waits to be tried again, why. Caddis
    /// extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<VolumeOperation>,
}

/// State of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotStatus {
    /// It is to be taken; nothing of it is there.
    Waiting,
    /// It is being taken.
    Running,
    /// It is there.
    Created,
    /// It could not be taken; `operation` says why.
    Failed,
}

impl SnapshotStatus {
    /// As it is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Created => "created",
            Self::Failed => "failed",
        }
    }
}

/// Body of `PUT /v1/apps/{app}/volumes/{id}`. Null counts as absent, and leaves as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({ "snapshot_retention": 14 }))]
pub struct UpdateVolumeRequest {
    /// Days for which new snapshots are kept, 1 to 60.
    pub snapshot_retention: Option<u32>,
    /// Whether a snapshot is taken each day.
    pub auto_backup_enabled: Option<bool>,
}

/// Body of `PUT /v1/apps/{app}/volumes/{id}/extend`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "size_gb": 10 }))]
pub struct ExtendVolumeRequest {
    /// The new size as a whole, GiB: larger than it is, up to 500.
    #[serde(deserialize_with = "size")]
    pub size_gb: u32,
}

/// Reply of an extend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtendVolumeReply {
    /// The volume with its new size.
    pub volume: Volume,
    /// Whether its machine sees the new size only after a restart.
    pub needs_restart: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_of_one_host_and_never_another() {
        let zone = |worker: &str| zone_of(&WorkerId::from_trusted(worker));
        let (one, other) = (zone("01JZX3F3Q8D2"), zone("01JZX3F3Q8D3"));
        assert_eq!((one.len(), other.len()), (4, 4));
        assert_ne!(one, other);
        assert_eq!(zone(""), "bfc1", "as it was when volumes were first made");
    }

    #[test]
    fn a_snapshot_of_an_earlier_worker_is_shown_without_what_it_does_not_tell() {
        let told = serde_json::json!({
            "id": "vs_1", "size": 3, "volume_size": 4, "digest": "", "created_at": "",
            "status": "created", "retention_days": 5,
        });
        let snapshot: VolumeSnapshot = serde_json::from_value(told).unwrap();
        let shown = serde_json::json!(snapshot);
        for field in ["added_size", "frozen_ms"] {
            assert_eq!(shown.get(field), Some(&serde_json::Value::Null), "{field}");
        }
    }

    #[test]
    fn states_have_one_name_each() {
        for state in [VolumeState::Creating, VolumeState::PendingDestroy, VolumeState::Hydrating] {
            assert_eq!(serde_json::json!(state), state.as_str());
        }
    }
}
