//! Tells the gateways what changed, in numbered deltas, and keeps what it told, so that a gateway
//! that missed something gets all of it at a known number.
//!
//! What waits to be sent is bounded: where the bus is slower than the changes, only the newest
//! state of each machine waits for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use caddis_api::{AppName, EventId, MachineId, RawConfig, RegionCode, WorkerId};
use caddis_bus::{
    Bus, MAX_MESSAGE_BYTES,
    message::{
        ANNOUNCEMENTS, Announcement, DELTAS, Delta, LARGE_CONFIG_BYTES, MachineRecord, encode,
    },
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Messages that may wait before those of machines that have changed since are dropped.
const OUTBOX: usize = 1024;

/// Bytes of records that go into a page of a listing; the rest of a message is room for its frame.
const PAGE_BYTES: usize = MAX_MESSAGE_BYTES - 64 * 1024;

/// The published state of all machines. Clones share it.
#[derive(Clone)]
pub struct Publisher {
    worker: WorkerId,
    incarnation: String,
    shared: Arc<Shared>,
    /// The task that sends; it ends with the last clone that others have.
    _sender: Option<Arc<AbortOnDropHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    waiting: Notify,
}

/// Sent in the order in which it was said.
enum Outgoing {
    Machine(Box<MachineRecord>),
    Announcement { region: RegionCode, draining: bool, volumes: u64 },
}

#[derive(Default)]
struct State {
    /// Number of the last delta that was given to the bus.
    sequence: u64,
    records: BTreeMap<MachineId, MachineRecord>,
    by_app: HashMap<AppName, BTreeSet<MachineId>>,
    outbox: VecDeque<Outgoing>,
    /// What the last delta of a machine told: revision of its configuration, and its latest event.
    told: HashMap<MachineId, (u64, Option<EventId>)>,
}

/// Most machines of a page.
const PAGE: usize = 500;

/// A page of a listing.
pub struct Page {
    /// In id order.
    pub records: Vec<MachineRecord>,
    /// There are more after these.
    pub more: bool,
    /// Deltas up to this number are contained.
    pub sequence: u64,
}

impl Publisher {
    /// A publisher on `bus`; a task of the current runtime sends what it is given.
    pub fn new(worker: WorkerId, bus: Arc<dyn Bus>) -> Self {
        let incarnation = caddis_api::VersionId::generate().to_string();
        let publisher = Self { worker, incarnation, shared: Arc::default(), _sender: None };
        let sender = publisher.clone();
        let task = tokio::spawn(async move {
            loop {
                let waiting = sender.shared.waiting.notified();
                match sender.next() {
                    Some((subject, message)) => {
                        if let Err(e) = bus.publish(subject, message).await {
                            // The hole in the numbers makes the gateways ask for everything.
                            tracing::warn!(error = %e, "can't publish");
                        }
                    }
                    None => waiting.await,
                }
            }
        });
        Self { _sender: Some(Arc::new(AbortOnDropHandle::new(task))), ..publisher }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    /// Tells this process of the worker from others.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Publishes a machine as it is now.
    pub fn publish(&self, record: MachineRecord) {
        let mut state = self.state();
        let record = state.keep(record);
        state.send(Outgoing::Machine(Box::new(record)));
        self.shared.waiting.notify_one();
    }

    /// Says that the worker is there, with so many changes of volumes behind it.
    pub fn announce(&self, region: &RegionCode, draining: bool, volumes: u64) {
        let region = region.clone();
        self.state().send(Outgoing::Announcement { region, draining, volumes });
        self.shared.waiting.notify_one();
    }

    /// The next message to send, and on which subject.
    fn next(&self) -> Option<(&'static str, Bytes)> {
        let mut state = self.state();
        let outgoing = state.outbox.pop_front()?;
        let (worker, incarnation) = (self.worker.clone(), self.incarnation.clone());
        match outgoing {
            Outgoing::Machine(mut record) => {
                state.leave_out_what_was_told(&mut record);
                state.sequence += 1;
                let delta =
                    Delta { worker, sequence: state.sequence, incarnation, record: *record };
                drop(state);
                Some((DELTAS, encode(&delta)))
            }
            Outgoing::Announcement { region, draining, volumes } => {
                let sequence = state.sequence;
                drop(state);
                Some((
                    ANNOUNCEMENTS,
                    encode(&Announcement {
                        worker,
                        region,
                        incarnation,
                        sequence,
                        draining,
                        volumes,
                    }),
                ))
            }
        }
    }

    /// Forgets a destroyed machine.
    pub fn forget(&self, machine: &MachineId) {
        let mut state = self.state();
        state.told.remove(machine);
        let Some(record) = state.records.remove(machine) else { return };
        if let Some(machines) = state.by_app.get_mut(&record.app) {
            machines.remove(machine);
            if machines.is_empty() {
                state.by_app.remove(&record.app);
            }
        }
    }

    /// The machines of an app, destroyed ones too. Costs as much as there are of them, however many
    /// there are in all.
    pub fn of_app(&self, app: &str) -> Vec<MachineId> {
        self.state().by_app.get(app).into_iter().flatten().cloned().collect()
    }

    /// Whether a machine is of an app.
    pub fn is_of_app(&self, app: &str, machine: &MachineId) -> bool {
        self.state().by_app.get(app).is_some_and(|machines| machines.contains(machine))
    }

    /// One machine as last published.
    pub fn get(&self, machine: &MachineId) -> Option<MachineRecord> {
        self.state().records.get(machine).cloned()
    }

    /// A record of a machine as others are told it: its configuration known by its revision.
    pub fn known(&self, mut record: MachineRecord) -> MachineRecord {
        if let Some(known) = self.state().records.get(&record.machine.id) {
            record.config_revision = known.config_revision;
        }
        record
    }

    /// Machines after `after` in id order, as many as fit a message.
    pub fn list(&self, after: Option<&MachineId>) -> Page {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let told = |record: &MachineRecord| {
            let is_large = record.config_bytes() > LARGE_CONFIG_BYTES;
            if is_large { record.status_only() } else { record.clone() }
        };
        let (mut records, sequence) = {
            let state = self.state();
            let later = state.records.range((from, Bound::Unbounded)).take(PAGE + 1);
            (later.map(|(_, record)| told(record)).collect::<Vec<_>>(), state.sequence)
        };
        // Their sizes are found without holding up who publishes.
        let (mut bytes, mut fitting) = (0, 0);
        for record in &mut records {
            bytes += encoded_bytes(record);
            if fitting == PAGE || (bytes > PAGE_BYTES && fitting > 0) {
                break;
            }
            fitting += 1;
        }
        let more = records.len() > fitting;
        records.truncate(fitting);
        Page { records, more, sequence }
    }
}

/// Bytes of a record in a message. Its configuration is kept as its text: it need not be written to
/// be measured.
fn encoded_bytes(record: &mut MachineRecord) -> usize {
    let config = record.machine.config.take();
    let bytes = encode(record).len() + config.as_ref().map_or(0, RawConfig::size);
    record.machine.config = config;
    bytes
}

impl State {
    /// Keeps a record for who asks, and finds out which revision brought its configuration.
    fn keep(&mut self, mut record: MachineRecord) -> MachineRecord {
        match self.records.get(&record.machine.id) {
            Some(known) => {
                let (was, is) = (&known.machine, &record.machine);
                let is_same =
                    was.config == is.config && was.image_ref.labels == is.image_ref.labels;
                record.config_revision =
                    if is_same { known.config_revision } else { record.revision };
            }
            None => {
                self.by_app
                    .entry(record.app.clone())
                    .or_default()
                    .insert(record.machine.id.clone());
                record.config_revision = record.revision;
            }
        }
        self.records.insert(record.machine.id.clone(), record.clone());
        record
    }

    fn send(&mut self, outgoing: Outgoing) {
        self.outbox.push_back(outgoing);
        // As many as there are machines may have to wait, however slow the bus is.
        if self.outbox.len() < OUTBOX.max(2 * self.records.len()) {
            return;
        }
        let (mut machines, mut announced) = (HashSet::new(), false);
        let newest: VecDeque<_> = std::mem::take(&mut self.outbox)
            .into_iter()
            .rev()
            .filter(|outgoing| match outgoing {
                Outgoing::Machine(record) => machines.insert(record.machine.id.clone()),
                Outgoing::Announcement { .. } => !std::mem::replace(&mut announced, true),
            })
            .collect();
        self.outbox = newest.into_iter().rev().collect();
    }

    /// Leaves of a machine what is new since its last delta.
    fn leave_out_what_was_told(&mut self, record: &mut MachineRecord) {
        let newest = record.machine.events.iter().flatten().next().map(|event| event.id.clone());
        let told = self.told.get(&record.machine.id);
        let (told_config, told_event) = match told {
            Some((config, event)) => (Some(*config), event.clone()),
            None => (None, None),
        };
        if told_config == Some(record.config_revision) || record.config_bytes() > LARGE_CONFIG_BYTES
        {
            record.machine.config = None;
            record.machine.image_ref.labels = None;
        }
        if let (Some(events), Some(told)) = (&mut record.machine.events, &told_event) {
            events.retain(|event| event.id > *told);
        }
        let told_event = newest.max(told_event);
        self.told.insert(record.machine.id.clone(), (record.config_revision, told_event));
    }
}

#[cfg(test)]
mod tests;
