//! The machines: their records, by id and by app. The newer of two records stays, whatever comes
//! first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use caddis_api::{AppName, MachineId, MachineState, WorkerId, event::MachineEvent};
use caddis_bus::message::MachineRecord;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::{sync::watch, time::Instant};

/// Largest configuration, bytes, of a machine whose JSON is kept beside it.
const LARGEST_KEPT: usize = 16 * 1024;

/// Events that are shown with a machine.
const RECENT_EVENTS: usize = 20;

/// A machine at one revision.
pub struct CachedMachine {
    /// As its worker published it, with its configuration, but for what is known of its host.
    pub record: MachineRecord,
    /// Its `host_status` as its worker published it, and why, where the host is not there to vouch
    /// for it.
    published: Option<(String, Option<String>)>,
    body: OnceLock<Bytes>,
}

impl CachedMachine {
    fn new(record: MachineRecord) -> Self {
        Self { record, published: None, body: OnceLock::new() }
    }

    /// The machine as JSON, written once per revision, unless it has a large configuration, which
    /// is in memory once.
    pub fn body(&self) -> Bytes {
        // All of it is plain data with string keys, for which serialisation has no way to fail.
        let write =
            || serde_json::to_vec(&self.record.machine).map_or_else(|_| Bytes::new(), Bytes::from);
        let size = self.record.machine.config.as_ref().map_or(0, caddis_api::RawConfig::size);
        if size > LARGEST_KEPT { write() } else { self.body.get_or_init(write).clone() }
    }

    /// The machine with another `host_status`, where it has another one.
    fn with_host_status(&self, status: Option<&str>) -> Option<Self> {
        let machine = &self.record.machine;
        let current = (machine.host_status.clone(), machine.host_status_reason.clone());
        let published = self.published.clone().unwrap_or_else(|| current.clone());
        let wanted = status.map_or_else(|| published.clone(), |status| (status.to_owned(), None));
        if wanted == current {
            return None;
        }
        let mut record = self.record.clone();
        (record.machine.host_status, record.machine.host_status_reason) = wanted;
        Some(Self { record, published: status.map(|_| published), body: OnceLock::new() })
    }

    /// The same with the events of a record that is not newer, where those are not known: what told
    /// of them before was lost, or comes late.
    fn with_events_of(&self, record: &MachineRecord) -> Option<Self> {
        if self.record.epoch != record.epoch {
            return None;
        }
        let known: Vec<_> = self.record.machine.events.iter().flatten().collect();
        let oldest = known.last().filter(|_| known.len() >= RECENT_EVENTS);
        let is_missing = |event: &&Arc<MachineEvent>| {
            oldest.is_none_or(|oldest| event.id > oldest.id)
                && known.iter().all(|known| known.id != event.id)
        };
        let missing: Vec<_> = record.machine.events.iter().flatten().filter(is_missing).collect();
        if missing.is_empty() {
            return None;
        }
        let mut record = self.record.clone();
        merge(record.machine.events.get_or_insert_default(), missing.into_iter());
        Some(Self { record, published: self.published.clone(), body: OnceLock::new() })
    }

    /// Its state.
    pub fn state(&self) -> MachineState {
        self.record.machine.state
    }

    fn is_older_than(&self, record: &MachineRecord) -> bool {
        (self.record.epoch, self.record.revision) < (record.epoch, record.revision)
    }
}

struct Entry {
    shown: watch::Sender<Arc<CachedMachine>>,
    /// When it was last heard of, by the view's count.
    heard: AtomicU64,
}

#[derive(Default)]
struct Tables {
    machines: HashMap<MachineId, Entry>,
    by_app: HashMap<AppName, BTreeSet<MachineId>>,
    /// In the order in which they were destroyed, with when they are to be forgotten.
    destroyed: VecDeque<(Instant, MachineId)>,
    /// Workers that were listed since we began.
    listed: HashSet<WorkerId>,
}

/// See the module's text.
pub(crate) struct Machines {
    tables: RwLock<Tables>,
    /// Copies that were heard of, with the epoch of the later placement.
    copies: Mutex<BTreeMap<(MachineId, WorkerId), u64>>,
    count: AtomicU64,
    retention: Duration,
}

/// What became of a record.
pub(crate) struct Updated {
    /// The newer of it and what was there; nothing when the record's configuration must be asked
    /// for first.
    pub current: Option<Arc<CachedMachine>>,
    /// Whether that is the record.
    pub is_newer: bool,
    /// A worker that has a copy of an earlier epoch than the one that is known by now.
    pub superseded: Option<Superseded>,
}

/// A worker has a copy of a machine that was placed elsewhere since.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Superseded {
    /// The machine.
    pub machine: MachineId,
    /// Who has the copy.
    pub worker: WorkerId,
    /// Epoch of the later placement.
    pub epoch: u64,
}

impl Machines {
    /// No machines. Destroyed ones are shown for `retention`.
    pub fn new(retention: Duration) -> Self {
        Self {
            tables: RwLock::default(),
            copies: Mutex::default(),
            count: AtomicU64::new(0),
            retention,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write()
    }

    fn copies(&self) -> MutexGuard<'_, BTreeMap<(MachineId, WorkerId), u64>> {
        self.copies.lock()
    }

    pub fn superseded(&self) -> Vec<Superseded> {
        let copy = |((machine, worker), epoch): (&(MachineId, WorkerId), &u64)| Superseded {
            machine: machine.clone(),
            worker: worker.clone(),
            epoch: *epoch,
        };
        self.copies().iter().map(copy).collect()
    }

    pub fn get(&self, id: &MachineId) -> Option<Arc<CachedMachine>> {
        self.read().machines.get(id).map(|entry| entry.shown.borrow().clone())
    }

    pub fn watch(&self, id: &MachineId) -> Option<watch::Receiver<Arc<CachedMachine>>> {
        self.read().machines.get(id).map(|entry| entry.shown.subscribe())
    }

    pub fn of_app(&self, app: &str) -> Vec<Arc<CachedMachine>> {
        let tables = self.read();
        let ids = tables.by_app.get(app).into_iter().flatten();
        ids.filter_map(|id| tables.machines.get(id))
            .map(|entry| entry.shown.borrow().clone())
            .collect()
    }

    pub fn of_worker(&self, worker: &WorkerId) -> Vec<Arc<CachedMachine>> {
        let tables = self.read();
        let shown = tables.machines.values().map(|entry| entry.shown.borrow().clone());
        shown.filter(|shown| shown.record.worker == *worker).collect()
    }

    pub fn count_of_app(&self, app: &str) -> usize {
        let tables = self.read();
        let ids = tables.by_app.get(app).into_iter().flatten();
        let entries = ids.filter_map(|id| tables.machines.get(id));
        entries.filter(|entry| entry.shown.borrow().state() != MachineState::Destroyed).count()
    }

    pub fn counts_of_worker(&self, worker: &WorkerId) -> (u64, u64) {
        let tables = self.read();
        let states = tables.machines.values().filter_map(|entry| {
            let shown = entry.shown.borrow();
            (shown.record.worker == *worker).then(|| shown.state())
        });
        states
            .filter(|state| *state != MachineState::Destroyed)
            .fold((0, 0), |(all, started), state| {
                (all + 1, started + u64::from(state == MachineState::Started))
            })
    }

    /// Takes a record in unless a newer one is here.
    pub fn apply(&self, record: MachineRecord) -> Updated {
        let heard = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let tables = self.read();
        let updated = match tables.machines.get(&record.machine.id) {
            Some(entry) => {
                let updated = entry.update(record, heard);
                drop(tables);
                updated
            }
            None => {
                drop(tables);
                self.insert(record, heard)
            }
        };
        if let Some(Superseded { machine, worker, epoch }) = updated.superseded.clone() {
            self.copies().insert((machine, worker), epoch);
        }
        if let Some(current) = updated.current.as_ref().filter(|_| updated.is_newer)
            && current.state() == MachineState::Destroyed
        {
            let id = current.record.machine.id.clone();
            self.write().destroyed.push_back((Instant::now() + self.retention, id));
        }
        self.forget_expired();
        updated
    }

    fn insert(&self, record: MachineRecord, heard: u64) -> Updated {
        let mut tables = self.write();
        if let Some(entry) = tables.machines.get(&record.machine.id) {
            // Another was faster between our two locks.
            return entry.update(record, heard);
        }
        if record.is_status_only() {
            return Updated { current: None, is_newer: false, superseded: None };
        }
        let shown = Arc::new(CachedMachine::new(record));
        let id = &shown.record.machine.id;
        tables.by_app.entry(shown.record.app.clone()).or_default().insert(id.clone());
        let entry =
            Entry { shown: watch::Sender::new(shown.clone()), heard: AtomicU64::new(heard) };
        tables.machines.insert(id.clone(), entry);
        Updated { current: Some(shown), is_newer: true, superseded: None }
    }

    fn forget_expired(&self) {
        let expired = |tables: &Tables| {
            tables.destroyed.front().is_some_and(|(until, _)| *until <= Instant::now())
        };
        if !expired(&self.read()) {
            return;
        }
        let mut tables = self.write();
        while expired(&tables) {
            let Some((_, id)) = tables.destroyed.pop_front() else { return };
            // It may have been a copy of one that was placed elsewhere since.
            let is_destroyed =
                |entry: &Entry| entry.shown.borrow().state() == MachineState::Destroyed;
            if tables.machines.get(&id).is_some_and(is_destroyed) {
                // Who follows the app was told when it was destroyed.
                tables.forget(&id);
            }
        }
    }

    /// A listing of a worker begins. Give what comes back to [`Self::end_listing`].
    pub fn begin_listing(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// A listing is complete: machines of the worker that were not heard of since its begin are
    /// gone. Gives them, with their apps.
    pub fn end_listing(&self, worker: &WorkerId, begin: u64) -> Vec<(AppName, MachineId)> {
        let mut tables = self.write();
        let stale = |entry: &Entry| {
            entry.heard.load(Ordering::Relaxed) <= begin
                && entry.shown.borrow().record.worker == *worker
        };
        let gone: Vec<_> = tables
            .machines
            .iter()
            .filter(|(_, entry)| stale(entry))
            .map(|(id, _)| id.clone())
            .collect();
        tables.listed.insert(worker.clone());
        gone.into_iter().filter_map(|id| tables.forget(&id).map(|app| (app, id))).collect()
    }

    pub fn is_listed(&self, worker: &WorkerId) -> bool {
        self.read().listed.contains(worker)
    }

    /// Has the machines of a host be shown with this `host_status`, until they are published anew;
    /// `None` for the one that they were published with. Gives those for which it is another one,
    /// with their apps.
    pub fn set_host_status(
        &self,
        worker: &WorkerId,
        status: Option<&str>,
    ) -> Vec<(AppName, MachineId)> {
        let tables = self.read();
        let mut changed = Vec::new();
        for (id, entry) in &tables.machines {
            let is_changed = entry.shown.send_if_modified(|current| {
                let is_of_it =
                    current.record.worker == *worker && current.state() != MachineState::Destroyed;
                let shown = is_of_it.then(|| current.with_host_status(status)).flatten();
                let is_changed = shown.is_some();
                if let Some(shown) = shown {
                    *current = Arc::new(shown);
                }
                is_changed
            });
            if is_changed {
                changed.push((entry.shown.borrow().record.app.clone(), id.clone()));
            }
        }
        changed
    }
}

impl Entry {
    fn update(&self, record: MachineRecord, heard: u64) -> Updated {
        let mut current = None;
        let mut superseded = None;
        let is_newer = self.shown.send_if_modified(|known| {
            superseded = earlier_copy(&known.record, &record);
            let next = if known.is_older_than(&record) {
                match completed(record, &known.record) {
                    Some(record) => Some(CachedMachine::new(record)),
                    None => return false,
                }
            } else {
                known.with_events_of(&record)
            };
            let is_changed = next.is_some();
            if let Some(next) = next {
                *known = Arc::new(next);
            }
            current = Some(known.clone());
            is_changed
        });
        // Of a copy nothing is heard that tells of the machine, unless it was one until now.
        if current.is_some() && (is_newer || superseded.is_none()) {
            self.heard.fetch_max(heard, Ordering::Relaxed);
        }
        Updated { current, is_newer, superseded }
    }
}

/// The worker of two that has the copy of the lower epoch.
fn earlier_copy(known: &MachineRecord, told: &MachineRecord) -> Option<Superseded> {
    let (earlier, later) = if known.epoch < told.epoch { (known, told) } else { (told, known) };
    let is_copy = earlier.epoch < later.epoch
        && earlier.worker != later.worker
        && earlier.machine.state != MachineState::Destroyed;
    is_copy.then(|| Superseded {
        machine: earlier.machine.id.clone(),
        worker: earlier.worker.clone(),
        epoch: later.epoch,
    })
}

/// A newer record with what is known already: its configuration, where it did not come with it, and
/// earlier events.
fn completed(mut record: MachineRecord, known: &MachineRecord) -> Option<MachineRecord> {
    if record.is_status_only() {
        let is_same =
            (known.epoch, known.config_revision) == (record.epoch, record.config_revision);
        if !is_same || known.is_status_only() {
            return None;
        }
        record.machine.config.clone_from(&known.machine.config);
        record.machine.image_ref.labels.clone_from(&known.machine.image_ref.labels);
    }
    let known = known.machine.events.iter().flatten();
    merge(record.machine.events.get_or_insert_default(), known);
    Some(record)
}

/// Adds events that may be known already: the newest of all of them, newest first, as many as are
/// shown.
fn merge<'a>(
    events: &mut Vec<Arc<MachineEvent>>,
    others: impl Iterator<Item = &'a Arc<MachineEvent>>,
) {
    let missing: Vec<_> =
        others.filter(|event| events.iter().all(|known| known.id != event.id)).cloned().collect();
    if !missing.is_empty() {
        events.extend(missing);
        events.sort_by(|a, b| b.id.cmp(&a.id));
    }
    events.truncate(RECENT_EVENTS);
}

impl Tables {
    /// The app it belonged to.
    fn forget(&mut self, id: &MachineId) -> Option<AppName> {
        let entry = self.machines.remove(id)?;
        let app = entry.shown.borrow().record.app.clone();
        if let Some(ids) = self.by_app.get_mut(&app) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_app.remove(&app);
            }
        }
        Some(app)
    }
}
