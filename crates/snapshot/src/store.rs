//! The object store: chunks, segments and manifests.
//!
//! ```text
//!  organizations/ORG/snapshots/VOLUME.SNAPSHOT   manifest: what the snapshot is, ids of segments
//!  organizations/ORG/segments/XX/ID              list of up to 1024 chunks: id, size in the store
//!  organizations/ORG/chunks/XX/ID                contents of one chunk
//!  organizations/ORG/claims/WORK                 somebody takes a snapshot, or sweeps
//! ```
//! All are compressed and encrypted; segments and chunks are named by a keyed hash of what they
//! hold, so what is equal within an organisation is there once.

mod claims;
mod keys;
mod manifest;
mod objects;
mod reader;
mod sweep;
mod take;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::rand;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::sync::{RwLock, watch};
use zeroize::Zeroizing;

pub use self::reader::Reader;
use self::{
    keys::{Id, Keys},
    objects::Objects,
};
use crate::{NewSnapshot, Progress, Snapshot, SnapshotError, SnapshotName, Source};

/// Manifests that are read at the same time.
const READ_AT_ONCE: usize = 8;

/// Where snapshots are kept.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// In a directory of this host; made with mode 0700 when it is not there.
    Directory(PathBuf),
    /// In S3-compatible storage.
    S3 {
        /// Name of the bucket.
        bucket: String,
        /// Prefix of all keys, without slashes at its ends; may be empty.
        prefix: String,
        /// URL of the service; that of AWS when absent. `http://` only for loopback addresses.
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

/// How a store is used. The default is right for all but tests and measurements.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of the chunks of new snapshots, bytes: a power of two from 4 KiB to 16 MiB.
    pub chunk_size: u32,
    /// Of zstd.
    pub level: i32,
    /// A sweep leaves objects that are younger: they may be of a snapshot that is being taken by
    /// another process.
    pub grace: Duration,
    /// How often a request to S3 is repeated that failed for want of the service.
    pub retries: usize,
    /// For how long after the first attempt a request is repeated.
    pub retry_for: Duration,
    /// Pause before the first repetition; doubles with each, up to 32 times this, with jitter.
    pub backoff: Duration,
    /// For a request to S3.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // Both measured: docs/internals/snapshots.md.
            chunk_size: 256 << 10,
            level: 2,
            grace: Duration::from_secs(60 * 60),
            retries: 8,
            retry_for: Duration::from_secs(60),
            backoff: Duration::from_millis(200),
            timeout: Duration::from_secs(30),
        }
    }
}

/// Snapshots in an object store. Clones are the same store.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    inner: Arc<Inner>,
}

/// What a sweep removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Chunks, and lists of chunks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Organisations that were left to the next sweep, since snapshots are being taken in them.
    pub busy: u64,
}

struct Inner {
    objects: Objects,
    key: StoreKey,
    options: Options,
    /// Per organisation: shared by snapshots that are being taken, exclusive for sweeps.
    gates: Mutex<HashMap<String, Arc<RwLock<()>>>>,
    /// Tells this process from others that use the store.
    process: String,
    /// Claims of this process.
    active: Mutex<HashSet<String>>,
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreKey({})", self.id)
    }
}

impl fmt::Debug for Location {
    /// The path, or the URL, without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix, .. } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("key", &self.key).finish_non_exhaustive()
    }
}

impl SnapshotStore {
    /// Opens a store. Does not touch S3: a store that is away is no reason not to start.
    ///
    /// # Errors
    /// When a directory can't be made, or a setting makes no sense.
    pub fn open(config: StoreConfig) -> Result<Self, SnapshotError> {
        Self::open_with(config, Options::default())
    }

    /// Opens a store with options of its own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(config: StoreConfig, options: Options) -> Result<Self, SnapshotError> {
        let objects = Objects::open(&config.location, &options)?;
        Self::new(objects, config.key, options)
    }

    /// A store over objects of any kind.
    ///
    /// # Errors
    /// When an option makes no sense.
    pub fn over(
        objects: Arc<dyn ObjectStore>,
        key: StoreKey,
        options: Options,
    ) -> Result<Self, SnapshotError> {
        Self::new(Objects::new(objects), key, options)
    }

    fn new(objects: Objects, key: StoreKey, options: Options) -> Result<Self, SnapshotError> {
        let size = options.chunk_size;
        if !size.is_power_of_two() || !manifest::CHUNK_SIZES.contains(&size) {
            let reason = format!("chunks can't be of {size} bytes");
            return Err(SnapshotError::InvalidStore(reason));
        }
        let process = random_name()?;
        let (gates, active) = (Mutex::default(), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { objects, key, options, gates, process, active }) })
    }

    /// Writes a small object, reads it back and removes it: for `doctor`.
    ///
    /// # Errors
    /// `Store`, with the step that failed and why.
    pub async fn check(&self) -> Result<(), SnapshotError> {
        let key = format!("checks/{}", random_name()?);
        let objects = &self.inner.objects;
        let contents = b"caddis".to_vec();
        objects.put(&key, contents.clone()).await?;
        let read = objects.get(&key, contents.len()).await;
        let removed = objects.delete(&key).await;
        if read? != contents {
            let reason = format!("{key} reads back as something else than was written");
            return Err(SnapshotError::Store(reason));
        }
        Ok(removed?)
    }

    /// Takes a snapshot. It is there when this returns, and not before. Dropped, it leaves at most
    /// chunks for a sweep. Needs memory for a few chunks, and about 120 bytes per chunk of the
    /// volume.
    ///
    /// # Errors
    /// `Store` when the store is away, or another server sweeps it; trying again goes on with what
    /// is there already. What the source fails with. A `previous` that is missing, damaged or of
    /// another key is logged, and all is read.
    pub async fn take(
        &self,
        new: NewSnapshot,
        source: &mut dyn Source,
        progress: &watch::Sender<Progress>,
    ) -> Result<Snapshot, SnapshotError> {
        self.inner.take(new, source, progress).await
    }

    /// A snapshot that is there.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `OtherKey` or `Store`.
    pub async fn get(&self, name: &SnapshotName) -> Result<Snapshot, SnapshotError> {
        let keys = self.inner.keys(&name.organization)?;
        Ok(self.inner.manifest(&keys, name).await?.snapshot)
    }

    /// Opens a snapshot to be read.
    ///
    /// # Errors
    /// As [`get`](Self::get). Its chunks are looked at when they are read.
    pub async fn reader(&self, name: &SnapshotName) -> Result<Reader, SnapshotError> {
        let keys = self.inner.keys(&name.organization)?;
        let manifest = self.inner.manifest(&keys, name).await?;
        Ok(Reader::new(Arc::clone(&self.inner), keys, manifest))
    }

    /// All snapshots of an organisation, in the order of volume and time.
    ///
    /// # Errors
    /// As [`get`](Self::get), for the first that can't be read.
    pub async fn list(&self, organization: &str) -> Result<Vec<Snapshot>, SnapshotError> {
        let keys = self.inner.keys(organization)?;
        let names = self.inner.names(organization).await?;
        let mut snapshots: Vec<Snapshot> = futures::stream::iter(&names)
            .map(|name| self.inner.manifest(&keys, name))
            .buffer_unordered(READ_AT_ONCE)
            .filter_map(async |result| match result {
                // Removed since it was listed.
                Err(SnapshotError::NotFound(_)) => None,
                result => Some(result.map(|manifest| manifest.snapshot)),
            })
            .try_collect()
            .await?;
        snapshots.sort_by(|a, b| {
            let key = |it: &Snapshot| (it.name.volume.to_string(), it.created_at);
            key(a).cmp(&key(b))
        });
        Ok(snapshots)
    }

    /// Names of all snapshots of an organisation, of which none is read.
    ///
    /// # Errors
    /// `Store`.
    pub async fn names(&self, organization: &str) -> Result<Vec<SnapshotName>, SnapshotError> {
        self.inner.keys(organization)?;
        self.inner.names(organization).await
    }

    /// Removes a snapshot; one that is not there is no error. Its chunks stay until a sweep.
    ///
    /// # Errors
    /// `Store`.
    pub async fn delete(&self, name: &SnapshotName) -> Result<(), SnapshotError> {
        self.inner.keys(&name.organization)?;
        Ok(self.inner.objects.delete(&Inner::manifest_key(name)).await?)
    }

    /// Removes the chunks that no snapshot has, of all organisations. Gives way to snapshots that
    /// are being taken, by this server or another: their organisation is left to the next sweep,
    /// and counted.
    ///
    /// # Errors
    /// The first one, after all organisations: nothing was removed of one of which a snapshot
    /// can't be read.
    pub async fn sweep(&self) -> Result<Swept, SnapshotError> {
        self.inner.sweep().await
    }
}

impl Inner {
    /// The keys of an organisation.
    fn keys(&self, organization: &str) -> Result<Keys, SnapshotError> {
        let is_valid = (1..=100).contains(&organization.len())
            && organization
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !is_valid {
            let reason = format!("'{organization}' can't be the slug of an organization");
            return Err(SnapshotError::InvalidStore(reason));
        }
        Ok(Keys::new(&self.key, organization))
    }

    fn gate(&self, organization: &str) -> Arc<RwLock<()>> {
        Arc::clone(self.gates.lock().entry(organization.to_owned()).or_default())
    }

    fn manifest_key(name: &SnapshotName) -> String {
        let SnapshotName { organization, volume, id } = name;
        format!("organizations/{organization}/snapshots/{volume}.{id}")
    }

    fn segment_key(organization: &str, id: &Id) -> String {
        format!("organizations/{organization}/segments/{:02x}/{id}", id.0[0])
    }

    fn chunk_key(organization: &str, id: &Id) -> String {
        format!("{}/{id}", Self::chunks_prefix(organization, id.0[0]))
    }

    fn chunks_prefix(organization: &str, first: u8) -> String {
        format!("organizations/{organization}/chunks/{first:02x}")
    }

    /// Names of all snapshots of an organisation.
    async fn names(&self, organization: &str) -> Result<Vec<SnapshotName>, SnapshotError> {
        let prefix = format!("organizations/{organization}/snapshots");
        let metas: Vec<_> = self.objects.list(&prefix).try_collect().await?;
        let mut names = Vec::with_capacity(metas.len());
        for meta in metas {
            let parsed = meta
                .location
                .filename()
                .and_then(|file| file.split_once('.'))
                .and_then(|(volume, id)| Some((volume.parse().ok()?, id.parse().ok()?)));
            let Some((volume, id)) = parsed else {
                let reason = format!("{} is not the manifest of a snapshot", meta.location);
                return Err(SnapshotError::Store(reason));
            };
            names.push(SnapshotName { organization: organization.to_owned(), volume, id });
        }
        Ok(names)
    }
}

fn random_name() -> Result<String, SnapshotError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes)
        .map_err(|_| SnapshotError::Store("there are no random bytes".to_owned()))?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}
