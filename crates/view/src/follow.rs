//! Keeps the view: takes in deltas, lists workers at the start and whenever something was lost, and
//! asks for configurations that came without being known.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use caddis_api::{ErrorCode, MachineId, WorkerId};
use caddis_bus::{
    AskError, Bus, BusError, WorkerClient,
    message::{
        self, ANNOUNCEMENTS, Announcement, DELTAS, Delta, MachineRecord, WorkerReply, WorkerRequest,
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    View,
    sequence::{Next, Sequences},
};

/// First and longest wait before a worker that could not be asked is asked again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How often it is looked whether hosts are silent.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a worker may take to list a page of its machines, or to give one. Asked twice.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// What workers publish from now on.
pub struct Published {
    deltas: mpsc::Receiver<caddis_bus::Published>,
    announcements: mpsc::Receiver<caddis_bus::Published>,
}

impl Published {
    /// Of all workers on a bus.
    ///
    /// # Errors
    /// When the bus refuses.
    pub async fn subscribe(bus: &dyn Bus) -> Result<Self, BusError> {
        Ok(Self {
            deltas: bus.subscribe(DELTAS).await?,
            announcements: bus.subscribe(ANNOUNCEMENTS).await?,
        })
    }
}

/// What is asked of workers beside what they publish.
struct Inquiries {
    view: Arc<View>,
    client: WorkerClient,
    running: JoinSet<(Inquiry, Option<Listed>)>,
    /// True when it must be made again after this.
    state: HashMap<Inquiry, bool>,
    known: HashSet<WorkerId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Inquiry {
    /// All machines of a worker.
    List(WorkerId),
    /// One machine, with its configuration.
    Machine(WorkerId, MachineId),
    /// All volumes of a worker.
    Volumes(WorkerId),
}

impl Inquiries {
    fn list(&mut self, worker: &WorkerId) {
        if self.known.insert(worker.clone()) {
            self.begin(Inquiry::Volumes(worker.clone()));
        }
        self.begin(Inquiry::List(worker.clone()));
    }

    fn begin(&mut self, inquiry: Inquiry) {
        if let Some(again) = self.state.get_mut(&inquiry) {
            *again = true;
            return;
        }
        self.state.insert(inquiry.clone(), false);
        let (view, client) = (self.view.clone(), self.client.clone());
        self.running.spawn(async move {
            let listed = match &inquiry {
                Inquiry::List(worker) => Some(list(&view, &client, worker).await),
                Inquiry::Machine(worker, machine) => {
                    fetch(&view, &client, worker, machine).await;
                    None
                }
                Inquiry::Volumes(worker) => {
                    list_volumes(&view, &client, worker).await;
                    None
                }
            };
            (inquiry, listed)
        });
    }

    fn ended(&mut self, inquiry: Inquiry) {
        if self.state.remove(&inquiry) == Some(true) {
            self.begin(inquiry);
        }
    }
}

/// Keeps `view` until it is dropped.
pub async fn follow(view: Arc<View>, client: WorkerClient, published: Published) {
    let Published { mut deltas, mut announcements } = published;
    let mut inquiries = Inquiries {
        view: view.clone(),
        client,
        running: JoinSet::new(),
        state: HashMap::new(),
        known: HashSet::new(),
    };
    for worker in view.hosts.first() {
        inquiries.list(worker);
    }
    let mut sequences = Sequences::default();
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = Instant::now();
    loop {
        tokio::select! {
            // An announcement is of what was published before it: that is taken in first.
            biased;
            published = deltas.recv() => {
                let Some(published) = published else { return };
                // The newest are lost when the queue is full, and without a next one there is no
                // hole to see.
                if deltas.len() + 1 >= deltas.max_capacity() {
                    tracing::warn!("can't keep up with changes, listing all workers again");
                    for worker in inquiries.known.clone() {
                        inquiries.list(&worker);
                    }
                }
                take_in(&mut inquiries, &mut sequences, &published);
            }
            published = announcements.recv() => {
                let Some(published) = published else { return };
                take_in_announcement(&mut inquiries, &mut sequences, &published);
            }
            _ = look.tick() => {
                let late = looked.elapsed().saturating_sub(LOOK_INTERVAL);
                looked = Instant::now();
                if late > LOOK_INTERVAL {
                    view.hosts.excuse(late);
                }
                for (worker, state) in view.hosts.look() {
                    view.host_changed(&worker, state);
                }
            }
            Some(ended) = inquiries.running.join_next() => match ended {
                Ok((inquiry, listed)) => {
                    let listed = (&inquiry, listed);
                    if let (Inquiry::List(worker), Some(Listed { incarnation, sequence })) = listed
                        && sequences.listed(worker, &incarnation, sequence) == Next::List
                    {
                        tracing::info!(%worker, sequence, "listing a worker again: some of its \
                            messages were missed");
                        inquiries.list(worker);
                    }
                    inquiries.ended(inquiry);
                }
                Err(error) => tracing::error!(%error, "a lookup panicked"),
            },
        }
    }
}

/// What was published, if it can be read.
fn read<T: DeserializeOwned>(published: &caddis_bus::Published) -> Option<T> {
    let message = message::decode(&published.subject, &published.payload);
    message.inspect_err(|error| tracing::error!(%error, "can't parse what a worker published")).ok()
}

fn take_in(
    inquiries: &mut Inquiries,
    sequences: &mut Sequences,
    published: &caddis_bus::Published,
) {
    let Some(Delta { worker, sequence, incarnation, record }) = read(published) else { return };
    inquiries.view.heard(&worker);
    let known = inquiries.known.contains(&worker);
    if sequences.saw(&worker, &incarnation, sequence, known) == Next::List {
        tracing::info!(%worker, sequence, "listing a worker again");
        inquiries.list(&worker);
    }
    let machine = record.machine.id.clone();
    if inquiries.view.apply(record).is_none() {
        inquiries.begin(Inquiry::Machine(worker, machine));
    }
}

fn take_in_announcement(
    inquiries: &mut Inquiries,
    sequences: &mut Sequences,
    published: &caddis_bus::Published,
) {
    let Some(announcement) = read::<Announcement>(published) else { return };
    let Announcement { worker, incarnation, sequence, .. } = &announcement;
    inquiries.view.announced(&announcement);
    let known = inquiries.known.contains(worker);
    if sequences.announced(worker, incarnation, *sequence, known) == Next::List {
        tracing::info!(%worker, sequence, "listing a worker: some of its messages were missed");
        inquiries.list(worker);
    }
    if inquiries.view.volumes.is_missing(worker, incarnation, announcement.volumes) {
        inquiries.begin(Inquiry::Volumes(worker.clone()));
    }
}

/// Which deltas a listing contains: those up to a number, of the process that gave its first page.
struct Listed {
    incarnation: String,
    sequence: u64,
}

/// Lists a worker, however often it takes.
async fn list(view: &View, client: &WorkerClient, worker: &WorkerId) -> Listed {
    let list = || list_once(view, client, worker);
    until_done(list, |error| tracing::warn!(%worker, ?error, "can't list a worker, retrying")).await
}

async fn list_once(
    view: &View,
    client: &WorkerClient,
    worker: &WorkerId,
) -> Result<Listed, AskError> {
    let begin = view.machines.begin_listing();
    let mut after = None;
    let mut listed = None;
    loop {
        let request = WorkerRequest::List { after: after.clone() };
        let (records, more, page) = match client.ask(worker, request, REQUEST_TIMEOUT).await? {
            WorkerReply::Machines { records, more, incarnation, sequence } => {
                (records, more, Listed { incarnation, sequence })
            }
            other => return Err(unexpected(worker, &other)),
        };
        let listed = listed.get_or_insert(page);
        after = records.last().map(|record| record.machine.id.clone()).or(after);
        for record in records {
            let machine = record.machine.id.clone();
            if view.take_in(record, false).is_none()
                && let Some(record) = get(client, worker, &machine).await?
            {
                view.take_in(record, false);
            }
        }
        if !more {
            view.heard(worker);
            view.end_listing(worker, begin);
            let Listed { incarnation, sequence } = listed;
            return Ok(Listed { incarnation: std::mem::take(incarnation), sequence: *sequence });
        }
    }
}

/// Lists the volumes of a worker, however often it takes.
async fn list_volumes(view: &View, client: &WorkerClient, worker: &WorkerId) {
    let list = || list_volumes_once(view, client, worker);
    until_done(list, |error| {
        tracing::warn!(%worker, ?error, "can't list the volumes of a worker, retrying");
    })
    .await;
}

async fn list_volumes_once(
    view: &View,
    client: &WorkerClient,
    worker: &WorkerId,
) -> Result<(), AskError> {
    let begin = view.volumes.begin_listing();
    let mut after = None;
    let mut first = None;
    loop {
        let request = WorkerRequest::ListVolumes { after: after.clone() };
        let (records, more, page) = match client.ask(worker, request, REQUEST_TIMEOUT).await? {
            WorkerReply::Volumes { records, more, incarnation, revision } => {
                (records, more, (incarnation, revision))
            }
            other => return Err(unexpected(worker, &other)),
        };
        let (incarnation, revision) = first.get_or_insert(page);
        view.volumes.is_process(worker, incarnation);
        after = records.last().map(|record| record.volume.id.clone()).or(after);
        for record in records {
            view.apply_volume(record);
        }
        if !more {
            view.heard(worker);
            view.end_listing_volumes(worker, begin, (incarnation, *revision));
            return Ok(());
        }
    }
}

/// Has the view know one machine as a whole, however often it takes.
async fn fetch(view: &View, client: &WorkerClient, worker: &WorkerId, machine: &MachineId) {
    let warn = |error| {
        tracing::warn!(%worker, %machine, ?error, "can't fetch a machine, retrying");
    };
    if let Some(record) = until_done(|| get(client, worker, machine), warn).await {
        view.apply(record);
    }
}

/// Asks a worker until it answers.
async fn until_done<T, F: Future<Output = Result<T, AskError>>>(
    mut ask: impl FnMut() -> F,
    warn: impl Fn(AskError),
) -> T {
    let mut backoff = BACKOFF.0;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => warn(error),
        }
        tokio::time::sleep(backoff).await;
        backoff = BACKOFF.1.min(backoff * 2);
    }
}

/// A machine with its configuration; nothing when it is gone by now.
async fn get(
    client: &WorkerClient,
    worker: &WorkerId,
    machine: &MachineId,
) -> Result<Option<MachineRecord>, AskError> {
    match client.ask(worker, WorkerRequest::Get { machine: machine.clone() }, REQUEST_TIMEOUT).await
    {
        Ok(WorkerReply::Machine { record }) => Ok(Some(*record)),
        Ok(other) => Err(unexpected(worker, &other)),
        Err(AskError::Refused(error)) if error.code == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn unexpected(worker: &WorkerId, reply: &WorkerReply) -> AskError {
    let reason = format!("{reply:?} does not fit the request").chars().take(200).collect();
    AskError::Bus(BusError::Unreadable { subject: message::worker_subject(worker), reason })
}
