//! Volumes that are restored: empty at first, and filled from a backing over NBD.

use std::{
    fs::File,
    io,
    net::Shutdown,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::{
    Busy, Inner, VolumeStore, blocking,
    daemon::{BACKING, Daemon, VOLUME},
    ending::EndsWhenDropped,
};
use crate::{NewVolume, Progress, Volume, VolumeError, VolumeId, record::Record};

/// Between two looks at how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Longest address of a unix socket on Linux, with its zero, bytes.
const ADDRESS: usize = 108;

const JOB: &str = "hydrate";

impl VolumeStore {
    /// Makes a volume without contents, not even a file system: they are to come from a backing, by
    /// [`Self::hydrate`] or by a VM, until [`Self::mark_whole`]. Dropping it leaves nothing behind,
    /// or, at the very end, the volume.
    ///
    /// # Errors
    /// When there is one with this id, or no room. Nothing is left of it.
    pub async fn create_for_restore(&self, new: NewVolume) -> Result<Volume, VolumeError> {
        let NewVolume { id, size, filesystem, encrypted, created_at } = new;
        let inner = &self.inner;
        let work = inner.work(&id, size)?;
        let key = if encrypted { Some(inner.new_key(&id)?) } else { None };
        let (key, wrapped) = key.unzip();
        inner.disks.create_for_backing(&work.disk(), size.bytes(), key.as_ref()).await?;
        let mut record = Record::new(id, size, filesystem, wrapped, created_at);
        record.set_restoring(true);
        inner.publish(work, record).await
    }

    /// Notes that a volume has all of its contents, so that it is opened without a backing from now
    /// on. Also while it is in use. Blocking.
    ///
    /// # Errors
    /// When there is no such volume, or its record can't be written.
    pub fn mark_whole(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let mut state = self.inner.state.lock();
        if !self.inner.record(&state, id)?.is_restoring() {
            return Ok(());
        }
        self.inner.change(&mut state, id, |record| record.set_restoring(false)).map(drop)
    }

    /// Copies what a volume that nobody uses does not have yet from its backing: an NBD server at a
    /// socket, the default export. It has all when this succeeds, durably, and is then to be
    /// [marked](Self::mark_whole). Dropping this ends it cleanly, for which [`Self::open_writer`]
    /// waits; what was copied stays. It may be repeated.
    ///
    /// # Errors
    /// [`VolumeError::Backing`] when the backing can't be read or reached. When the volume is in
    /// use or deleted, its key can't be had, or there is no room.
    pub async fn hydrate(
        &self,
        id: &VolumeId,
        backing: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), VolumeError> {
        let inner = &self.inner;
        inner.settled(id).await;
        let (busy, record) = inner.take(id, "its restore")?;
        if !record.is_restoring() {
            return Ok(());
        }
        let (_end, told) = EndsWhenDropped::new(&busy);
        let (inner, backing, progress) = (inner.clone(), backing.to_owned(), progress.clone());
        let task = tokio::spawn(async move {
            let hydration = Hydration { inner, record, backing, progress };
            hydration.run(busy, told).await
        });
        let interrupted = || VolumeError::Interrupted("restore the volume".to_owned());
        task.await.unwrap_or_else(|_| Err(interrupted()))
    }
}

struct Hydration {
    inner: Arc<Inner>,
    record: Record,
    backing: PathBuf,
    progress: watch::Sender<Progress>,
}

impl Hydration {
    /// Until it is done or told to end. The volume is free afterwards.
    async fn run(self, busy: Busy, mut told: oneshot::Receiver<()>) -> Result<(), VolumeError> {
        let interrupted = || VolumeError::Interrupted("restore the volume".to_owned());
        let backing = connect(&self.backing).map_err(|error| self.failed(error.to_string()))?;
        let mut daemon = tokio::select! {
            started = self.start(&busy, &backing) => started?,
            _ = &mut told => return Err(interrupted()),
        };
        let outcome = tokio::select! {
            outcome = self.copy(&mut daemon) => outcome,
            _ = told => Err(interrupted()),
        };
        // A read may be under way that takes as long as the store is away. It fails now, so that
        // the daemon can write what it has.
        let _ = backing.shutdown(Shutdown::Both);
        daemon.quit().await;
        outcome?;
        let disk = self.inner.disk(&self.record.volume());
        blocking("restore the volume", move || {
            let synced = File::options().write(true).open(&disk).and_then(|file| file.sync_all());
            drop(busy);
            synced.map_err(|error| VolumeError::io("sync", &disk, error))
        })
        .await
    }

    /// A daemon that has nothing open yet.
    async fn start(&self, busy: &Busy, backing: &UnixStream) -> Result<Daemon, VolumeError> {
        let key = self.inner.key(&self.record)?;
        self.inner.grow_file(&self.record, key.as_ref()).await?;
        let what = format!("restore volume {}", self.record.id);
        let started = Daemon::start(&self.inner, busy, &what, key.as_ref(), Some(backing)).await;
        started.map_err(|error| match error {
            // Its only node at that time.
            VolumeError::Program { reason, .. } if reason.contains("--blockdev") => {
                self.failed(reason)
            }
            error => error,
        })
    }

    async fn copy(&self, daemon: &mut Daemon) -> Result<(), VolumeError> {
        let key = self.inner.key(&self.record)?;
        daemon.open_volume(key.as_ref(), json!(BACKING), false).await?;
        let stream = json!({ "job-id": JOB, "device": VOLUME });
        daemon.expect("block-stream", stream).await?;
        let mut is_read = true;
        loop {
            match tokio::time::timeout(PROGRESS_INTERVAL, daemon.event()).await {
                Ok(event) => {
                    let event = event?;
                    let said = |field: &str| event.pointer(field).and_then(Value::as_str);
                    match said("/event") {
                        Some("BLOCK_JOB_ERROR") => {
                            is_read = said("/data/operation") == Some("read");
                        }
                        Some("BLOCK_JOB_COMPLETED") => {
                            return match said("/data/error") {
                                None => {
                                    self.tell(event.get("data"));
                                    Ok(())
                                }
                                Some(reason) => Err(self.ended(daemon, is_read, reason)),
                            };
                        }
                        _ => {}
                    }
                }
                Err(_) => {
                    let jobs = daemon.execute("query-block-jobs", json!({})).await?;
                    self.tell(jobs.ok().as_ref().and_then(|jobs| jobs.get(0)));
                }
            }
        }
    }

    /// What a job says of itself.
    fn tell(&self, job: Option<&Value>) {
        let number = |name| job.and_then(|job| job.get(name)).and_then(Value::as_u64);
        if let (Some(done), Some(total)) = (number("offset"), number("len")) {
            self.progress.send_replace(Progress { done, total });
        }
    }

    fn ended(&self, daemon: &Daemon, is_read: bool, reason: &str) -> VolumeError {
        let error = daemon.error(reason.to_owned());
        match error {
            VolumeError::Program { reason, .. } if is_read => self.failed(reason),
            error => error,
        }
    }

    fn failed(&self, reason: String) -> VolumeError {
        VolumeError::Backing { id: self.record.id.clone(), reason }
    }
}

/// Connects to a socket; by way of its directory when the path is longer than addresses can be.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (true, Some(directory), Some(name)) =
        (socket.as_os_str().len() >= ADDRESS, socket.parent(), socket.file_name())
    else {
        return UnixStream::connect(socket);
    };
    let opened = File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short)
}
