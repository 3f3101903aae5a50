//! Finding out what a reference means, and getting its layers, from registries.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use tempfile::NamedTempFile;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Digest, ImageError, ImageReference, ProgressSender, ResolvedImage, RootDisk,
    build::{Ingredients, PendingLayer, interrupted, while_wanted},
    inner::Inner,
    layer::inflate::{Place, Source},
    manifest::{self, BlobDescriptor, Config, Document, Manifest},
    meter::Meter,
    reference::{ParsedReference, is_of_archive, parse_reference, pinned_digest},
    registry::{Repository, Wanted},
    search::{Search, Step},
};

/// An image of the store under the name that was asked for.
fn named(
    requested: &str,
    name: ParsedReference,
    image: ResolvedImage,
    imported: bool,
) -> ResolvedImage {
    let ParsedReference { registry, repository, tag, digest } = name;
    let labels = image.reference.labels;
    ResolvedImage {
        requested: requested.to_owned(),
        reference: ImageReference { registry, repository, tag, digest, labels },
        config: image.config,
        download_size: image.download_size,
        imported,
    }
}

impl Inner {
    /// See [`crate::ImageStore::resolve`].
    pub(crate) async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        let stored = pinned_digest(reference).and_then(|digest| self.records.get(&digest));
        let is_digest = reference.parse::<Digest>().is_ok();
        if is_digest || is_of_archive(reference) {
            let hint = match is_digest {
                true => {
                    "no image with this digest is on the host; give the registry and repository too"
                }
                false => "no image with this digest is on the host: import its archive again",
            };
            let not_found =
                || ImageError::NotFound { what: reference.to_owned(), hint: hint.to_owned() };
            let record = stored.ok_or_else(not_found)?;
            return Ok(ResolvedImage { requested: reference.to_owned(), ..record.image });
        }
        let parsed = parse_reference(reference, &self.config.default_registry)?;
        if let (Some(_), Some(record)) = (&parsed.digest, stored) {
            // The content is the same wherever it comes from, so nobody needs to be asked.
            return Ok(named(reference, parsed, record.image, false));
        }
        if let Some(record) = self.records.local(&parsed.canonical()) {
            let digest = record.image.reference.digest.clone();
            let parsed = ParsedReference { digest, ..parsed };
            return Ok(named(reference, parsed, record.image, true));
        }
        let repository =
            Repository { registry: parsed.registry.clone(), name: parsed.repository.clone() };
        let asking = self.find_manifest(&repository, &parsed);
        let patience = self.config.transfer.resolve_timeout;
        let (digest, manifest, config) = in_time(patience, &repository, asking).await?;
        Ok(ResolvedImage {
            requested: reference.to_owned(),
            download_size: manifest.download_size(),
            reference: ImageReference {
                registry: parsed.registry,
                repository: parsed.repository,
                tag: parsed.tag,
                digest: Some(digest),
                labels: config.labels,
            },
            config: config.run,
            imported: false,
        })
    }

    /// The manifest for the VMs' processor, wherever in indexes it is.
    async fn find_manifest(
        &self,
        repository: &Repository,
        parsed: &ParsedReference,
    ) -> Result<(Digest, Manifest, Config), ImageError> {
        let (what, level) = (repository.place(parsed.version()), self.config.amd64_level);
        let (mut digest, bytes) = self.manifest_bytes(repository, parsed.version()).await?;
        let mut document = manifest::parse(&what, &bytes, &self.config.limits)?;
        let mut search = Search::new(&what, level);
        loop {
            match document {
                Document::Index(entries) => search.add(&entries)?,
                Document::Manifest(manifest) => {
                    let config =
                        self.config_of(repository, &manifest).await?.runs_with(&what, level)?;
                    return Ok((digest, manifest, config));
                }
            }
            document = loop {
                match search.next()? {
                    Step::Take(taken) => {
                        digest = taken;
                        break self.listed(repository, &what, &digest).await?;
                    }
                    Step::Open(digest) => match self.listed(repository, &what, &digest).await {
                        Ok(Document::Index(entries)) => search.add(&entries)?,
                        Ok(Document::Manifest(manifest)) => {
                            let config = self.config_of(repository, &manifest).await;
                            search.decide(config.map(|config| config.platform))?;
                        }
                        Err(error) => search.decide(Err(error))?,
                    },
                }
            };
        }
    }

    /// What an index lists.
    async fn listed(
        &self,
        repository: &Repository,
        index: &str,
        digest: &Digest,
    ) -> Result<Document, ImageError> {
        let found = self.manifest_bytes(repository, digest.as_str()).await;
        let found = found.map_err(|error| match error {
            ImageError::NotFound { .. } => ImageError::NotFound {
                what: index.to_owned(),
                hint: format!(
                    "it is an index, and the registry does not have {digest}, which it lists; push \
                     the image again with all of its builds"
                ),
            },
            other => other,
        });
        manifest::parse(&repository.place(digest.as_str()), &found?.1, &self.config.limits)
    }

    /// A manifest or index, verified and stored, with its digest. By digest, the store's own copy
    /// will do.
    async fn manifest_bytes(
        &self,
        repository: &Repository,
        version: &str,
    ) -> Result<(Digest, Vec<u8>), ImageError> {
        let limit = self.config.limits.manifest_bytes;
        let pinned = version.parse::<Digest>().ok();
        if let Some(digest) = &pinned
            && let Some(bytes) = self.blobs.read(digest, limit)
        {
            return Ok((digest.clone(), bytes));
        }
        let known = |digest: &Digest| self.blobs.read(digest, limit);
        let (bytes, claimed) = self.registry.manifest(repository, version, limit, known).await?;
        let what = format!("manifest of {}", repository.place(version));
        if let Some(expected) = pinned.or(claimed) {
            manifest::verify(&what, &bytes, &expected)?;
        }
        let digest = Digest::of(&bytes);
        self.blobs.write(&digest, &bytes, self.session.path())?;
        Ok((digest, bytes))
    }

    async fn config_of(
        &self,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<Config, ImageError> {
        let BlobDescriptor { digest, size } = &manifest.config;
        let what = format!("{}@{digest}", repository.name);
        let bytes = match self.blobs.read(digest, *size) {
            Some(bytes) => bytes,
            None => {
                let bytes =
                    self.registry.small_blob(repository, digest, *size).await.map_err(|error| {
                        match error {
                            ImageError::TooLarge { .. } => ImageError::corrupt(
                                format!("config {what}"),
                                format!("it has more than the {size} bytes announced"),
                            ),
                            other => other,
                        }
                    })?;
                if bytes.len() as u64 != *size {
                    let reason = format!("it has {} bytes, the manifest says {size}", bytes.len());
                    return Err(ImageError::corrupt(format!("config {what}"), reason));
                }
                manifest::verify(&format!("config {what}"), &bytes, digest)?;
                self.blobs.write(digest, &bytes, self.session.path())?;
                bytes
            }
        };
        manifest::parse_config(&what, &bytes, manifest.layers.len())
    }

    /// Gets all layers and builds the root disk.
    pub(crate) async fn pull_and_build(
        self: Arc<Self>,
        image: ResolvedImage,
        digest: Digest,
        progress: ProgressSender,
        wanted: CancellationToken,
    ) -> Result<RootDisk, ImageError> {
        let _permit = self.turn_to_build(&wanted).await?;
        match self.try_pull_and_build(&image, &digest, &progress, &wanted).await {
            // A layer that was in the store had decayed and was removed: fetch it anew, once.
            Err((ImageError::Corrupt { .. }, true)) => self
                .try_pull_and_build(&image, &digest, &progress, &wanted)
                .await
                .map_err(|(error, _)| error),
            other => other.map_err(|(error, _)| error),
        }
    }

    /// The error comes with whether stored layers were used that may be to blame.
    async fn try_pull_and_build(
        self: &Arc<Self>,
        image: &ResolvedImage,
        digest: &Digest,
        progress: &ProgressSender,
        wanted: &CancellationToken,
    ) -> Result<RootDisk, (ImageError, bool)> {
        let fresh = |error| (error, false);
        let repository = Repository {
            registry: image.reference.registry.clone(),
            name: image.reference.repository.clone(),
        };
        let end = Instant::now() + self.config.transfer.pull_timeout;
        let left = || end.saturating_duration_since(Instant::now());
        let fetching =
            in_time(left(), &repository, self.manifest_bytes(&repository, digest.as_str()));
        let (_, bytes) = while_wanted(wanted, fetching).await.map_err(fresh)?;
        let manifest =
            match manifest::parse(&image.requested, &bytes, &self.config.limits).map_err(fresh)? {
                Document::Manifest(manifest) => manifest,
                Document::Index(_) => {
                    let what = format!("manifest {digest} of {}", image.requested);
                    return Err(fresh(ImageError::corrupt(
                        what,
                        "it is an index, not resolved for this platform",
                    )));
                }
            };
        let fetching = in_time(left(), &repository, self.config_of(&repository, &manifest));
        let config = while_wanted(wanted, fetching).await.map_err(fresh)?;

        let mut blobs = vec![digest.clone(), manifest.config.digest.clone()];
        blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
        let _pins = self.blobs.pin(blobs.clone());
        let missing = |layer: &&BlobDescriptor| !self.blobs.has(&layer.digest, layer.size);
        let absent: Vec<&BlobDescriptor> = manifest.layers.iter().filter(missing).collect();
        let download: u64 = absent.iter().map(|layer| layer.size).sum();
        let reused: Vec<Digest> = manifest
            .layers
            .iter()
            .filter(|layer| !absent.contains(layer))
            .map(|layer| layer.digest.clone())
            .collect();
        self.check_space(download, &image.requested).map_err(fresh)?;

        let meter =
            Meter::new(progress.clone(), manifest.download_size(), manifest.download_size());
        let (layers, fetching) =
            self.fetch_layers(&repository, &manifest, &config.diff_ids, &meter, (end, wanted));
        let ingredients = Ingredients {
            image: image.clone(),
            digest: digest.clone(),
            layers,
            blobs,
            imported: false,
            meter,
            wanted: wanted.clone(),
        };
        let result = self.build(ingredients).await;
        drop(fetching); // aborts what a failure left under way
        result.map_err(|error| {
            let decayed = matches!(error, ImageError::Corrupt { .. }) && !reused.is_empty();
            if decayed {
                reused.iter().for_each(|digest| self.blobs.remove(digest));
            }
            (error, decayed)
        })
    }

    /// Starts fetching all layers, some at once; each is handed over as soon as it is there and
    /// verified.
    fn fetch_layers(
        self: &Arc<Self>,
        repository: &Repository,
        manifest: &Manifest,
        diff_ids: &[Digest],
        meter: &Arc<Meter>,
        (end, wanted): (Instant, &CancellationToken),
    ) -> (Vec<PendingLayer>, JoinSet<()>) {
        let slots = Arc::new(Semaphore::new(self.config.parallel_layers.max(1)));
        let mut tasks = JoinSet::new();
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            let (sender, ready) = oneshot::channel();
            layers.push(PendingLayer { ready, diff_id: diff_id.clone() });
            let (inner, slots, meter) = (Arc::clone(self), Arc::clone(&slots), Arc::clone(meter));
            let (repository, layer, wanted) = (repository.clone(), layer.clone(), wanted.clone());
            tasks.spawn(async move {
                let fetch = async {
                    let _slot = slots.acquire().await.map_err(|_| interrupted())?;
                    inner.fetch_layer(&repository, &layer, &meter).await
                };
                let left = end.saturating_duration_since(Instant::now());
                let fetched = while_wanted(&wanted, in_time(left, &repository, fetch)).await;
                let source = fetched.map(|()| Source {
                    what: format!("{}@{}", repository.name, layer.digest),
                    place: Place::Path(inner.blobs.path(&layer.digest)),
                    offset: 0,
                    length: layer.size,
                    digest: Some(layer.digest.clone()),
                });
                // Whoever unpacks may have failed already.
                let _ = sender.send(source);
            });
        }
        (layers, tasks)
    }

    /// Makes sure that a layer is in the store; images that are pulled at the same time share the
    /// transfer.
    async fn fetch_layer(
        self: &Arc<Self>,
        repository: &Repository,
        layer: &BlobDescriptor,
        meter: &Arc<Meter>,
    ) -> Result<(), ImageError> {
        loop {
            if self.blobs.has(&layer.digest, layer.size) {
                meter.pulled(layer.size as i64);
                return Ok(());
            }
            let (flight, joined) = self.blob_flight(repository, layer, meter);
            match flight.await {
                Ok(()) if joined => meter.pulled(layer.size as i64),
                // Another repository's trouble need not be ours.
                Err(error) if joined => {
                    let digest = &layer.digest;
                    tracing::debug!(%error, %digest, "a shared transfer failed, trying alone");
                    continue;
                }
                result => return result,
            }
            return Ok(());
        }
    }

    /// The transfer of this blob, and whether somebody else had started it.
    fn blob_flight(
        self: &Arc<Self>,
        repository: &Repository,
        layer: &BlobDescriptor,
        meter: &Arc<Meter>,
    ) -> (Shared<BoxFuture<'static, Result<(), ImageError>>>, bool) {
        let mut flights = self.blob_flights.lock();
        // One that has ended badly is nothing to join.
        let known = flights
            .get(&layer.digest)
            .and_then(WeakShared::upgrade)
            .filter(|flight| flight.peek().is_none());
        if let Some(flight) = known {
            return (flight, true);
        }
        flights.retain(|_, flight| flight.upgrade().is_some());
        let fetch =
            fetch_blob(Arc::downgrade(self), repository.clone(), layer.clone(), Arc::clone(meter));
        let flight = fetch.boxed().shared();
        flights.extend(flight.downgrade().map(|weak| (layer.digest.clone(), weak)));
        (flight, false)
    }
}

/// Ends after so long, with an error that names the registry.
async fn in_time<T>(
    patience: Duration,
    repository: &Repository,
    work: impl Future<Output = Result<T, ImageError>>,
) -> Result<T, ImageError> {
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
        Err(ImageError::Unreachable {
            registry: repository.registry.clone(),
            what: repository.name.clone(),
            reason: "it timed out".to_owned(),
        })
    })
}

async fn fetch_blob(
    inner: Weak<Inner>,
    repository: Repository,
    layer: BlobDescriptor,
    meter: Arc<Meter>,
) -> Result<(), ImageError> {
    let inner = inner.upgrade().ok_or_else(interrupted)?;
    let scratch = inner.session.path();
    let failed = |error| ImageError::io("write a blob in", scratch, error);
    // The file is removed when this future is dropped before the end.
    let temporary = NamedTempFile::new_in(scratch).map_err(failed)?;
    let file = temporary.reopen().map_err(failed)?;
    let before = std::sync::atomic::AtomicU64::new(0);
    let wanted = Wanted { digest: layer.digest.clone(), size: layer.size };
    let progress = |done: u64| {
        let before = before.swap(done, std::sync::atomic::Ordering::Relaxed);
        meter.pulled(done as i64 - before as i64);
    };
    drop(inner.registry.blob(&repository, &wanted, file, progress).await?);
    temporary.persist(inner.blobs.path(&layer.digest)).map_err(|error| failed(error.error))?;
    Ok(())
}
