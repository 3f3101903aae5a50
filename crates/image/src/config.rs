//! What an image store is told: where it lives, whom it may talk to, and how much it takes.

use std::{path::PathBuf, time::Duration};

/// Settings of an [`crate::ImageStore`].
#[derive(Debug, Clone)]
pub struct ImageStoreConfig {
    /// Root of the store. Made with mode 0700 when missing.
    pub directory: PathBuf,
    /// Registries spoken to over plain HTTP, `host[:port]`; also the only ones that may be on this
    /// host's loopback.
    pub insecure_registries: Vec<String>,
    /// A docker `config.json` with credentials; read anew at each use.
    pub registry_credentials: Option<PathBuf>,
    /// Registry of references that name none.
    pub default_registry: String,
    /// What is refused.
    pub limits: Limits,
    /// Virtual size of a root disk, bytes.
    pub root_disk_size: u64,
    /// Highest level of amd64 that the VMs' processor has, 1 to 4 (x86-64 psABI,
    /// "Micro-Architecture Levels").
    pub amd64_level: u8,
    /// Blobs fetched at once, per image.
    pub parallel_layers: usize,
    /// Patience with registries.
    pub transfer: Transfer,
}

impl ImageStoreConfig {
    /// The defaults, in this directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            insecure_registries: Vec::new(),
            registry_credentials: None,
            default_registry: "docker.io".to_owned(),
            limits: Limits::default(),
            root_disk_size: 8 << 30,
            amd64_level: 1,
            parallel_layers: 4,
            transfer: Transfer::default(),
        }
    }
}

/// Bounds on what an image may cost, so that a hostile one fails before it hurts the host.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes that all layers together inflate to.
    pub unpacked_bytes: u64,
    /// Number of layers. (Docker itself stops at 127.)
    pub layers: usize,
    /// Bytes of a manifest or index. (4 MiB is what the distribution specification asks registries
    /// to take.)
    pub manifest_bytes: u64,
    /// Bytes of an image's config.
    pub config_bytes: u64,
    /// Files, directories and so on in all layers together.
    pub entries: u64,
    /// Bytes of one layer as transferred.
    pub layer_compressed_bytes: u64,
    /// Bytes of the file system that are left free for others, always.
    pub keep_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: 8 << 30,
            layers: 500,
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
            entries: 1_000_000,
            layer_compressed_bytes: 8 << 30,
            keep_free_bytes: 512 << 20,
        }
    }
}

/// How long and how often a registry is tried.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest silence within an answer.
    pub idle_timeout: Duration,
    /// Tries before it is given up. What comes in earns further ones.
    pub attempts: u32,
    /// Pause after the first failed try; doubled after each further one.
    pub first_pause: Duration,
    /// Longest that is waited, per request, because a registry asks for it in `Retry-After`.
    pub longest_wait: Duration,
    /// Slowest a blob may come in on the whole, bytes per second, beyond a minute's grace.
    pub slowest_bytes_per_second: u64,
    /// Longest that finding out what a reference means may take, with all tries: shorter than
    /// clients wait, so that they are told which registry it is.
    pub resolve_timeout: Duration,
    /// Longest that fetching an image may take, with all tries: shorter than an operation that
    /// waits for it may.
    pub pull_timeout: Duration,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            attempts: 5,
            first_pause: Duration::from_millis(250),
            longest_wait: Duration::from_secs(20),
            slowest_bytes_per_second: 16 << 10,
            resolve_timeout: Duration::from_secs(50),
            pull_timeout: Duration::from_secs(25 * 60),
        }
    }
}
