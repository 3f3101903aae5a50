//! The view: a copy of the states of all machines, in memory, made of what workers publish and answer. Never
//! authoritative. A machine's record is replaced only by one of a higher revision, so the order of arrival does not
//! matter; [`follow`] notices when something was lost and lists the worker anew.

mod follow;
mod sequence;
mod watchers;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use caddis_api::{MachineId, MachineState, WorkerId};
use caddis_bus::message::MachineRecord;
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::Instant,
};

use self::watchers::Watchers;
use crate::deletion::Destroyed;

pub(crate) use follow::{Changes, follow};

/// Largest configuration, bytes, of a machine whose JSON is kept beside it.
const LARGEST_KEPT: usize = 16 * 1024;

/// A machine at one revision.
pub(crate) struct Shown {
    /// As its worker published it, but for what is known of its host.
    pub record: MachineRecord,
    /// Its `host_status` as its worker published it, and why, where the host is not there to vouch for it.
    published: Option<(String, Option<String>)>,
    body: OnceLock<Bytes>,
}

impl Shown {
    /// The machine as JSON, written once per revision, unless it has a large configuration, which is in memory once.
    pub fn body(&self) -> Bytes {
        // All of it is plain data with string keys, for which serialisation has no way to fail.
        let write = || serde_json::to_vec(&self.record.machine).map_or_else(|_| Bytes::new(), Bytes::from);
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

    /// Its state.
    pub fn state(&self) -> MachineState {
        self.record.machine.state
    }
}

struct Entry {
    shown: watch::Sender<Arc<Shown>>,
    /// When it was last heard of, by the view's count.
    heard: AtomicU64,
}

#[derive(Default)]
struct Tables {
    machines: HashMap<MachineId, Entry>,
    by_app: HashMap<String, BTreeSet<MachineId>>,
    /// In the order in which they were destroyed, with when they are to be forgotten.
    destroyed: VecDeque<(Instant, MachineId)>,
    /// Workers that were listed since we began.
    listed: HashSet<WorkerId>,
}

/// See the module's text.
pub(crate) struct View {
    tables: RwLock<Tables>,
    count: AtomicU64,
    synced: watch::Sender<bool>,
    watchers: Watchers,
    destroyed: mpsc::UnboundedSender<Destroyed>,
    retention: Duration,
}

impl View {
    /// An empty view. Machines that turn out destroyed are told to `destroyed`.
    pub fn new(destroyed: mpsc::UnboundedSender<Destroyed>, retention: Duration, synced: bool) -> Self {
        Self {
            tables: RwLock::default(),
            count: AtomicU64::new(0),
            synced: watch::Sender::new(synced),
            watchers: Watchers::default(),
            destroyed,
            retention,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when the workers known from the start have been listed once.
    pub async fn synced(&self) {
        // It fails only when the view is gone, and then nobody is left to ask.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// A machine.
    pub fn get(&self, id: &MachineId) -> Option<Arc<Shown>> {
        self.read().machines.get(id).map(|entry| entry.shown.borrow().clone())
    }

    /// A machine from now on. The receiver ends when the machine is forgotten.
    pub fn watch(&self, id: &MachineId) -> Option<watch::Receiver<Arc<Shown>>> {
        self.read().machines.get(id).map(|entry| entry.shown.subscribe())
    }

    /// Ids of an app's machines that change or are forgotten from now on. It ends with the app.
    pub fn watch_app(&self, app: &str) -> broadcast::Receiver<MachineId> {
        self.watchers.subscribe(app)
    }

    /// Nobody needs to follow the app any more: it is gone.
    pub fn end_app(&self, app: &str) {
        self.watchers.end(app);
    }

    /// The machines of an app, by id.
    pub fn of_app(&self, app: &str) -> Vec<Arc<Shown>> {
        let tables = self.read();
        let ids = tables.by_app.get(app).into_iter().flatten();
        ids.filter_map(|id| tables.machines.get(id)).map(|entry| entry.shown.borrow().clone()).collect()
    }

    /// Machines of an app that are not destroyed.
    pub fn count_of_app(&self, app: &str) -> usize {
        let tables = self.read();
        let ids = tables.by_app.get(app).into_iter().flatten();
        let entries = ids.filter_map(|id| tables.machines.get(id));
        entries.filter(|entry| entry.shown.borrow().state() != MachineState::Destroyed).count()
    }

    /// Machines of a worker that are not destroyed, and how many of them are started.
    pub fn counts_of_worker(&self, worker: &WorkerId) -> (u64, u64) {
        let tables = self.read();
        let states = tables.machines.values().filter_map(|entry| {
            let shown = entry.shown.borrow();
            (shown.record.worker == *worker).then(|| shown.state())
        });
        states
            .filter(|state| *state != MachineState::Destroyed)
            .fold((0, 0), |(all, started), state| (all + 1, started + u64::from(state == MachineState::Started)))
    }

    /// Takes a record in unless a newer one is here, and gives the newer of both.
    pub fn apply(&self, record: MachineRecord) -> Arc<Shown> {
        self.take_in(record, true)
    }

    fn take_in(&self, record: MachineRecord, tell: bool) -> Arc<Shown> {
        let heard = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let shown = Arc::new(Shown { record, published: None, body: OnceLock::new() });
        let Updated { current, is_newer, newly_destroyed } = {
            let tables = self.read();
            match tables.machines.get(&shown.record.machine.id) {
                Some(entry) => entry.update(&shown, heard),
                None => {
                    drop(tables);
                    self.insert(&shown, heard)
                }
            }
        };
        if is_newer {
            self.watchers.tell(&shown.record.app, &shown.record.machine.id);
        }
        if newly_destroyed {
            let (id, app) = (shown.record.machine.id.clone(), shown.record.app.clone());
            self.write().destroyed.push_back((Instant::now() + self.retention, id.clone()));
            if tell {
                // Nobody listens any more only when the gateway ends; the next one looks for itself.
                let _ = self.destroyed.send(Destroyed { machine: id, app });
            }
        }
        self.forget_expired();
        current
    }

    fn insert(&self, shown: &Arc<Shown>, heard: u64) -> Updated {
        let mut tables = self.write();
        let id = &shown.record.machine.id;
        if let Some(entry) = tables.machines.get(id) {
            // Another was faster between our two locks.
            return entry.update(shown, heard);
        }
        tables.by_app.entry(shown.record.app.clone()).or_default().insert(id.clone());
        let entry = Entry { shown: watch::Sender::new(shown.clone()), heard: AtomicU64::new(heard) };
        tables.machines.insert(id.clone(), entry);
        let newly_destroyed = shown.state() == MachineState::Destroyed;
        Updated { current: shown.clone(), is_newer: true, newly_destroyed }
    }

    fn forget_expired(&self) {
        let expired = |tables: &Tables| tables.destroyed.front().is_some_and(|(until, _)| *until <= Instant::now());
        if !expired(&self.read()) {
            return;
        }
        let mut tables = self.write();
        while expired(&tables) {
            if let Some((_, id)) = tables.destroyed.pop_front() {
                // Who follows the app was told when it was destroyed.
                tables.forget(&id);
            }
        }
    }

    /// A listing of a worker begins. Give what comes back to [`Self::end_listing`].
    fn begin_listing(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// A listing is complete: machines of the worker that were not heard of since its begin are gone.
    fn end_listing(&self, worker: &WorkerId, begin: u64, expected: &[WorkerId]) {
        let mut tables = self.write();
        let stale = |entry: &Entry| {
            entry.heard.load(Ordering::Relaxed) <= begin && entry.shown.borrow().record.worker == *worker
        };
        let gone: Vec<_> = tables.machines.iter().filter(|(_, entry)| stale(entry)).map(|(id, _)| id.clone()).collect();
        let mut forgotten = Vec::new();
        for id in gone {
            forgotten.extend(tables.forget(&id).map(|app| (app, id)));
        }
        tables.listed.insert(worker.clone());
        let complete = expected.iter().all(|worker| tables.listed.contains(worker));
        drop(tables);
        for (app, id) in forgotten {
            self.watchers.tell(&app, &id);
        }
        if complete {
            self.synced.send_replace(true);
        }
    }

    /// Has machines of a host be shown with this `host_status`, until they are published anew; `None` for the one that they
    /// were published with.
    pub fn set_host_status(&self, worker: &WorkerId, status: Option<&str>) {
        let tables = self.read();
        let mut told = Vec::new();
        for (id, entry) in &tables.machines {
            let is_changed = entry.shown.send_if_modified(|current| {
                let is_of_it = current.record.worker == *worker && current.state() != MachineState::Destroyed;
                let shown = is_of_it.then(|| current.with_host_status(status)).flatten();
                let is_changed = shown.is_some();
                if let Some(shown) = shown {
                    *current = Arc::new(shown);
                }
                is_changed
            });
            if is_changed {
                told.push((entry.shown.borrow().record.app.clone(), id.clone()));
            }
        }
        drop(tables);
        for (app, id) in told {
            self.watchers.tell(&app, &id);
        }
    }

    /// Whether a worker was listed since we began.
    pub fn is_listed(&self, worker: &WorkerId) -> bool {
        self.read().listed.contains(worker)
    }
}

/// What became of a record.
struct Updated {
    /// The newer of it and what was there.
    current: Arc<Shown>,
    /// Whether that is the record.
    is_newer: bool,
    /// Whether this is how we learnt that the machine is destroyed.
    newly_destroyed: bool,
}

impl Entry {
    fn update(&self, shown: &Arc<Shown>, heard: u64) -> Updated {
        self.heard.fetch_max(heard, Ordering::Relaxed);
        let mut newly_destroyed = false;
        let is_newer = self.shown.send_if_modified(|current| {
            let newer = shown.record.revision > current.record.revision;
            if newer {
                newly_destroyed =
                    shown.state() == MachineState::Destroyed && current.state() != MachineState::Destroyed;
                *current = shown.clone();
            }
            newer
        });
        Updated { current: self.shown.borrow().clone(), is_newer, newly_destroyed }
    }
}

impl Tables {
    /// The app it belonged to.
    fn forget(&mut self, id: &MachineId) -> Option<String> {
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
