//! Keeps the view: takes in deltas, lists workers at the start and whenever something was lost.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use caddis_api::WorkerId;
use caddis_bus::{
    Bus, BusError, Published,
    message::{self, ANNOUNCEMENTS, Announcement, DELTAS, Delta, WorkerReply, WorkerRequest},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use super::sequence::{Next, Sequences};
use crate::{
    context::{AskError, Context, unexpected},
    deletion,
};

/// Machines per page of a listing: a record has a few KiB.
const PAGE: usize = 500;

/// First and longest wait before a worker that can't be listed is asked again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How often it is looked whether hosts are silent.
const LOOK: Duration = Duration::from_millis(500);

/// What workers publish from now on.
pub(crate) struct Changes {
    deltas: mpsc::Receiver<Published>,
    announcements: mpsc::Receiver<Published>,
}

impl Changes {
    /// Of all workers on a bus.
    pub async fn subscribe(bus: &dyn Bus) -> Result<Self, BusError> {
        Ok(Self { deltas: bus.subscribe(DELTAS).await?, announcements: bus.subscribe(ANNOUNCEMENTS).await? })
    }
}

/// Listings in progress.
struct Listings {
    context: Context,
    running: JoinSet<WorkerId>,
    /// By worker; true when it must be listed again after this.
    state: HashMap<WorkerId, bool>,
    known: HashSet<WorkerId>,
}

impl Listings {
    fn begin(&mut self, worker: &WorkerId) {
        self.known.insert(worker.clone());
        if let Some(again) = self.state.get_mut(worker) {
            *again = true;
            return;
        }
        self.state.insert(worker.clone(), false);
        let (context, worker) = (self.context.clone(), worker.clone());
        self.running.spawn(async move {
            list(&context, &worker).await;
            worker
        });
    }

    fn ended(&mut self, worker: &WorkerId) {
        if self.state.remove(worker) == Some(true) {
            self.begin(worker);
        }
    }
}

/// Runs until it is dropped.
pub(crate) async fn follow(context: Context, changes: Changes) {
    let Changes { mut deltas, mut announcements } = changes;
    let mut listings =
        Listings { context: context.clone(), running: JoinSet::new(), state: HashMap::new(), known: HashSet::new() };
    for worker in context.hosts.first() {
        listings.begin(worker);
    }
    let mut sequences = Sequences::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = Instant::now();
    loop {
        tokio::select! {
            // An announcement is of what was published before it: that is taken in first.
            biased;
            published = deltas.recv() => {
                let Some(published) = published else { return };
                // The newest are lost when the queue is full, and without a next one there is no hole to see.
                if deltas.len() + 1 >= deltas.max_capacity() {
                    tracing::warn!("changes come faster than they are taken in, listing all workers");
                    for worker in listings.known.clone() {
                        listings.begin(&worker);
                    }
                }
                take_in(&mut listings, &mut sequences, &published);
            }
            published = announcements.recv() => {
                let Some(published) = published else { return };
                take_in_announcement(&mut listings, &mut sequences, &published);
            }
            _ = look.tick() => {
                let late = looked.elapsed().saturating_sub(LOOK);
                looked = Instant::now();
                if late > LOOK {
                    context.hosts.excuse(late);
                }
                for (worker, state) in context.hosts.look() {
                    context.host_changed(&worker, state);
                }
            }
            Some(ended) = listings.running.join_next() => match ended {
                Ok(worker) => listings.ended(&worker),
                Err(error) => tracing::error!(%error, "a listing ended in a panic"),
            },
        }
    }
}

/// What was published, if it can be read.
fn read<T: DeserializeOwned>(published: &Published) -> Option<T> {
    let message = message::decode(&published.subject, &published.payload);
    message.inspect_err(|error| tracing::error!(%error, "what a worker published can't be read")).ok()
}

fn take_in(listings: &mut Listings, sequences: &mut Sequences, published: &Published) {
    let Some(delta) = read::<Delta>(published) else { return };
    if let Some(state) = listings.context.hosts.heard(&delta.worker) {
        listings.context.host_changed(&delta.worker, state);
    }
    let known = listings.known.contains(&delta.worker);
    let next = sequences.saw(&delta.worker, &delta.incarnation, delta.sequence, known);
    if next == Next::List {
        tracing::info!(worker = %delta.worker, sequence = delta.sequence, "listing a worker anew");
        listings.begin(&delta.worker);
    }
    listings.context.view.apply(delta.record);
}

fn take_in_announcement(listings: &mut Listings, sequences: &mut Sequences, published: &Published) {
    let Some(announcement) = read::<Announcement>(published) else { return };
    let Announcement { worker, incarnation, sequence, .. } = &announcement;
    listings.context.regions.learn(&announcement.region);
    if let Some(state) = listings.context.hosts.announced(&announcement) {
        listings.context.host_changed(worker, state);
    }
    let known = listings.known.contains(worker);
    if sequences.announced(worker, incarnation, *sequence, known) == Next::List {
        tracing::info!(%worker, sequence, "listing a worker: it has published what was not seen");
        listings.begin(worker);
    }
}

/// Lists a worker, however often it takes.
async fn list(context: &Context, worker: &WorkerId) {
    let mut pause = PAUSE.0;
    while let Err(error) = list_once(context, worker).await {
        let error = caddis_api::ApiError::from(error);
        tracing::warn!(%worker, error = error.message, "can't list a worker, trying again");
        tokio::time::sleep(pause).await;
        pause = PAUSE.1.min(pause * 2);
    }
    deletion::reconcile(context, worker).await;
}

async fn list_once(context: &Context, worker: &WorkerId) -> Result<(), AskError> {
    let begin = context.view.begin_listing();
    let mut after = None;
    loop {
        let request = WorkerRequest::List { after, limit: PAGE };
        let records = match context.ask(worker, request, context.settings.request_deadline).await? {
            WorkerReply::Machines { records, .. } => records,
            other => return Err(AskError::Refused(unexpected(&other))),
        };
        let complete = records.len() < PAGE;
        after = records.last().map(|record| record.machine.id.clone());
        for record in records {
            // What is destroyed is looked through afterwards, against the catalog.
            context.view.take_in(record, false);
        }
        if complete {
            context.view.end_listing(worker, begin, context.hosts.first());
            return Ok(());
        }
    }
}
