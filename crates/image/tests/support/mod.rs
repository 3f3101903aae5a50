//! What the tests of this crate share: images built in memory, a registry that misbehaves on
//! demand, a store in a directory of its own whose surroundings are watched, and eyes for ext4
//! images.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod archive;
pub mod ext4;
pub mod image;
pub mod registry;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use caddis_image::{ImageError, ImageStore, ImageStoreConfig, Progress, RootDisk};
use tempfile::TempDir;
use tokio::sync::watch;

/// A store in a directory with a neighbour that nobody may touch.
pub struct World {
    pub outside: TempDir,
    pub config: ImageStoreConfig,
}

impl World {
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "unpacking images needs root: run the tests as root"
        );
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("canary"), "alive").unwrap();
        fs::create_dir(outside.path().join("neighbour")).unwrap();
        let mut config = ImageStoreConfig::new(outside.path().join("store"));
        config.root_disk_size = 128 << 20;
        config.limits.unpacked_bytes = 64 << 20;
        config.limits.keep_free_bytes = 0;
        config.transfer.first_pause = Duration::from_millis(1);
        Self { outside, config }
    }

    /// With this registry allowed over plain HTTP.
    pub fn trusting(registry: &str) -> Self {
        let mut world = Self::new();
        world.config.insecure_registries.push(registry.to_owned());
        world
    }

    pub fn open(&self) -> ImageStore {
        ImageStore::open(self.config.clone()).unwrap()
    }

    pub fn store_path(&self, name: &str) -> PathBuf {
        self.config.directory.join(name)
    }

    /// Nothing beside the store changed.
    pub fn assert_untouched(&self) {
        assert_eq!(names(self.outside.path()), ["canary", "neighbour", "store"]);
        assert_eq!(fs::read(self.outside.path().join("canary")).unwrap(), b"alive");
        assert_eq!(names(&self.outside.path().join("neighbour")), [""; 0]);
    }

    /// Nothing beside the store changed, and nothing in it looks like an image or is half-made.
    pub async fn assert_nothing_came_of_it(&self, store: &ImageStore) {
        self.assert_untouched();
        assert_eq!(store.list().await.unwrap(), []);
        assert_eq!(names(&self.store_path("disks")), [""; 0]);
        assert_eq!(names(&self.store_path("images")), [""; 0]);
        self.assert_no_work_left();
        for blob in names(&self.store_path("blobs")) {
            let bytes = fs::read(self.store_path("blobs").join(&blob)).unwrap();
            assert_eq!(
                image::digest(&bytes),
                format!("sha256:{blob}"),
                "only verified blobs are kept"
            );
        }
    }

    pub fn assert_no_work_left(&self) {
        for session in names(&self.store_path("tmp")) {
            assert_eq!(names(&self.store_path("tmp").join(session)), [""; 0]);
        }
    }
}

/// Names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Resolves and builds.
pub async fn pull(store: &ImageStore, reference: &str) -> Result<RootDisk, ImageError> {
    let image = store.resolve(reference).await?;
    store.root_disk(&image, &progress()).await
}

pub fn progress() -> watch::Sender<Progress> {
    watch::channel(Progress::default()).0
}
