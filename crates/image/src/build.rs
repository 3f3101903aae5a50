//! From layers to a root disk in the store: one build per image at a time, shared by all who want
//! it, and ended when none of them waits for it any more.
//!
//! ```text
//!  fetch (parallel) ─▶ blob, verified ─┐
//!                                      ├─▶ unpack thread, layers in order ─▶ disk ─▶ fsync
//!  archive on disk ────────────────────┘   (next layer inflates ahead)       ─▶ rename
//! ```
//! Everything before the rename happens below the session's directory and is removed whatever
//! comes.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use futures::{FutureExt, future::BoxFuture};
use nix::sys::statvfs::statvfs;
use tokio::sync::{SemaphorePermit, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Digest, ImageError, Progress, ProgressSender, ResolvedImage, RootDisk, disk,
    flight::Flight,
    inner::Inner,
    layer::{
        Budget,
        inflate::{Inflated, Source, inflate},
        unpack::Unpacker,
    },
    meter::Meter,
    own_files,
    records::Record,
    session,
};

/// A layer that is, or soon will be, on disk.
pub(crate) struct PendingLayer {
    pub(crate) ready: oneshot::Receiver<Result<Source, ImageError>>,
    /// Digest of its content.
    pub(crate) diff_id: Digest,
}

/// What a build starts from.
pub(crate) struct Ingredients {
    pub(crate) image: ResolvedImage,
    /// Digest of its manifest, which names what is built.
    pub(crate) digest: Digest,
    pub(crate) layers: Vec<PendingLayer>,
    /// Digests of manifest, config and layers.
    pub(crate) blobs: Vec<Digest>,
    pub(crate) imported: bool,
    pub(crate) meter: Arc<Meter>,
    /// Cancelled when nobody wants the disk any more.
    pub(crate) wanted: CancellationToken,
}

impl Inner {
    /// Joins the build of this image, or starts it with `work`.
    ///
    /// The work is a task of its own, which goes on while one of the callers waits: when the last
    /// goes away, or the store is closed, its token is cancelled, and it ends and clears up by
    /// itself. Who comes then starts anew.
    pub(crate) async fn build_once(
        self: &Arc<Self>,
        digest: &Digest,
        progress: &ProgressSender,
        work: impl FnOnce(
            Arc<Self>,
            ProgressSender,
            CancellationToken,
        ) -> BoxFuture<'static, Result<RootDisk, ImageError>>,
    ) -> Result<RootDisk, ImageError> {
        let (mut flight, _wanted) = {
            let mut flights = self.lock_flights();
            let known = flights
                .get(digest)
                .and_then(|flight| Some((flight.clone(), flight.wanted.upgrade()?)));
            match known {
                Some(joined) => joined,
                None => {
                    let (flight, wanted) = self.take_off(digest, work);
                    flights.insert(digest.clone(), flight.clone());
                    (flight, wanted)
                }
            }
        };
        progress.send_replace(flight.progress.borrow_and_update().clone());
        let mut result = flight.result;
        loop {
            tokio::select! {
                biased;
                result = &mut result => return result,
                changed = flight.progress.changed() => match changed {
                    Ok(()) => {
                        let now = flight.progress.borrow_and_update().clone();
                        progress.send_replace(now);
                    }
                    Err(_) => return result.await,
                },
            }
        }
    }

    fn take_off(
        self: &Arc<Self>,
        digest: &Digest,
        work: impl FnOnce(
            Arc<Self>,
            ProgressSender,
            CancellationToken,
        ) -> BoxFuture<'static, Result<RootDisk, ImageError>>,
    ) -> (Flight, Arc<DropGuard>) {
        let (sender, progress) = watch::channel(Progress::default());
        let token = self.cancelled.child_token();
        let wanted = Arc::new(token.clone().drop_guard());
        let work = work(Arc::clone(self), sender, token);
        let landing = Landing {
            inner: Arc::clone(self),
            digest: digest.clone(),
            wanted: Arc::downgrade(&wanted),
        };
        let task = tokio::spawn(async move {
            let result = work.await;
            drop(landing);
            result
        });
        let result = async move {
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "the build of a root disk ended abnormally");
                Err(ImageError::Interrupted { what: "building the root disk".to_owned() })
            })
        };
        (
            Flight { result: result.boxed().shared(), progress, wanted: Arc::downgrade(&wanted) },
            wanted,
        )
    }

    /// Waits until few others build: a few at once are as fast as many, and the host keeps its
    /// breath.
    pub(crate) async fn turn_to_build(
        &self,
        wanted: &CancellationToken,
    ) -> Result<SemaphorePermit<'_>, ImageError> {
        while_wanted(wanted, async { self.builds.acquire().await.map_err(|_| interrupted()) }).await
    }

    /// Unpacks the layers, builds the disk, puts it and its record in place.
    pub(crate) async fn build(
        self: &Arc<Self>,
        ingredients: Ingredients,
    ) -> Result<RootDisk, ImageError> {
        let work = self.session.work_directory()?;
        let result = self.build_in(&work, ingredients).await;
        // Waited for, so that whoever sees the result sees no remains.
        let removed = tokio::task::spawn_blocking(move || session::remove(&work)).await;
        if let Err(error) = removed {
            tracing::warn!(%error, "could not clean up after a build");
        }
        result
    }

    async fn build_in(
        self: &Arc<Self>,
        work: &Path,
        ingredients: Ingredients,
    ) -> Result<RootDisk, ImageError> {
        let Ingredients { image, digest, layers, blobs, imported, meter, wanted } = ingredients;
        let tree = work.join("tree");
        // What encloses it is closed to others.
        DirBuilder::new()
            .mode(0o755)
            .create(&tree)
            .map_err(|error| ImageError::io("make", &tree, error))?;
        let entries = {
            let (inner, tree, meter, wanted) =
                (Arc::clone(self), tree.clone(), Arc::clone(&meter), wanted.clone());
            let unpacking =
                tokio::task::spawn_blocking(move || inner.unpack(&tree, layers, &meter, &wanted));
            unpacking.await.map_err(|error| {
                tracing::error!(%error, "unpacking ended abnormally");
                ImageError::Interrupted { what: "unpacking the image".to_owned() }
            })??
        };
        meter.building();
        let disk = work.join("disk.ext4");
        let size = self.config.root_disk_size;
        let file = disk::make(&disk, size, &digest, entries, &wanted).await?;
        let inner = Arc::clone(self);
        let finishing = tokio::task::spawn_blocking(move || {
            own_files::reserve(&tree)
                .map_err(|error| ImageError::io("keep room in", &tree, error))?;
            let has_room = || inner.check_space(0, "the root disk");
            disk::fill(&file, &disk, &tree, size, || still_wanted(&wanted), has_room)?;
            let place = inner.disk_path(&digest);
            let disk_bytes = disk::publish(&disk, &place)?;
            let record = Record::new(image, disk_bytes, blobs, imported);
            inner.records.insert(digest, record, inner.session.path())?;
            Ok(RootDisk { path: place, size })
        });
        finishing.await.unwrap_or_else(|_| {
            Err(ImageError::Interrupted { what: "building the root disk".to_owned() })
        })
    }

    /// Blocking; gives the number of entries.
    fn unpack(
        &self,
        tree: &Path,
        layers: Vec<PendingLayer>,
        meter: &Arc<Meter>,
        wanted: &CancellationToken,
    ) -> Result<u64, ImageError> {
        let budget = Arc::new(Budget::new(&self.config.limits));
        let still_wanted = || still_wanted(wanted);
        let mut unpacker =
            Unpacker::new(tree, &budget, self.config.limits.keep_free_bytes, &still_wanted)?;
        let start = |source: Source| -> Result<(String, Inflated), ImageError> {
            let meter = Arc::clone(meter);
            Ok((
                source.what.clone(),
                inflate(source, Arc::clone(&budget), move |bytes| meter.unpacked(bytes))?,
            ))
        };
        let mut layers = layers.into_iter().peekable();
        let mut ahead: Option<(String, Inflated)> = None;
        while let Some(layer) = layers.next() {
            let (what, inflated) = match ahead.take() {
                Some(started) => started,
                None => start(layer.ready.blocking_recv().unwrap_or_else(|_| Err(interrupted()))?)?,
            };
            // One layer ahead, if it has come already: two cores are busy then, and memory stays
            // bounded.
            if let Some(next) = layers.peek_mut()
                && let Ok(source) = next.ready.try_recv()
            {
                ahead = Some(start(source?)?);
            }
            unpacker.apply(&what, inflated, &layer.diff_id)?;
        }
        still_wanted()?;
        Ok(unpacker.entries)
    }

    /// Fails when this many bytes more would eat into what is kept free for others.
    pub(crate) fn check_space(&self, bytes: u64, what: &str) -> Result<(), ImageError> {
        let free = self.free_bytes()?;
        let kept = self.config.limits.keep_free_bytes;
        if free < bytes.saturating_add(kept) {
            return Err(ImageError::NoSpace {
                what: format!("for {what}"),
                reason: format!(
                    "{free} bytes are free, {bytes} are needed and {kept} kept for others"
                ),
            });
        }
        Ok(())
    }

    /// Bytes free for us in the store's file system.
    pub(crate) fn free_bytes(&self) -> Result<u64, ImageError> {
        let directory = &self.config.directory;
        let space = statvfs(directory).map_err(|error| {
            ImageError::io("look at the free space of", directory, error.into())
        })?;
        Ok(space.blocks_available().saturating_mul(space.fragment_size()))
    }

    /// Where the root disk of an image is, or would be.
    pub(crate) fn disk_path(&self, digest: &Digest) -> PathBuf {
        disk_path(&self.disks, digest)
    }

    pub(crate) fn ready(&self, digest: &Digest) -> Option<RootDisk> {
        let path = self.disk_path(digest);
        let size = fs::metadata(&path).ok()?.len();
        Some(RootDisk { path, size })
    }
}

/// Where the root disk of an image is below `disks`, or would be.
pub(crate) fn disk_path(disks: &Path, digest: &Digest) -> PathBuf {
    disks.join(format!("{}.ext4", digest.hex()))
}

/// Fails once nobody wants the result.
fn still_wanted(wanted: &CancellationToken) -> Result<(), ImageError> {
    if wanted.is_cancelled() { Err(interrupted()) } else { Ok(()) }
}

/// Ends work early when nobody wants its result any more.
pub(crate) async fn while_wanted<T>(
    wanted: &CancellationToken,
    work: impl Future<Output = Result<T, ImageError>>,
) -> Result<T, ImageError> {
    wanted.run_until_cancelled(work).await.unwrap_or_else(|| Err(interrupted()))
}

pub(crate) fn interrupted() -> ImageError {
    ImageError::Interrupted { what: "getting the image".to_owned() }
}

/// Takes the build off the list when it is over, also when it panicked.
struct Landing {
    inner: Arc<Inner>,
    digest: Digest,
    wanted: Weak<DropGuard>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.inner.lock_flights();
        // After one that nobody waited for, another may have begun.
        if flights.get(&self.digest).is_some_and(|flight| flight.wanted.ptr_eq(&self.wanted)) {
            flights.remove(&self.digest);
        }
    }
}
