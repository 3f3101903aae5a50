//! The store: what is offered to the worker.

use std::{collections::HashSet, fs, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ImageError, ImageStoreConfig, ProgressSender, ResolvedImage, RootDisk};

/// An image that has a root disk in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// `sha256:…` of the platform's manifest.
    pub digest: String,
    /// References that led to it, and names given at import.
    pub names: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// When its root disk was built.
    pub created_at: Timestamp,
    /// When a machine last asked for it.
    pub last_used: Timestamp,
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GarbageReport {
    /// Digests of the images whose root disks were removed.
    pub removed: Vec<String>,
    /// Bytes that this set free, blobs included.
    pub freed_bytes: u64,
    /// Bytes free now.
    pub free_bytes: u64,
}

/// The images of a host. Clones share everything.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ImageStoreConfig,
}

impl ImageStore {
    /// Opens the store, making it when missing and removing what an earlier crash left half-made.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the directory can't be made or read.
    pub fn open(config: ImageStoreConfig) -> Result<Self, ImageError> {
        fs::create_dir_all(&config.directory)
            .map_err(|error| ImageError::io("make the image store", &config.directory, error))?;
        Ok(Self { inner: Arc::new(Inner { config }) })
    }

    /// Finds out which image a reference means, fetching only its manifest and config. Names given at import, and
    /// digests that are in the store, need no registry.
    ///
    /// # Errors
    /// Any but those of building; see [`ImageError::is_client_fault`].
    pub async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        crate::parse_reference(reference, &self.inner.config.default_registry)?;
        Err(unfinished())
    }

    /// The image's root disk, fetched and built when it is not there. Callers for one image share one build; a caller
    /// that goes away stops nothing.
    ///
    /// # Errors
    /// All kinds.
    pub async fn root_disk(&self, _image: &ResolvedImage, _progress: &ProgressSender) -> Result<RootDisk, ImageError> {
        Err(unfinished())
    }

    /// The root disk, if it is there already. Costs one `stat`.
    #[must_use]
    pub fn ready_root_disk(&self, digest: &str) -> Option<RootDisk> {
        let path: PathBuf = self.inner.config.directory.join("disks").join(format!("{digest}.ext4"));
        let size = fs::metadata(&path).ok()?.len();
        Some(RootDisk { path, size })
    }

    /// Takes in `docker-archive:FILE[:reference]`, `oci-archive:FILE[:tag]` or `oci:DIRECTORY[:tag]` and builds its
    /// root disk. `name` is how it is referred to from then on; without one, the archive's own name for it is used.
    ///
    /// # Errors
    /// All but those of registries.
    pub async fn import(
        &self,
        _source: &str,
        _name: Option<&str>,
        _progress: &ProgressSender,
    ) -> Result<ImageSummary, ImageError> {
        Err(unfinished())
    }

    /// All images with a root disk, the one used last first.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub async fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        Err(unfinished())
    }

    /// Removes a name, and with its last name, or by digest, the image. `in_use` are the digests that machines have.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::InUse`], [`ImageError::Io`].
    pub async fn remove(&self, _name_or_digest: &str, _in_use: &HashSet<String>) -> Result<(), ImageError> {
        Err(unfinished())
    }

    /// Makes room when less than `wanted_free` bytes are free: first layers that are kept only to save downloads, then
    /// root disks not in use, least recently used first.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub async fn collect_garbage(
        &self,
        _in_use: &HashSet<String>,
        _wanted_free: u64,
    ) -> Result<GarbageReport, ImageError> {
        Err(unfinished())
    }
}

fn unfinished() -> ImageError {
    ImageError::unsupported("this", "the image store is being written; this commit only settles its interface")
}
