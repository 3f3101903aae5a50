//! The store: what is offered to the worker.
//!
//! ```text
//!  DIRECTORY/blobs/   manifests, configs, layers as fetched; kept to save downloads
//!            images/  a record per image that has a root disk
//!            disks/   root disks; whatever is here is complete
//!            tmp/     half-made things, one locked directory per running store
//! ```

use std::{collections::HashSet, fs, sync::Arc};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Digest, GarbageReport, ImageError, ImageStoreConfig, ImageSummary, ProgressSender,
    ResolvedImage, RootDisk,
    blobs::Blobs,
    build::disk_path,
    inner::Inner,
    records::Records,
    reference::{is_archive, parse_reference, pinned_digest},
    registry::Registry,
    session::{Session, make_directory},
};

/// Images built at the same time.
const PARALLEL_BUILDS: usize = 2;

/// The images of a host. Clones share everything; when the last one goes, builds that are going on
/// end.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
    _closes: Arc<DropGuard>,
}

impl ImageStore {
    /// Opens the store, making it when missing and removing what an earlier crash left half-made.
    /// One process has a store open at a time. Blocks on the file system.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the directory can't be made or read.
    pub fn open(config: ImageStoreConfig) -> Result<Self, ImageError> {
        let directory = &config.directory;
        make_directory(directory)?;
        // Paths of root disks are handed to other processes: they must not depend on where this one
        // stands.
        let directory = fs::canonicalize(directory)
            .map_err(|error| ImageError::io("find", directory, error))?;
        let disks = directory.join("disks");
        make_directory(&disks)?;
        let has_disk = |digest: &Digest| disk_path(&disks, digest).is_file();
        let cancelled = CancellationToken::new();
        let inner = Arc::new(Inner {
            session: Session::start(&directory.join("tmp"))?,
            blobs: Blobs::open(directory.join("blobs"))?,
            records: Records::open(directory.join("images"), has_disk)?,
            registry: Registry::new(&config)?,
            builds: Semaphore::new(PARALLEL_BUILDS),
            cancelled: cancelled.clone(),
            flights: Mutex::default(),
            blob_flights: Mutex::default(),
            disks,
            config,
        });
        inner.remove_orphans()?;
        Ok(Self { inner, _closes: Arc::new(cancelled.drop_guard()) })
    }

    /// Finds out which image a reference means, fetching only its manifest and config. Names given
    /// at import, and digests of images that have a root disk, need no registry, whatever registry
    /// is named before the digest.
    ///
    /// # Errors
    /// Any but those of building; see [`ImageError::is_client_fault`].
    pub async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        self.inner.resolve(reference).await
    }

    /// The image's root disk, fetched and built when it is not there. Callers for one image share
    /// one build, which ends with the last who waits for it.
    ///
    /// # Errors
    /// All kinds.
    pub async fn root_disk(
        &self,
        image: &ResolvedImage,
        progress: &ProgressSender,
    ) -> Result<RootDisk, ImageError> {
        let Some(digest) = &image.reference.digest else {
            let reason = "an image is built by its `sha256:` digest; resolve it first".to_owned();
            return Err(ImageError::InvalidReference {
                reference: image.requested.clone(),
                reason,
            });
        };
        let known = self.inner.records.get(digest);
        let disk = match (self.inner.ready(digest), &known) {
            (Some(disk), Some(_)) => disk,
            _ if is_from_archive(image) => {
                return Err(ImageError::NotFound {
                    what: image.requested.clone(),
                    hint: "it came from an archive and was removed: import the archive again"
                        .to_owned(),
                });
            }
            _ => {
                let (image, manifest) = (image.clone(), digest.clone());
                self.inner
                    .build_once(digest, progress, |inner, progress, wanted| {
                        inner.pull_and_build(image, manifest, progress, wanted).boxed()
                    })
                    .await?
            }
        };
        let (inner, image, digest) = (Arc::clone(&self.inner), image.clone(), digest.clone());
        self.blocking(move || inner.note_use(&image, &digest)).await?;
        Ok(disk)
    }

    /// The root disk, if it is there already. Costs one `stat`.
    #[must_use]
    pub fn ready_root_disk(&self, digest: &Digest) -> Option<RootDisk> {
        self.inner.ready(digest)
    }

    /// Whether an image with a root disk was last known by this reference. Asks no registry: a tag
    /// may have moved.
    #[must_use]
    pub fn knows(&self, reference: &str) -> bool {
        if let Some(digest) = pinned_digest(reference) {
            return self.inner.records.get(&digest).is_some();
        }
        let Ok(parsed) = parse_reference(reference, &self.inner.config.default_registry) else {
            return false;
        };
        self.inner.records.named(&parsed.canonical()).is_some()
    }

    /// Takes in `docker-archive:FILE[:reference]`, `oci-archive:FILE[:tag]` or
    /// `oci:DIRECTORY[:tag]` and builds its root disk; dropping the future ends that. `name` is how
    /// it is referred to from then on; without one, the archive's own name for it is used, and
    /// where it has none, the digest. The file must stay as it is until this is done.
    ///
    /// # Errors
    /// All but those of registries.
    pub async fn import(
        &self,
        source: &str,
        name: Option<&str>,
        progress: &ProgressSender,
    ) -> Result<ImageSummary, ImageError> {
        self.inner.import(source, name, progress).await
    }

    /// All images with a root disk, the one used last first.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub async fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        let inner = Arc::clone(&self.inner);
        self.blocking(move || {
            let records = &inner.records;
            let summary = |(digest, record): &_| records.summary(digest, record);
            let mut images: Vec<_> = records.all().iter().map(summary).collect();
            images.sort_by_key(|image| std::cmp::Reverse(image.last_used));
            Ok(images)
        })
        .await
    }

    /// Removes a name, and with its last name, or by digest, the image. `in_use` are the digests
    /// that machines have.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::InUse`], [`ImageError::Io`].
    pub async fn remove(
        &self,
        name_or_digest: &str,
        in_use: &HashSet<Digest>,
    ) -> Result<(), ImageError> {
        let (inner, name, in_use) =
            (Arc::clone(&self.inner), name_or_digest.to_owned(), in_use.clone());
        self.blocking(move || inner.remove(&name, &in_use)).await
    }

    /// Makes room when less than `wanted_free` bytes are free: first blobs that are kept only to
    /// save downloads, then root disks not in use, least recently used first. Imported images are
    /// left alone, since nothing could bring them back.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub async fn collect_garbage(
        &self,
        in_use: &HashSet<Digest>,
        wanted_free: u64,
    ) -> Result<GarbageReport, ImageError> {
        let (inner, in_use) = (Arc::clone(&self.inner), in_use.clone());
        self.blocking(move || inner.collect_garbage(&in_use, wanted_free)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let interrupted =
            || ImageError::Interrupted { what: "looking after the image store".to_owned() };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(interrupted()))
    }
}

/// Whether no registry has it.
fn is_from_archive(image: &ResolvedImage) -> bool {
    image.imported || is_archive(&image.reference.registry)
}

impl Inner {
    /// Marks an image as used now, and known by the reference that was used. By digest it is known
    /// anyway.
    fn note_use(&self, image: &ResolvedImage, digest: &Digest) -> Result<(), ImageError> {
        self.records.touch(digest);
        let pinned = pinned_digest(&image.requested).is_some();
        let is_digest = image.requested.parse::<Digest>().is_ok();
        let is_name = !is_digest && (!pinned || self.records.is_nameless(digest));
        if !is_from_archive(image)
            && is_name
            && let Ok(parsed) = parse_reference(&image.requested, &self.config.default_registry)
            && self.records.local(&parsed.canonical()).is_none()
        {
            self.records.set_name(digest, &parsed.canonical(), false, self.session.path())?;
        }
        Ok(())
    }
}
