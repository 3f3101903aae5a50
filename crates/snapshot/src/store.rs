//! The object store: chunks and manifests.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{NewSnapshot, Progress, Snapshot, SnapshotError, SnapshotName, Source};

/// Where snapshots are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a directory of this host; made with mode 0700 when it is not there.
    Directory(PathBuf),
    /// In S3-compatible storage.
    S3 {
        /// Name of the bucket.
        bucket: String,
        /// Prefix of all keys, without slashes at its ends; may be empty.
        prefix: String,
        /// URL of the service; that of AWS when absent.
        endpoint: Option<String>,
        /// Region; `us-east-1` when absent.
        region: Option<String>,
        /// Access key and secret.
        credentials: (String, Zeroizing<String>),
    },
}

/// What everything in the store is encrypted with, by way of a key per organisation. Neither shown
/// nor logged; its memory is wiped.
#[derive(Clone)]
pub struct StoreKey {
    /// 256 random bits.
    pub bytes: Zeroizing<[u8; 32]>,
    /// Tells it from other ones without giving anything of it away.
    pub id: String,
}

/// A store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Where.
    pub location: Location,
    /// Of the installation.
    pub key: StoreKey,
}

/// Snapshots in an object store. Clones are the same store.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    _inner: Arc<StoreConfig>,
}

/// What a sweep removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Chunks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads a snapshot, of which each chunk is verified. Clones share what was read last.
#[derive(Debug, Clone)]
pub struct Reader {
    _inner: Arc<Snapshot>,
}

impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoreKey({})", self.id)
    }
}

#[allow(clippy::todo, clippy::unused_async, missing_docs)]
impl SnapshotStore {
    /// Opens a store. Does not touch S3: a store that is away is no reason not to start.
    ///
    /// # Errors
    /// When a directory can't be made, or a setting makes no sense.
    pub fn open(config: StoreConfig) -> Result<Self, SnapshotError> {
        Ok(Self { _inner: Arc::new(config) })
    }

    /// Writes a small object, reads it back and removes it: for `doctor`.
    pub async fn check(&self) -> Result<(), SnapshotError> {
        todo!()
    }

    /// Takes a snapshot. It is there when this returns, and not before. Dropped, it leaves at most
    /// chunks for a sweep.
    pub async fn take(
        &self,
        _new: NewSnapshot,
        _source: &mut dyn Source,
        _progress: &watch::Sender<Progress>,
    ) -> Result<Snapshot, SnapshotError> {
        todo!()
    }

    /// A snapshot that is there.
    pub async fn get(&self, _name: &SnapshotName) -> Result<Snapshot, SnapshotError> {
        todo!()
    }

    /// Opens a snapshot to be read.
    pub async fn reader(&self, _name: &SnapshotName) -> Result<Reader, SnapshotError> {
        todo!()
    }

    /// All snapshots of an organisation, in the order of volume and time.
    pub async fn list(&self, _organization: &str) -> Result<Vec<Snapshot>, SnapshotError> {
        todo!()
    }

    /// Removes a snapshot; one that is not there is no error. Its chunks stay until a sweep.
    pub async fn delete(&self, _name: &SnapshotName) -> Result<(), SnapshotError> {
        todo!()
    }

    /// Removes the chunks that no snapshot has, of all organisations. Waits for snapshots that are
    /// being taken, and they for it.
    pub async fn sweep(&self) -> Result<Swept, SnapshotError> {
        todo!()
    }
}

#[allow(clippy::todo, clippy::unused_async, missing_docs)]
impl Reader {
    /// What it reads.
    pub fn snapshot(&self) -> &Snapshot {
        todo!()
    }

    /// Fills a buffer with what is at an offset.
    ///
    /// # Errors
    /// `Damaged` for a chunk that is missing or not what it should be; `Store` when the store is
    /// away.
    pub async fn read(&self, _offset: u64, _buffer: &mut [u8]) -> Result<(), SnapshotError> {
        todo!()
    }

    /// Whether a part of it is zeroes, and up to where this is so: from `offset`, at most `length`.
    pub async fn zeroes(&self, _offset: u64, _length: u64) -> Result<(bool, u64), SnapshotError> {
        todo!()
    }
}
