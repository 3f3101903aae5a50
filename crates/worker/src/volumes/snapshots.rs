//! Snapshots of volumes: which there are and are to be, as recorded, and the jobs that take and
//! delete them. What they hold is `caddis_snapshot`'s. See docs/internals/volumes.md.
//!
//! ```text
//!   request, daily ─▶ waiting, recorded ─▶ running ─▶ created ── deleted, expired ─▶ is_deleted
//!                        ▲  store away, broken off │                                    │
//!                        └─────────────────────────┤             removed from the store, forgotten
//!                                                  ▼ for good
//!                                                failed
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use caddis_api::{SnapshotId, UnixMillis, VolumeId};
use caddis_snapshot::{Progress, SnapshotStore};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore, watch};

use crate::{
    engine::Shared,
    host::Exports,
    owner::RequestId,
    store::{Durability, Room, StoreError},
    volumes::Volumes,
};

pub mod backoff;
mod expire;
mod found;
mod job;
mod live;
mod offline;
mod record;
mod requests;
mod row;
mod runner;
mod schedule;

pub(super) use self::{
    expire::mark_deleted,
    live::held_still,
    requests::{abandon, take_for},
};
pub use self::{
    requests::{delete, get, list, take},
    row::{FORMAT, SnapshotRow},
    runner::{load, run},
};

/// Snapshots that are taken at once: they share the disk, and the way to the store.
const AT_ONCE: usize = 2;
/// Snapshots of one volume that may wait.
const MOST_WAITING: usize = 5;

/// The snapshots of a worker's volumes.
pub struct Snapshots {
    /// Where they are kept, if anywhere.
    pub store: Option<SnapshotStore>,
    /// How exports are read.
    pub exports: Arc<dyn Exports>,
    rows: Mutex<Rows>,
    turns: Arc<Semaphore>,
    /// Something may be to be taken.
    pub(super) wake: Notify,
    /// Something may be to be removed.
    removals: Notify,
}

#[derive(Default)]
struct Rows {
    by_volume: BTreeMap<VolumeId, Vec<SnapshotRow>>,
    volumes: HashMap<SnapshotId, VolumeId>,
    /// How far those are that are being taken.
    progress: HashMap<SnapshotId, watch::Receiver<Progress>>,
}

impl Rows {
    fn of(&self, volume: &VolumeId) -> &[SnapshotRow] {
        self.by_volume.get(volume).map_or(&[], Vec::as_slice)
    }

    fn get(&self, snapshot: &SnapshotId) -> Option<&SnapshotRow> {
        let volume = self.volumes.get(snapshot)?;
        self.of(volume).iter().find(|row| row.id == *snapshot)
    }

    fn put(&mut self, row: SnapshotRow) {
        self.volumes.insert(row.id.clone(), row.volume.clone());
        let rows = self.by_volume.entry(row.volume.clone()).or_default();
        match rows.iter_mut().find(|known| known.id == row.id) {
            Some(known) => *known = row,
            None => rows.push(row),
        }
    }

    fn remove(&mut self, snapshot: &SnapshotId) {
        let Some(volume) = self.volumes.remove(snapshot) else { return };
        let Some(rows) = self.by_volume.get_mut(&volume) else { return };
        rows.retain(|row| row.id != *snapshot);
        if rows.is_empty() {
            self.by_volume.remove(&volume);
        }
    }
}

impl Snapshots {
    /// None yet, in this store.
    pub fn new(store: Option<SnapshotStore>, exports: Arc<dyn Exports>) -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Self {
            store,
            exports,
            rows: Mutex::default(),
            turns,
            wake: Notify::new(),
            removals: Notify::new(),
        }
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock()
    }

    /// A snapshot as it is recorded.
    pub fn row(&self, snapshot: &SnapshotId) -> Option<SnapshotRow> {
        self.rows().get(snapshot).cloned()
    }

    /// Those that this holds of.
    fn select(&self, holds: impl Fn(&SnapshotRow) -> bool) -> Vec<SnapshotRow> {
        let rows = self.rows();
        rows.by_volume.values().flatten().filter(|row| holds(row)).cloned().collect()
    }

    /// That some can't be taken for now, and why.
    pub fn warning(&self) -> Option<String> {
        let stuck = self.select(|row| row.is_pending() && row.error.is_some());
        let last = stuck.iter().max_by_key(|row| row.next_try)?;
        let count = match stuck.len() {
            1 => "a snapshot waits".to_owned(),
            count => format!("{count} snapshots wait"),
        };
        Some(format!("{count} to be taken: {}", last.error.as_deref().unwrap_or_default()))
    }

    /// The last one of a volume that is there and stays.
    pub fn last(&self, volume: &VolumeId) -> Option<SnapshotRow> {
        let rows = self.rows();
        let there = rows.of(volume).iter().filter(|row| row.is_created() && row.fork.is_none());
        there.max_by_key(|row| row.created_at).cloned()
    }
}

impl Volumes {
    /// When the last snapshot of a volume was taken, and, where that is known, how many bytes have
    /// changed since.
    pub(super) fn since_snapshot(&self, volume: &VolumeId) -> Option<(UnixMillis, Option<u64>)> {
        let last = self.snapshots.last(volume)?;
        let generation = self.files.get(volume).ok().map(|files| files.generation);
        let is_unchanged = last.generation.is_some() && last.generation == generation;
        Some((last.created_at, is_unchanged.then_some(0)))
    }
}

/// Records a snapshot, which is known as such from then on. The turn of its volume is the caller's.
async fn try_record(
    shared: &Shared,
    row: SnapshotRow,
    request: RequestId,
    durability: Durability,
    room: Room,
) -> Result<(), StoreError> {
    let request = request.map(|id| (id, shared.clock.unix_now()));
    shared.store.record_snapshot(row.clone(), request, durability, room).await?;
    let snapshots = &shared.volumes.snapshots;
    let volume = row.volume.clone();
    let is_deleted = row.is_deleted;
    snapshots.rows().put(row);
    snapshots.wake.notify_one();
    if is_deleted {
        snapshots.removals.notify_one();
    }
    // What its volume says of the last one.
    shared.volumes.edit(&volume, |_| ());
    shared.announce();
    Ok(())
}
