//! The volumes of a host.
//!
//! ```text
//!  lock                   held by the process that manages them
//!  programs               open in each program that it runs
//!  volumes/ID/            disk.qcow2, volume.json
//!  trash/ID/              the same, deleted
//!  tmp/                   half-made; removed when the store is opened
//! ```
//! `volumes` and `trash` are made with the first volume and stay: without both, none was made here.
//! A volume comes and goes by a rename of its directory. Which of the two directories it belongs
//! in, its record says; a server that was killed in between is caught up with at the next open.

mod clone;
mod copy;
mod create;
mod daemon;
mod delete;
mod ending;
mod export;
mod fleecing;
mod grow;
mod hydrate;
mod places;
mod room;
mod writer;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, OpenOptions},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Check, Problem, SizeGib, Space, Usage, Volume, VolumeError, VolumeId, VolumeKey,
    disk::Disks,
    files,
    key::InstallationKey,
    lock::{self, FileLock},
    process::Programs,
    qcow2,
    record::Record,
};

pub use export::Export;
pub use fleecing::{FleecingImage, FleecingSpace};
pub use places::encrypted_volumes;
pub use writer::{Recorded, Writer};

/// Name of the file with a volume's data.
const DISK: &str = "disk.qcow2";

/// Where the volumes are, and what they may take.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Theirs alone; made with mode 0700 when it is not there.
    pub directory: PathBuf,
    /// The installation key.
    pub key: InstallationKey,
    /// For the declared sizes of all volumes together, GiB; none: not limited.
    pub limit: Option<u64>,
    /// `qemu-img`, by name or path.
    pub qemu_img: PathBuf,
    /// `mke2fs`, by name or path.
    pub mke2fs: PathBuf,
    /// `qemu-storage-daemon`, by name or path.
    pub storage_daemon: PathBuf,
}

impl StoreConfig {
    /// Below a directory, with the programs of the host and without a limit.
    #[must_use]
    pub fn new(directory: PathBuf, key: InstallationKey) -> Self {
        // Services may have a PATH without the directories of the system.
        let places = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].map(PathBuf::from);
        let mke2fs = places.into_iter().find(|path| path.exists()).unwrap_or("mke2fs".into());
        let [qemu_img, storage_daemon] = ["qemu-img", "qemu-storage-daemon"].map(PathBuf::from);
        Self { directory, key, limit: None, qemu_img, mke2fs, storage_daemon }
    }
}

/// The volumes of a host. Clones are the same store.
///
/// What does not run a program is not async and blocks for a few writes to disk.
#[derive(Debug, Clone)]
pub struct VolumeStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: StoreConfig,
    disks: Disks,
    state: Mutex<State>,
    /// Whether the file system has `FICLONE`, once that was tried.
    can_clone: OnceLock<bool>,
    /// Keeps other processes from managing the same directory.
    _lock: FileLock,
}

#[derive(Debug, Default)]
struct State {
    volumes: BTreeMap<VolumeId, Record>,
    /// By name of the directory, with what it takes, GiB.
    problems: BTreeMap<String, (Problem, u64)>,
    /// Being made.
    reserved: HashMap<VolumeId, SizeGib>,
    /// What this process holds the lock of a volume for.
    busy: HashMap<VolumeId, String>,
    /// Of these, what was told to end and is about to; closed when it has.
    ending: HashMap<VolumeId, watch::Receiver<()>>,
    /// For images of snapshots that are being taken, GiB.
    fleecing: u64,
}

/// A volume that is locked by this process for an operation.
struct Busy {
    inner: Arc<Inner>,
    id: VolumeId,
    lock: Option<FileLock>,
    /// Dropped last.
    ended: watch::Sender<()>,
}

impl VolumeStore {
    /// Opens the volumes of a directory: reads their records, removes what a killed server left
    /// half-made and ends the programs it left. What can't be used is kept and reported by
    /// [`Self::problems`]. Blocking.
    ///
    /// # Errors
    /// When another process has it open, or the directory can't be read and written.
    pub fn open(mut config: StoreConfig) -> Result<Self, VolumeError> {
        files::make_directory(&config.directory)?;
        config.directory.parent().map_or(Ok(()), files::sync_directory)?;
        let absolute = fs::canonicalize(&config.directory);
        config.directory =
            absolute.map_err(|error| VolumeError::io("open", &config.directory, error))?;
        if config.directory.to_str().is_none() {
            return Err(VolumeError::InvalidDirectory(config.directory));
        }
        let path = config.directory.join("lock");
        let failed = |error| VolumeError::io("lock", &path, error);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let lock = FileLock::take(&path)
            .map_err(failed)?
            .ok_or_else(|| VolumeError::StoreInUse(config.directory.clone()))?;
        let programs = Programs::new(&config.directory)?;
        let disks = Disks {
            programs,
            qemu_img: config.qemu_img.clone(),
            mke2fs: config.mke2fs.clone(),
            storage_daemon: config.storage_daemon.clone(),
        };
        let can_clone = OnceLock::new();
        let inner = Inner { config, disks, state: Mutex::default(), can_clone, _lock: lock };
        inner.read()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// All volumes, deleted ones too.
    #[must_use]
    pub fn list(&self) -> Vec<Volume> {
        self.inner.state.lock().volumes.values().map(Record::volume).collect()
    }

    /// A volume, also a deleted one.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn get(&self, id: &VolumeId) -> Result<Volume, VolumeError> {
        self.inner.record(&self.inner.state.lock(), id).map(Record::volume)
    }

    /// Whether a volume of this ID is being made, also by a [`Self::create`] or [`Self::copy`] that
    /// was dropped and is just ending.
    #[must_use]
    pub fn is_being_made(&self, id: &VolumeId) -> bool {
        self.inner.state.lock().reserved.contains_key(id)
    }

    /// What was found at the open that can't be used.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let state = self.inner.state.lock();
        state.problems.values().map(|(problem, _)| problem.clone()).collect()
    }

    /// Space that is reserved.
    #[must_use]
    pub fn space(&self) -> Space {
        self.inner.space(&self.inner.state.lock())
    }

    /// What a volume takes, also a deleted one or one in use. Blocking.
    ///
    /// # Errors
    /// As [`Self::get`], and when its file can't be read.
    pub fn usage(&self, id: &VolumeId) -> Result<Usage, VolumeError> {
        let disk = self.inner.disk(&self.get(id)?);
        let failed = |error| VolumeError::io("read", &disk, error);
        let metadata = fs::metadata(&disk).map_err(failed)?;
        let virtual_bytes = qcow2::virtual_size(&disk).map_err(failed)?;
        // st_blocks counts units of 512 bytes on every file system.
        Ok(Usage { virtual_bytes, allocated_bytes: metadata.blocks() * 512 })
    }

    /// Has QEMU check a volume that nobody uses. Changes nothing. Dropping it ends the check.
    ///
    /// # Errors
    /// When it is in use or deleted, its key can't be had, or the check could not be made.
    pub async fn check(&self, id: &VolumeId) -> Result<Check, VolumeError> {
        self.inner.settled(id).await;
        let (_busy, record) = self.inner.take(id, "a check")?;
        let key = self.inner.key(&record)?;
        self.inner.disks.check(&self.inner.disk(&record.volume()), key.as_ref()).await
    }
}

impl Inner {
    fn place(&self, name: &str, deleted: bool) -> PathBuf {
        let [volumes, trash] = places::NAMES;
        self.config.directory.join(if deleted { trash } else { volumes }).join(name)
    }

    fn scratch(&self) -> PathBuf {
        self.config.directory.join("tmp")
    }

    fn disk(&self, volume: &Volume) -> PathBuf {
        self.place(volume.id.as_str(), volume.deleted_at.is_some()).join(DISK)
    }

    /// Fills the state from the disk.
    fn read(&self) -> Result<(), VolumeError> {
        files::remove(&self.scratch());
        files::make_directory(&self.scratch())?;
        if !self.has_places() {
            return Ok(());
        }
        self.make_places()?;
        let mut state = self.state.lock();
        for deleted in [false, true] {
            let directory = self.place("", deleted);
            let failed = |error| VolumeError::io("list", &directory, error);
            for entry in fs::read_dir(&directory).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
                match self.read_one(&state, &name, deleted)? {
                    Ok(record) => drop(state.volumes.insert(record.id.clone(), record)),
                    Err(reason) => {
                        tracing::error!(volume = name, reason, "a volume cannot be used");
                        let size = qcow2::virtual_size(&directory.join(&name).join(DISK));
                        let gib = size.map_or(0, |bytes| bytes.div_ceil(1 << 30));
                        let problem = Problem { name: name.clone(), reason };
                        state.problems.insert(name, (problem, gib));
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a volume and moves it to where its record says it belongs.
    fn read_one(
        &self,
        state: &State,
        name: &str,
        deleted: bool,
    ) -> Result<Result<Record, String>, VolumeError> {
        let place = self.place(name, deleted);
        let record = match Record::read(&place) {
            Ok(record) => record,
            Err(reason) => return Ok(Err(reason)),
        };
        if record.id.as_str() != name {
            return Ok(Err(format!("its record is that of {}", record.id)));
        }
        if state.volumes.contains_key(&record.id) {
            return Ok(Err("it is also among those that are not deleted".to_owned()));
        }
        if let Err(error) = qcow2::virtual_size(&place.join(DISK)) {
            return Ok(Err(format!("{DISK}: {error}")));
        }
        if record.deleted_at.is_some() != deleted {
            let to = self.place(name, record.deleted_at.is_some());
            if to.exists() {
                return Ok(Err(format!("it belongs to {}, which is another", to.display())));
            }
            files::move_directory(&place, &to)?;
        }
        Ok(Ok(record))
    }

    fn record<'a>(&self, state: &'a State, id: &VolumeId) -> Result<&'a Record, VolumeError> {
        if let Some(record) = state.volumes.get(id) {
            return Ok(record);
        }
        let Some((problem, _)) = state.problems.get(id.as_str()) else {
            return Err(VolumeError::NotFound(id.clone()));
        };
        let places = [false, true].map(|deleted| self.place(id.as_str(), deleted));
        let path = places.into_iter().find(|path| path.exists()).unwrap_or_default();
        Err(VolumeError::Damaged { id: problem.name.clone(), reason: problem.reason.clone(), path })
    }

    /// A volume that is not deleted.
    fn live<'a>(&self, state: &'a State, id: &VolumeId) -> Result<&'a Record, VolumeError> {
        let record = self.record(state, id)?;
        if record.deleted_at.is_some() {
            return Err(VolumeError::Deleted(id.clone()));
        }
        Ok(record)
    }

    /// Locks a volume that is not deleted for an operation.
    fn take(self: &Arc<Self>, id: &VolumeId, what: &str) -> Result<(Busy, Record), VolumeError> {
        let mut state = self.state.lock();
        let record = self.live(&state, id)?.clone();
        if let Some(lock) = self.lock(&mut state, &record, what)? {
            return Ok((Busy::new(self, id, lock), record));
        }
        let operation = state.busy.get(id).cloned();
        drop(state);
        Err(self.in_use(&record, operation))
    }

    /// Locks a volume; `None` when somebody has it locked. The caller makes it [`Busy`].
    fn lock(
        &self,
        state: &mut State,
        record: &Record,
        what: &str,
    ) -> Result<Option<FileLock>, VolumeError> {
        let disk = self.disk(&record.volume());
        let lock = FileLock::take(&disk).map_err(|error| VolumeError::io("lock", &disk, error))?;
        if lock.is_some() {
            state.busy.insert(record.id.clone(), what.to_owned());
        }
        Ok(lock)
    }

    /// The error for a volume that is locked: for an operation of this process, or by whoever
    /// opened it. Looks at all processes, so not under the lock of the state.
    fn in_use(&self, record: &Record, operation: Option<String>) -> VolumeError {
        let holder = operation.unwrap_or_else(|| {
            described(record.last_writer.as_deref(), &self.disk(&record.volume()))
        });
        VolumeError::InUse { id: record.id.clone(), holder }
    }

    /// Changes the record of a volume, durably first.
    fn change(
        &self,
        state: &mut State,
        id: &VolumeId,
        change: impl FnOnce(&mut Record),
    ) -> Result<Record, VolumeError> {
        let current = self.record(state, id)?;
        let place = self.place(id.as_str(), current.deleted_at.is_some());
        let mut record = current.clone();
        change(&mut record);
        record.write(&place, &self.scratch())?;
        state.volumes.insert(id.clone(), record.clone());
        Ok(record)
    }

    /// The key of an encrypted volume.
    fn key(&self, record: &Record) -> Result<Option<VolumeKey>, VolumeError> {
        let Some(wrapped) = &record.key else { return Ok(None) };
        self.config.key.unwrap(wrapped, &record.id).map(Some)
    }
}

impl Busy {
    fn new(inner: &Arc<Inner>, id: &VolumeId, lock: FileLock) -> Self {
        let (inner, id, lock) = (Arc::clone(inner), id.clone(), Some(lock));
        Self { inner, id, lock, ended: watch::Sender::new(()) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        // Under the lock of the state, so that whoever finds the file locked finds out by whom.
        self.lock = None;
        state.busy.remove(&self.id);
        state.ending.remove(&self.id);
    }
}

/// Who holds a volume, for people.
fn described(last_writer: Option<&str>, disk: &Path) -> String {
    let processes: Vec<_> = lock::holders(disk)
        .unwrap_or_default()
        .into_iter()
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} {}", name.trim_end())
        })
        .collect();
    let holder = last_writer.unwrap_or("a program");
    if processes.is_empty() {
        holder.to_owned()
    } else {
        format!("{holder} ({})", processes.join(", "))
    }
}

/// Does what blocks where it may, to its end.
async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(VolumeError::Interrupted(what.to_owned())))
}
