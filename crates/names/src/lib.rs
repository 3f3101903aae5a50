//! Names of machines below `internal.`: which there are, and what they have. An index of the view's
//! machines by network and app, changed with each change of the view, so that an answer reads what
//! it tells and no more. Names of services in private networks, below `flycast.`, are read from the
//! catalog whenever an address changes.
//!
//! ```text
//!  View ── changes ──▶ follow ──▶ Index: network ─▶ app ─▶ machines, and addresses by group
//!  network's DNS ── look_up ────────▶  ▲
//!               └── look_up_services ▶ Services ◀── follow_addresses ◀── changes ── Catalog
//! ```
#![forbid(unsafe_code)]

mod app;
mod entry;
mod index;
mod peers;
mod services;
#[cfg(test)]
mod tests;

use std::{
    net::Ipv6Addr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use caddis_api::{MachineId, WorkerId};
use caddis_catalog::Catalog;
use caddis_network::{Found, Names};
use caddis_view::{Change, View};
use parking_lot::RwLock;
use tokio::sync::broadcast::error::RecvError;

use crate::{entry::Entry, index::Index, peers::Peers, services::Services};

/// Time until a catalog that did not answer is asked again.
const CATALOG_RETRY: Duration = Duration::from_secs(1);

/// Names of the machines of a view, and of apps with addresses in their networks.
#[derive(Debug, Default)]
pub struct InternalNames {
    index: RwLock<Index>,
    /// All that was there when we began is in the index.
    is_ready: AtomicBool,
    /// None until they have been read.
    services: RwLock<Option<Services>>,
    /// None until they have been read.
    peers: RwLock<Option<Peers>>,
}

impl InternalNames {
    /// Keeps the names until dropped. Until the view has what the workers had when it began, no
    /// name is said to exist or not.
    pub async fn follow(&self, view: &View) {
        let mut changes = view.changes();
        view.synced().await;
        self.update_all(view);
        self.is_ready.store(true, Ordering::Release);
        loop {
            match changes.recv().await {
                Ok(Change::Machine(id)) => self.update(view, &id),
                Ok(Change::Listed(worker)) => self.update_worker(view, &worker),
                Ok(
                    Change::Host(_)
                    | Change::Volume(_)
                    | Change::VolumesListed(_)
                    | Change::Superseded(_),
                ) => {}
                Err(RecvError::Lagged(_)) => self.update_all(view),
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Keeps the names of services until dropped. Until they have been read once, none is said to
    /// exist or not.
    pub async fn follow_addresses(&self, catalog: &Catalog) {
        let mut changes = catalog.addresses_changed();
        loop {
            match catalog.addresses().await {
                Ok(addresses) => {
                    let services = Services::new(addresses);
                    *self.services.write() = Some(services);
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
                // Nothing tells when it answers again; the names that were read last stay.
                Err(error) => {
                    tracing::warn!(%error, "can't read the addresses of apps");
                    tokio::time::sleep(CATALOG_RETRY).await;
                }
            }
        }
    }

    /// Keeps the names of WireGuard peers until dropped, as [`Self::follow_addresses`] does.
    pub async fn follow_peers(&self, catalog: &Catalog) {
        let mut changes = catalog.peers_changed();
        loop {
            match catalog.peers().await {
                Ok(peers) => {
                    let peers = Peers::new(peers);
                    *self.peers.write() = Some(peers);
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "can't read the WireGuard peers");
                    tokio::time::sleep(CATALOG_RETRY).await;
                }
            }
        }
    }

    /// The machine that has this address, and its app.
    pub fn machine_at(&self, address: Ipv6Addr) -> Option<(MachineId, String)> {
        let index = self.index.read();
        let (id, entry) = index.at(address)?;
        Some((id.clone(), entry.app.clone()))
    }

    /// A machine may be another than before, or forgotten.
    fn update(&self, view: &View, id: &MachineId) {
        let shown = view.get(id);
        // Configurations can be large: one is read before the index is locked, and only when it
        // isn't known.
        let known = self.index.read().get(id).cloned();
        let entry = shown.and_then(|shown| Entry::of(&shown.record, known.as_ref()));
        if known != entry {
            self.index.write().put(id, entry);
        }
    }

    /// Any machine of a worker may be.
    fn update_worker(&self, view: &View, worker: &WorkerId) {
        let known = self.index.read().ids(|entry| entry.worker == *worker);
        let shown = view.of_worker(worker);
        let shown = shown.iter().map(|shown| &shown.record.machine.id);
        known.iter().chain(shown).for_each(|id| self.update(view, id));
    }

    fn update_all(&self, view: &View) {
        let known = self.index.read().ids(|_| true);
        known.iter().for_each(|id| self.update(view, id));
        for (worker, _) in view.hosts().all() {
            self.update_worker(view, &worker);
        }
    }
}

impl Names for InternalNames {
    fn look_up(&self, source: Ipv6Addr, labels: &[&str]) -> Found {
        if let [labels @ .., "_peer"] = labels {
            return match &*self.peers.read() {
                Some(peers) => peers.look_up(source, labels),
                None => Found::NotReady,
            };
        }
        if !self.is_ready.load(Ordering::Acquire) {
            return Found::NotReady;
        }
        self.index.read().look_up(source, labels)
    }

    fn look_up_services(&self, source: Ipv6Addr, labels: &[&str]) -> Found {
        match &*self.services.read() {
            Some(services) => services.look_up(source, labels),
            None => Found::NotReady,
        }
    }
}
