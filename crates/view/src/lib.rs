//! The view: a copy of the states of all machines and hosts, in memory, made of what workers
//! publish and answer. Never authoritative. A machine's record is replaced only by a newer one, so
//! the order of arrival does not matter; what was lost is noticed by the numbers of the deltas, and
//! the worker is listed anew.
//!
//! ```text
//!  deltas, announcements ──▶ follow ──▶ View ──▶ reads, watches of one machine or app
//!  answers of workers ───────────────▶   └────▶ changes: one stream of all that became different
//! ```
#![forbid(unsafe_code)]

mod follow;
mod hosts;
mod machines;
mod sequence;
mod volumes;
mod watchers;

use std::{sync::Arc, time::Duration};

use caddis_api::{MachineId, RegionCode, VolumeId, WorkerId, platform::HostState};
use caddis_bus::message::{Announcement, MachineRecord, VolumeRecord};
use tokio::sync::{broadcast, watch};

use crate::{machines::Machines, volumes::Volumes, watchers::Watchers};

pub use follow::{Published, follow};
pub use hosts::{ByReach, Host, Hosts};
pub use machines::{CachedMachine, Superseded};

/// Changes that wait for a receiver of [`View::changes`] before it has to look at everything.
const CHANGES: usize = 4096;

/// Something became different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A machine is another than before, or forgotten.
    Machine(MachineId),
    /// A worker was listed: any of its machines may be another than before.
    Listed(WorkerId),
    /// A host is new, or in another state or region.
    Host(WorkerId),
    /// A volume is another than before.
    Volume(VolumeId),
    /// The volumes of a worker were listed: any of them may be another than before, or gone.
    VolumesListed(WorkerId),
    /// A worker has a copy that it must stop.
    Superseded(Superseded),
}

/// What a view begins with.
#[derive(Debug, Clone)]
pub struct ViewSettings {
    /// Workers that are known from the start.
    pub workers: Vec<WorkerId>,
    /// The region they are in.
    pub region: RegionCode,
    /// How long a host may say nothing before it is suspected; they announce themselves each
    /// second.
    pub suspected_after: Duration,
    /// How long before it is unreachable.
    pub unreachable_after: Duration,
    /// How long destroyed machines are shown.
    pub destroyed_retention: Duration,
}

/// See the crate's text.
pub struct View {
    machines: Machines,
    volumes: Volumes,
    hosts: Hosts,
    synced: watch::Sender<bool>,
    volumes_synced: watch::Sender<bool>,
    watchers: Watchers,
    changes: broadcast::Sender<Change>,
}

impl View {
    /// A view that knows no machine yet.
    pub fn new(settings: ViewSettings) -> Self {
        let ViewSettings {
            workers,
            region,
            suspected_after,
            unreachable_after,
            destroyed_retention,
        } = settings;
        Self {
            machines: Machines::new(destroyed_retention),
            volumes: Volumes::default(),
            synced: watch::Sender::new(workers.is_empty()),
            volumes_synced: watch::Sender::new(workers.is_empty()),
            hosts: Hosts::new(workers, &region, (suspected_after, unreachable_after)),
            watchers: Watchers::default(),
            changes: broadcast::Sender::new(CHANGES),
        }
    }

    /// What becomes different from now on. A receiver that lags behind must look at everything it
    /// cares for.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// The hosts.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Ends when the workers known from the start have been listed once.
    pub async fn synced(&self) {
        // It fails only when the view is gone, and then nobody is left to ask.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Ends when the volumes of the workers known from the start have been listed once.
    pub async fn volumes_synced(&self) {
        // As above.
        let _ = self.volumes_synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// A volume.
    pub fn volume(&self, id: &VolumeId) -> Option<VolumeRecord> {
        self.volumes.get(id).map(|record| self.with_host_status(record))
    }

    /// The volumes of an app, by id, deleted ones among them.
    pub fn volumes_of_app(&self, app: &str) -> Vec<VolumeRecord> {
        let found = self.volumes.all(|record| record.app == app).into_iter();
        found.map(|record| self.with_host_status(record)).collect()
    }

    /// The volumes of a worker, by id, deleted ones among them.
    pub fn volumes_of_worker(&self, worker: &WorkerId) -> Vec<VolumeRecord> {
        self.volumes.all(|record| record.worker == *worker)
    }

    /// Volumes of an app that are not deleted.
    pub fn count_volumes_of_app(&self, app: &str) -> usize {
        self.volumes.count_of_app(app)
    }

    /// Volumes of a worker that are not deleted.
    pub fn count_volumes_of_worker(&self, worker: &WorkerId) -> usize {
        self.volumes.count_of_worker(worker)
    }

    /// Takes the record of a volume in unless a newer one is here.
    pub fn apply_volume(&self, record: VolumeRecord) {
        let id = record.volume.id.clone();
        if self.volumes.apply(record) {
            self.tell(Change::Volume(id));
        }
    }

    /// As it is shown while its host does not vouch for it.
    fn with_host_status(&self, mut record: VolumeRecord) -> VolumeRecord {
        if let Some(status) = self.hosts.state(&record.worker).and_then(status_of) {
            status.clone_into(&mut record.volume.host_status);
        }
        record
    }

    fn end_listing_volumes(
        &self,
        worker: &WorkerId,
        begin: u64,
        (incarnation, revision): (&str, u64),
    ) {
        self.volumes.end_listing(worker, begin, incarnation, revision);
        if self.hosts.first().iter().all(|worker| self.volumes.is_listed(worker)) {
            self.volumes_synced.send_replace(true);
        }
        self.tell(Change::VolumesListed(worker.clone()));
    }

    /// A machine.
    pub fn get(&self, id: &MachineId) -> Option<Arc<CachedMachine>> {
        self.machines.get(id)
    }

    /// A machine from now on. The receiver ends when the machine is forgotten.
    pub fn watch(&self, id: &MachineId) -> Option<watch::Receiver<Arc<CachedMachine>>> {
        self.machines.watch(id)
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
    pub fn of_app(&self, app: &str) -> Vec<Arc<CachedMachine>> {
        self.machines.of_app(app)
    }

    /// The machines of a worker.
    pub fn of_worker(&self, worker: &WorkerId) -> Vec<Arc<CachedMachine>> {
        self.machines.of_worker(worker)
    }

    /// Copies that workers were heard to have, of machines that were placed elsewhere since.
    pub fn superseded(&self) -> Vec<Superseded> {
        self.machines.superseded()
    }

    /// Machines of an app that are not destroyed.
    pub fn count_of_app(&self, app: &str) -> usize {
        self.machines.count_of_app(app)
    }

    /// Machines of a worker that are not destroyed, and how many of them are started.
    pub fn counts_of_worker(&self, worker: &WorkerId) -> (u64, u64) {
        self.machines.counts_of_worker(worker)
    }

    /// Whether a worker was listed since we began.
    pub fn is_listed(&self, worker: &WorkerId) -> bool {
        self.machines.is_listed(worker)
    }

    /// Takes a record in unless a newer one is here, and gives the newer of both. Nothing when the
    /// record came without a configuration that is not known here: the machine must be asked for as
    /// a whole.
    pub fn apply(&self, record: MachineRecord) -> Option<Arc<CachedMachine>> {
        self.take_in(record, true)
    }

    /// `is_told` when it is a change, not a part of a listing, whose end is told as a whole.
    fn take_in(&self, record: MachineRecord, is_told: bool) -> Option<Arc<CachedMachine>> {
        let updated = self.machines.apply(record);
        if let Some(shown) = updated.current.as_ref().filter(|_| updated.is_newer) {
            let id = &shown.record.machine.id;
            self.watchers.tell(&shown.record.app, id);
            if is_told {
                self.tell(Change::Machine(id.clone()));
            }
        }
        if let Some(superseded) = updated.superseded {
            self.tell(Change::Superseded(superseded));
        }
        updated.current
    }

    fn end_listing(&self, worker: &WorkerId, begin: u64) {
        for (app, id) in self.machines.end_listing(worker, begin) {
            self.watchers.tell(&app, &id);
        }
        if self.hosts.first().iter().all(|worker| self.machines.is_listed(worker)) {
            self.synced.send_replace(true);
        }
        self.tell(Change::Listed(worker.clone()));
    }

    /// A host said something.
    pub fn heard(&self, worker: &WorkerId) {
        if let Some(state) = self.hosts.heard(worker) {
            self.host_changed(worker, state);
        }
    }

    fn announced(&self, announcement: &Announcement) {
        let worker = &announcement.worker;
        let announced = self.hosts.announced(announcement);
        match announced.state {
            Some(state) => self.host_changed(worker, state),
            None if announced.is_new => self.tell(Change::Host(worker.clone())),
            None => {}
        }
    }

    /// A host is in another state now: so are its machines.
    fn host_changed(&self, worker: &WorkerId, state: HostState) {
        let status = status_of(state);
        match state {
            HostState::Ok => tracing::info!(%worker, "host available"),
            HostState::Draining => tracing::info!(%worker, "host draining"),
            HostState::Suspected | HostState::Unreachable => {
                tracing::warn!(%worker, state = state.as_str(), "no heartbeat from a host");
            }
        }
        for (app, id) in self.machines.set_host_status(worker, status) {
            self.watchers.tell(&app, &id);
            self.tell(Change::Machine(id));
        }
        self.tell(Change::Host(worker.clone()));
    }

    fn tell(&self, change: Change) {
        // Nobody may be listening.
        let _ = self.changes.send(change);
    }
}

/// The `host_status` of what is on a host in this state, where the host does not vouch for it.
fn status_of(state: HostState) -> Option<&'static str> {
    match state {
        HostState::Ok | HostState::Draining => None,
        HostState::Suspected => Some("unknown"),
        HostState::Unreachable => Some("unreachable"),
    }
}

#[cfg(test)]
mod tests;
