//! Tells the gateways what changed, in numbered deltas, and keeps what it told, so that a gateway that missed
//! something gets all of it at a known number.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use caddis_api::{MachineId, WorkerId};
use caddis_bus::{
    Bus,
    message::{ANNOUNCEMENTS, Announcement, DELTAS, Delta, MachineRecord, encode},
};
use tokio::sync::mpsc;

/// The published state of all machines. Clones share it.
#[derive(Clone)]
pub struct Publisher {
    worker: WorkerId,
    incarnation: String,
    shared: Arc<Mutex<Shared>>,
    outbox: mpsc::UnboundedSender<Outgoing>,
}

/// Sent in the order in which it was said.
enum Outgoing {
    Delta(Box<Delta>),
    Announcement(Announcement),
}

#[derive(Default)]
struct Shared {
    sequence: u64,
    records: BTreeMap<MachineId, MachineRecord>,
    by_app: HashMap<String, BTreeSet<MachineId>>,
}

impl Publisher {
    /// A publisher on `bus`; a task of the current runtime sends what it is given, until all clones are gone.
    pub fn new(worker: WorkerId, bus: Arc<dyn Bus>) -> Self {
        let (outbox, mut queue) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(outgoing) = queue.recv().await {
                let published = match outgoing {
                    Outgoing::Delta(delta) => bus.publish(DELTAS, encode(&delta)).await,
                    Outgoing::Announcement(announcement) => bus.publish(ANNOUNCEMENTS, encode(&announcement)).await,
                };
                if let Err(e) = published {
                    // The hole in the numbers makes the gateways ask for everything.
                    tracing::warn!(error = %e, "can't publish");
                }
            }
        });
        let incarnation = caddis_api::VersionId::generate().to_string();
        Self { worker, incarnation, shared: Arc::default(), outbox }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a machine as it is now.
    pub fn publish(&self, record: MachineRecord) {
        let mut shared = self.shared();
        shared.sequence += 1;
        if shared.records.insert(record.machine.id.clone(), record.clone()).is_none() {
            shared.by_app.entry(record.app.clone()).or_default().insert(record.machine.id.clone());
        }
        let delta = Delta {
            worker: self.worker.clone(),
            sequence: shared.sequence,
            incarnation: self.incarnation.clone(),
            record,
        };
        // Sent under the lock, so that the order on the bus is the order of the numbers. The receiver only goes away
        // with the runtime.
        let _ = self.outbox.send(Outgoing::Delta(Box::new(delta)));
    }

    /// Says that the worker is there.
    pub fn announce(&self, region: &str, draining: bool) {
        let shared = self.shared();
        let announcement = Announcement {
            worker: self.worker.clone(),
            region: region.to_owned(),
            incarnation: self.incarnation.clone(),
            sequence: shared.sequence,
            draining,
        };
        // Under the lock, as in `publish`.
        let _ = self.outbox.send(Outgoing::Announcement(announcement));
    }

    /// Forgets a destroyed machine.
    pub fn forget(&self, machine: &MachineId) {
        let mut shared = self.shared();
        let Some(record) = shared.records.remove(machine) else { return };
        if let Some(machines) = shared.by_app.get_mut(&record.app) {
            machines.remove(machine);
            if machines.is_empty() {
                shared.by_app.remove(&record.app);
            }
        }
    }

    /// The machines of an app, destroyed ones too. Costs as much as there are of them, however many there are in all.
    pub fn of_app(&self, app: &str) -> Vec<MachineId> {
        self.shared().by_app.get(app).into_iter().flatten().cloned().collect()
    }

    /// Whether a machine is of an app.
    pub fn is_of_app(&self, app: &str, machine: &MachineId) -> bool {
        self.shared().by_app.get(app).is_some_and(|machines| machines.contains(machine))
    }

    /// One machine as last published.
    pub fn get(&self, machine: &MachineId) -> Option<MachineRecord> {
        self.shared().records.get(machine).cloned()
    }

    /// Machines after `after` in id order, at most `limit`, and the number of the last delta they contain.
    pub fn list(&self, after: Option<&MachineId>, limit: usize) -> (Vec<MachineRecord>, u64) {
        let shared = self.shared();
        let beyond = |id: &&MachineId| after.is_none_or(|after| *id > after);
        let records = shared.records.iter().filter(|(id, _)| beyond(id)).take(limit);
        (records.map(|(_, record)| record.clone()).collect(), shared.sequence)
    }
}
