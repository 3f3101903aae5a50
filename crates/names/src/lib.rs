//! Names of machines below `internal.`: which there are, and what they have. An index of the view's
//! machines by network and app, changed with each change of the view, so that an answer reads what
//! it tells and no more.
//!
//! ```text
//!  View ── changes ──▶ follow ──▶ Index: network ─▶ app ─▶ machines, and addresses by group
//!  network's DNS ── look_up ────────▶  ▲
//! ```
#![forbid(unsafe_code)]

mod app;
mod entry;
mod index;
#[cfg(test)]
mod tests;

use std::{
    net::Ipv6Addr,
    sync::atomic::{AtomicBool, Ordering},
};

use caddis_api::{MachineId, WorkerId};
use caddis_network::{Found, Names};
use caddis_view::{Change, View};
use parking_lot::RwLock;
use tokio::sync::broadcast::error::RecvError;

use crate::{entry::Entry, index::Index};

/// Names of the machines of a view.
#[derive(Debug, Default)]
pub struct InternalNames {
    index: RwLock<Index>,
    /// All that was there when we began is in the index.
    is_ready: AtomicBool,
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
        if !self.is_ready.load(Ordering::Acquire) {
            return Found::NotReady;
        }
        self.index.read().look_up(source, labels)
    }
}
