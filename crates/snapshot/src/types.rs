//! What callers see of a snapshot.

use caddis_api::{SnapshotId, VolumeId, volume::Filesystem};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a snapshot is found in a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotName {
    /// Slug of the organisation: chunks are shared within it, and encrypted with its key.
    pub organization: String,
    /// Of which volume.
    pub volume: VolumeId,
    /// Its own id.
    pub id: SnapshotId,
}

/// A snapshot to be taken.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Its name; one that is there already with this name is replaced.
    pub name: SnapshotName,
    /// The last one of this volume: chunks in which nothing changed since are not read, where the
    /// source knows which these are. Only a name in the same organisation.
    pub previous: Option<SnapshotName>,
    /// What is on the volume.
    pub filesystem: Filesystem,
    /// Whether the volume is encrypted on its host.
    pub encrypted: bool,
    /// The instant it is of.
    pub created_at: Timestamp,
}

/// A snapshot that is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: SnapshotName,
    /// The instant it is of.
    pub created_at: Timestamp,
    /// Size of the volume, bytes.
    pub volume_size: u64,
    /// What is on the volume.
    pub filesystem: Filesystem,
    /// Whether the volume was encrypted on its host.
    pub encrypted: bool,
    /// Bytes that all its chunks take in the store, those that it shares too.
    pub stored_size: u64,
    /// Bytes that were new in the store with it.
    pub added_size: u64,
    /// Bytes of the volume that were read for it.
    pub read_size: u64,
    /// Digest of its contents, `blake3:` and hexadecimal: equal ones are equal within an
    /// organisation.
    pub digest: String,
}

/// How far something is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Of so many; 0 while that is not known.
    pub total: u64,
}
