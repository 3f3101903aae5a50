//! Images of registries that need no registry, in front of a real store for archives.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use caddis_api::{ApiError, ErrorCode};
use caddis_bus::message::ImageSummary;
use caddis_image::{
    Digest, ImageConfig, ImageError, ImageReference, ImageStore, ImageStoreConfig, OwnFile,
    Progress, ResolvedImage, RootDisk, parse_reference,
};
use caddis_vmm::Patch;
use caddis_worker::{fake::image_error, host::Images};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

/// Bytes that a pretended image is said to have.
const SIZE: u64 = 30_000_000;

/// Where getting an image can be held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Asking the registry what the image is: a create waits for that.
    Resolve,
    /// Pulling it, with a third of it there.
    Pull,
}

/// Every image of a registry, but for repositories named `missing`, which aren't there, and
/// `broken`, which can't be pulled; and those that were imported.
#[derive(Debug, Clone)]
pub struct FakeImages {
    store: ImageStore,
    /// Pulled ones by digest: name, and since when.
    pulled: Arc<Mutex<BTreeMap<Digest, (String, String)>>>,
    held: watch::Sender<HashSet<Stage>>,
    /// Stages at which something waits, or has waited.
    reached: watch::Sender<HashSet<Stage>>,
    /// No registry answers.
    away: Arc<AtomicBool>,
}

impl FakeImages {
    /// With a store in this directory.
    pub(super) fn open(directory: &Path) -> Result<Self, ImageError> {
        let store = ImageStore::open(ImageStoreConfig::new(directory))?;
        let (held, reached) = (watch::Sender::default(), watch::Sender::default());
        Ok(Self { store, pulled: Arc::default(), held, reached, away: Arc::default() })
    }

    /// Whether registries answer from now on.
    pub fn set_registries_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// From now on nothing gets past this stage.
    pub fn hold(&self, stage: Stage) {
        self.held.send_if_modified(|held| held.insert(stage));
    }

    /// What is held, and what comes, goes on.
    pub fn release(&self) {
        self.held.send_modify(HashSet::clear);
    }

    /// Waits until something has come to this stage.
    pub async fn reached(&self, stage: Stage) {
        // The sender lives in self.
        let _ = self.reached.subscribe().wait_for(|reached| reached.contains(&stage)).await;
    }

    async fn pass(&self, stage: Stage) {
        self.reached.send_if_modified(|reached| reached.insert(stage));
        // The sender lives in self.
        let _ = self.held.subscribe().wait_for(|held| !held.contains(&stage)).await;
    }

    fn pulled(&self) -> MutexGuard<'_, BTreeMap<Digest, (String, String)>> {
        self.pulled.lock()
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn resolve(&self, requested: &str) -> Result<ResolvedImage, ApiError> {
        self.pass(Stage::Resolve).await;
        if Images::knows(&self.store, requested) {
            return Images::resolve(&self.store, requested).await;
        }
        let parsed = parse_reference(requested, "docker.io").map_err(image_error)?;
        let known = parsed.digest.as_ref().is_some_and(|digest| self.pulled().contains_key(digest));
        if self.away.load(Ordering::Relaxed) && !known {
            let (registry, what) = (parsed.registry, parsed.repository);
            let error =
                ImageError::Unreachable { registry, what, reason: "told to be away".to_owned() };
            return Err(image_error(error));
        }
        if parsed.repository.ends_with("missing") {
            let hint = "check the name and the tag".to_owned();
            let error = ImageError::NotFound { what: requested.to_owned(), hint };
            return Err(image_error(error));
        }
        let made_up = Digest::of(parsed.canonical().as_bytes());
        let reference = ImageReference {
            digest: parsed.digest.or(Some(made_up)),
            registry: parsed.registry,
            repository: parsed.repository,
            tag: parsed.tag,
            labels: None,
        };
        Ok(ResolvedImage {
            requested: requested.to_owned(),
            reference,
            config: ImageConfig {
                cmd: vec!["sleep".to_owned(), "inf".to_owned()],
                ..ImageConfig::default()
            },
            download_size: SIZE,
            imported: false,
        })
    }

    async fn root_disk(
        &self,
        image: &ResolvedImage,
        progress: &watch::Sender<Progress>,
    ) -> Result<RootDisk, ApiError> {
        let reference = &image.reference;
        let Some(digest) = &reference.digest else {
            return Err(ApiError::internal("an image that was never resolved"));
        };
        if Images::ready_root_disk(&self.store, digest).is_some() {
            return Images::root_disk(&self.store, image, progress).await;
        }
        progress.send_replace(Progress {
            step: "pull".to_owned(),
            bytes_done: SIZE / 3,
            bytes_total: SIZE,
        });
        self.pass(Stage::Pull).await;
        if reference.repository.ends_with("broken") {
            let error = ImageError::Unreachable {
                registry: reference.registry.clone(),
                what: reference.repository.clone(),
                reason: "told to fail".to_owned(),
            };
            return Err(image_error(error));
        }
        let tag = reference.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let name = format!("{}/{}{tag}", reference.registry, reference.repository);
        self.pulled()
            .entry(digest.clone())
            .or_insert_with(|| (name, jiff::Timestamp::now().to_string()));
        Ok(RootDisk { path: "/nowhere".into(), size: 1 })
    }

    fn ready_root_disk(&self, digest: &Digest) -> Option<RootDisk> {
        Images::ready_root_disk(&self.store, digest)
    }

    fn knows(&self, reference: &str) -> bool {
        Images::knows(&self.store, reference)
    }

    fn patches(&self, _: &Path, _: &[OwnFile]) -> std::io::Result<Vec<Patch>> {
        Ok(Vec::new())
    }

    fn unwritten(&self, _: &Path, files: Vec<OwnFile>, _: bool) -> std::io::Result<Vec<OwnFile>> {
        Ok(files)
    }

    async fn import(
        &self,
        source: &str,
        name: Option<&str>,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageSummary, ApiError> {
        Images::import(&self.store, source, name, progress).await
    }

    async fn list(&self) -> Result<Vec<ImageSummary>, ApiError> {
        let mut images = Images::list(&self.store).await?;
        let pulled = |(digest, (name, created_at)): (&Digest, &(String, String))| ImageSummary {
            digest: digest.to_string(),
            names: vec![name.clone()],
            size: SIZE,
            created_at: created_at.clone(),
            machines: 0,
        };
        images.extend(self.pulled().iter().map(pulled));
        Ok(images)
    }

    async fn remove(&self, name: &str, in_use: &HashSet<Digest>) -> Result<(), ApiError> {
        let found = self
            .pulled()
            .iter()
            .find(|(digest, (known, _))| digest.as_str() == name || known == name)
            .map(|found| found.0.clone());
        let Some(digest) = found else { return Images::remove(&self.store, name, in_use).await };
        if in_use.contains(&digest) {
            return Err(ApiError::new(
                ErrorCode::FailedPrecondition,
                ImageError::InUse { digest }.to_string(),
            ));
        }
        self.pulled().remove(&digest);
        Ok(())
    }

    async fn collect_garbage(&self, _: &HashSet<Digest>, _: u64) -> Result<(), ApiError> {
        Ok(())
    }
}
