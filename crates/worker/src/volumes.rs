//! The volumes of this host, as the API shows them. Their files are `caddis_volume`'s; what only
//! the worker knows of a volume is in its database. See docs/internals/volumes.md.
//!
//! ```text
//!   create ─▶ creating, recorded ─▶ files made ─▶ created ──extend──▶ extending ─▶ created
//!                                    │ fails        │ delete ▲
//!                                    ▼              ▼        │ undelete
//!                                  failed     pending_destroy ──24 h──▶ destroyed, then forgotten
//!
//!   create from a snapshot ─▶ restoring, recorded ─▶ files made ─▶ hydrating ─ all read ─▶ created
//! ```
//!
//! Which machine a volume is attached to is recorded nowhere: it is the one, of those that are not
//! destroyed, whose configuration has it. In memory that is kept here.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use caddis_api::{AppName, MachineId, VolumeId, config::Mount};
use caddis_bus::message::VolumeRecord;
use caddis_volume::{Progress, Space, VolumeStore};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    engine::{Drivers, Shared},
    turns::Creations,
};

mod attach;
mod background;
mod delete;
mod error;
mod extend;
mod fork;
mod in_use;
mod load;
mod make;
mod record;
mod requests;
mod restore;
mod row;
pub mod snapshots;
mod tell;
mod usage;

pub use self::{
    background::Wanted,
    delete::{clock_was_set, purge},
    error::volume_error,
    extend::seen as extension_seen,
    in_use::once_free,
    load::{load, resume, serve},
    requests::{act, create, get, list},
    restore::backing,
    row::{FORMAT, SavedVolume, VolumeRow},
    usage::watch as watch_usage,
};

/// Volumes that are made at once: one takes a processor for seconds when it is encrypted.
const MAKES: usize = 4;
/// Volumes that are copied at once: they share the disk.
const COPIES: usize = 2;
/// Volumes of a page of a listing.
const PAGE: usize = 500;

/// The volumes of a worker.
pub struct Volumes {
    /// Their files.
    pub files: VolumeStore,
    /// Their snapshots.
    pub snapshots: snapshots::Snapshots,
    /// What is done with them beside their machines.
    pub background: background::Background,
    /// Those that are being restored.
    restores: restore::Restores,
    state: Mutex<State>,
    /// The number of the last change, under which [`State`] is known.
    changed: watch::Sender<u64>,
    /// Changes of one volume come one after the other.
    turns: Creations<VolumeId>,
    /// Volumes that are made at once, and that are copied at once.
    making: [Semaphore; 2],
    tasks: TaskTracker,
    ending: CancellationToken,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<VolumeId, Entry>,
    by_machine: HashMap<MachineId, Vec<VolumeId>>,
    /// GiB that were found to be free and are not counted by the files yet.
    promised: BTreeMap<VolumeId, u64>,
}

/// A volume.
struct Entry {
    row: VolumeRow,
    /// The change that this is after.
    revision: u64,
    attached: Option<Attachment>,
    /// It is being deleted: no machine gets it.
    is_going: bool,
    /// How far its copy is.
    progress: Progress,
    /// Why that does not go on, if it does not.
    trouble: Option<String>,
    /// Makes it.
    making: Option<AbortOnDropHandle<()>>,
    /// What an event has told of it last.
    told: String,
}

impl Entry {
    fn new(row: VolumeRow) -> Self {
        Self {
            row,
            revision: 0,
            attached: None,
            is_going: false,
            progress: Progress::default(),
            trouble: None,
            making: None,
            told: String::new(),
        }
    }
}

/// What a volume is attached to.
#[derive(Debug, Clone)]
struct Attachment {
    machine: MachineId,
    /// Its number there.
    index: u8,
    mount: Mount,
}

/// A page of a listing.
pub struct Page {
    /// In id order.
    pub records: Vec<VolumeRecord>,
    /// There are more after these.
    pub more: bool,
    /// Changes up to this number are contained.
    pub revision: u64,
}

impl Volumes {
    /// Those of these files, of which nothing is known before [`load`]. `directory` is the
    /// worker's.
    pub fn new(directory: &Path, drivers: &Drivers) -> Self {
        let ending = CancellationToken::new();
        let Drivers { volumes, snapshots, exports, .. } = drivers;
        Self {
            files: volumes.clone(),
            snapshots: snapshots::Snapshots::new(snapshots.clone(), exports.clone()),
            background: background::Background::new(&ending),
            restores: restore::Restores::new(directory),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            turns: Creations::default(),
            making: [Semaphore::new(MAKES), Semaphore::new(COPIES)],
            tasks: TaskTracker::new(),
            ending,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// How many changes there were.
    pub fn revision(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Told of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A volume as it is recorded.
    pub fn row(&self, volume: &VolumeId) -> Option<VolumeRow> {
        self.state().entries.get(volume).map(|entry| entry.row.clone())
    }

    /// All of them, as they are recorded.
    fn rows(&self) -> Vec<VolumeRow> {
        self.state().entries.values().map(|entry| entry.row.clone()).collect()
    }

    /// A volume as others see it.
    pub fn record(&self, shared: &Shared, volume: &VolumeId) -> Option<VolumeRecord> {
        let state = self.state();
        state.entries.get(volume).map(|entry| record::record(shared, entry))
    }

    /// Volumes after `after` in id order.
    pub fn page(&self, shared: &Shared, after: Option<&VolumeId>) -> Page {
        use std::ops::Bound::{Excluded, Unbounded};
        let state = self.state();
        let mut later = state.entries.range((after.map_or(Unbounded, Excluded), Unbounded));
        let records =
            later.by_ref().take(PAGE).map(|(_, entry)| record::record(shared, entry)).collect();
        Page { records, more: later.next().is_some(), revision: self.revision() }
    }

    /// Space for a volume of so many GiB: what is left of it afterwards, or, where it is not
    /// enough, what there is. `None` where it is not limited.
    pub fn room_for(&self, gib: u64) -> Option<Result<u64, u64>> {
        let free = self.state().free(&self.files.space())?;
        Some(free.checked_sub(gib).ok_or(free))
    }

    /// What is wrong with them, for people.
    pub fn warnings(&self) -> Vec<String> {
        let state = self.state();
        let damaged = self.files.problems().into_iter();
        let mut warnings: Vec<_> =
            damaged.map(|problem| format!("volume {}: {}", problem.name, problem.reason)).collect();
        let unknown = self.files.list().into_iter();
        let unknown = unknown.filter(|volume| !state.entries.contains_key(&volume.id));
        warnings.extend(unknown.map(|volume| {
            let id = volume.id;
            format!("volume {id} is not recorded, as after a restore; its files take space")
        }));
        warnings.extend(self.snapshots.warning());
        warnings
    }

    async fn turn(&self, volume: &VolumeId) -> OwnedMutexGuard<()> {
        self.turns.begin(volume).await
    }

    /// A volume has changed. Under the lock of the state, so that a listing with this number has
    /// it.
    fn touch(&self, entry: &mut Entry) {
        entry.revision = self.revision() + 1;
        self.changed.send_replace(entry.revision);
    }

    /// Changes what is in memory of a volume.
    fn edit(&self, volume: &VolumeId, edit: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.state().entries.get_mut(volume) {
            edit(entry);
            self.touch(entry);
        }
    }

    /// The same, where that changed something.
    fn edit_if(&self, volume: &VolumeId, edit: impl FnOnce(&mut Entry) -> bool) {
        if let Some(entry) = self.state().entries.get_mut(volume)
            && edit(entry)
        {
            self.touch(entry);
        }
    }

    /// Does something beside the requests, until it is done or the worker ends.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
        let ending = self.ending.clone();
        AbortOnDropHandle::new(self.tasks.spawn(async move {
            tokio::select! {
                () = ending.cancelled() => {}
                () = work => {}
            }
        }))
    }

    /// Whether what is being done is to end.
    fn is_ending(&self) -> bool {
        self.ending.is_cancelled()
    }

    /// Ends what is being done; the next worker goes on with it.
    pub async fn end(&self) {
        self.ending.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl State {
    /// What is left, GiB.
    fn free(&self, space: &Space) -> Option<u64> {
        let taken = space.declared + self.promised.values().sum::<u64>();
        space.limit.map(|limit| limit.saturating_sub(taken))
    }

    /// A volume that this app has.
    fn of_app(&mut self, volume: &VolumeId, app: &AppName) -> Option<&mut Entry> {
        self.entries.get_mut(volume).filter(|entry| entry.row.app == *app)
    }
}
