//! What is said of images.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Digest, digest};

/// Where an image came from, as the API's `image_ref` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReference {
    /// Registry host and port; `docker-archive`, `oci-archive` and `local` for images that came
    /// from files and were not asked for by a name.
    pub registry: String,
    /// Repository, e.g. `library/nginx`.
    pub repository: String,
    /// Tag, when one was given or defaulted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Digest of the platform's manifest. Whatever was resolved has one; a record may lack it.
    #[serde(with = "digest::or_empty")]
    pub digest: Option<Digest>,
    /// Labels of the image's config.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

/// The part of an image's config that decides how it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub cmd: Vec<String>,
    /// ENV, `K=V`.
    pub env: Vec<String>,
    /// USER; empty when unset.
    pub user: String,
    /// WORKDIR; empty when unset.
    pub working_dir: String,
    /// STOPSIGNAL.
    pub stop_signal: Option<String>,
    /// EXPOSE, e.g. `80/tcp`.
    pub exposed_ports: Vec<String>,
}

/// A reference resolved to exactly one manifest. Serialisable, so that a machine's record can hold
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// The reference as the user gave it.
    pub requested: String,
    /// Where it came from; its digest names the root disk.
    pub reference: ImageReference,
    /// How it runs.
    pub config: ImageConfig,
    /// Sum of the compressed layers, bytes.
    pub download_size: u64,
    /// It came from a file: no registry is asked for it, whatever its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub imported: bool,
}

/// A finished root disk: read-only, shared by all machines of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDisk {
    /// Raw ext4 image.
    pub path: PathBuf,
    /// Its virtual size, bytes.
    pub size: u64,
}

/// How far getting an image is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// `resolve`, `pull`, `unpack`, `build`.
    pub step: String,
    /// Bytes done of this step.
    pub bytes_done: u64,
    /// Bytes of this step in all, 0 when unknown.
    pub bytes_total: u64,
}

/// Where progress goes: the latest value is what counts, so a slow reader costs nothing.
pub type ProgressSender = tokio::sync::watch::Sender<Progress>;

/// An image that has a root disk in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// Of the platform's manifest.
    pub digest: Digest,
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
    pub removed: Vec<Digest>,
    /// Bytes that this set free, blobs included.
    pub freed_bytes: u64,
    /// Bytes free now.
    pub free_bytes: u64,
}
