//! A worker that does what it is told at once, or not before the test says so, and publishes what
//! it did.

pub mod records;
mod streams;
mod volumes;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use caddis_api::{
    ApiError, LeaseNonce, MachineId, MachineState, RegionCode, VersionId, VolumeId, WorkerId,
    exec::ProcessStat,
    hold::Hold,
    lease::{Lease, PublicLease},
    requests::{Memory, StartReply},
    volume::{Filesystem, SnapshotStatus},
};
use caddis_bus::{
    Bus, Handler, InProcessBus, Serving,
    message::{
        self, ANNOUNCE_INTERVAL, ANNOUNCEMENTS, Action, Announcement, AppPolicies, CreateVolume,
        DELTAS, Delta, Envelope, MachineEgress, MachineRecord, Offer, SnapshotRecord,
        VersionRecord, VolumeRecord, WorkerReply, WorkerRequest, WorkerResult,
    },
    stream::frames::{self, Frame},
};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc};

use self::records::{lease, new_record, version};
pub use self::{
    records::enter,
    streams::{SessionEnd, StreamCall},
};

/// Machines per page of a listing.
const PAGE: usize = 300;

#[derive(Default)]
pub struct State {
    /// Egress addresses as they were told last.
    pub egress: Vec<MachineEgress>,
    /// The number of these.
    pub egress_revision: u64,
    pub machines: BTreeMap<MachineId, MachineRecord>,
    pub leases: BTreeMap<MachineId, Lease>,
    /// Replaced ones, newest first; of all machines.
    pub versions: Vec<VersionRecord>,
    pub answered: BTreeMap<String, WorkerResult>,
    pub sequence: u64,
    /// Network policies as they were told last.
    pub policies: Vec<AppPolicies>,
    /// The number of these.
    pub policy_revision: u64,
    /// The next ones are refused so.
    pub policy_errors: VecDeque<ApiError>,
    pub incarnation: String,
    /// The next creates fail so.
    pub create_errors: VecDeque<ApiError>,
    /// The next updates fail so.
    pub update_errors: VecDeque<ApiError>,
    /// Creates do their work, and then say nothing this often.
    pub silent_creates: u32,
    /// The next create waits for this before it does anything.
    pub create_gate: Option<Arc<Notify>>,
    /// Deltas are counted but not published, and nothing is announced.
    pub mute: bool,
    /// It says that it is being drained.
    pub draining: bool,
    pub offer: Option<Offer>,
    pub problems: Vec<String>,
    /// What it says works less well than it should.
    pub warnings: Vec<String>,
    pub calls: Vec<StreamCall>,
    pub requests: Vec<WorkerRequest>,
    pub stream_answer: Option<(u16, String)>,
    pub lists: u64,
    pub volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// Counts their changes.
    pub volume_revision: u64,
    pub volume_lists: u64,
    /// The next creates and changes of volumes fail so.
    pub volume_errors: VecDeque<ApiError>,
    /// In the order in which they were taken.
    pub snapshots: Vec<SnapshotRecord>,
    /// It says nothing of them.
    pub silent_snapshots: bool,
    /// Every machine runs a moment after each change.
    pub prompt: bool,
}

#[derive(Clone)]
pub struct FakeWorker {
    pub id: WorkerId,
    pub bus: InProcessBus,
    state: Arc<Mutex<State>>,
    /// Wakes when a listing was answered.
    pub listed: Arc<Notify>,
    sessions: mpsc::UnboundedSender<SessionEnd>,
    opened: Arc<AsyncMutex<mpsc::UnboundedReceiver<SessionEnd>>>,
}

impl FakeWorker {
    pub fn new(bus: InProcessBus) -> Self {
        Self::named("W1", bus)
    }

    pub fn named(id: &str, bus: InProcessBus) -> Self {
        let state = State { incarnation: "first".to_owned(), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let (sessions, opened) = mpsc::unbounded_channel();
        let opened = Arc::new(AsyncMutex::new(opened));
        Self {
            id: WorkerId::from_trusted(id),
            bus,
            state,
            listed: Arc::default(),
            sessions,
            opened,
        }
    }

    /// Its end of the next session.
    pub async fn session(&self) -> SessionEnd {
        self.opened.lock().await.recv().await.unwrap()
    }

    fn open_session(&self, body: Body) -> Response<Body> {
        if let Some((status, body)) = self.state().stream_answer.clone() {
            return Response::builder().status(status).body(Body::from(body)).unwrap();
        }
        let (say, mut receiver) = mpsc::channel::<Frame>(1);
        self.sessions.send(SessionEnd { heard: frames::read(body).boxed(), say }).ok().unwrap();
        let frames = futures::stream::poll_fn(move |task| receiver.poll_recv(task));
        Response::new(Body::from_stream(
            frames.map(|frame| Ok::<_, std::convert::Infallible>(frame.encode())),
        ))
    }

    pub async fn serve(&self, region: &str) -> Vec<Serving> {
        let region = RegionCode::from_trusted(region);
        let requests =
            self.bus.serve(&message::worker_subject(&self.id), Arc::new(self.clone())).await;
        let questions =
            self.bus.serve(&message::region_subject(&region), Arc::new(Offers(self.clone()))).await;
        let worker = self.clone();
        let announcing = tokio::spawn(async move {
            loop {
                worker.announce(&region).await;
                tokio::time::sleep(ANNOUNCE_INTERVAL).await;
            }
        });
        let announcing = Serving::new(move || announcing.abort());
        vec![requests.unwrap(), questions.unwrap(), announcing]
    }

    /// Says that it is there, unless it says nothing.
    pub async fn announce(&self, region: &str) {
        let announcement = {
            let state = self.state();
            let announcement = Announcement {
                worker: self.id.clone(),
                region: RegionCode::from_trusted(region),
                incarnation: state.incarnation.clone(),
                sequence: state.sequence,
                draining: state.draining,
                volumes: state.volume_revision,
            };
            (!state.mute).then_some(announcement)
        };
        if let Some(announcement) = announcement {
            self.bus.publish(ANNOUNCEMENTS, message::encode(&announcement)).await.unwrap();
        }
    }

    /// Has a volume that nobody asked for.
    pub fn add_volume(&self, app: &str, id: &str) {
        let create = CreateVolume {
            id: id.parse().unwrap(),
            name: "data".to_owned(),
            app: app.parse().unwrap(),
            region: RegionCode::from_trusted("local"),
            size_gb: 3,
            encrypted: true,
            filesystem: Filesystem::Ext4,
            source: None,
            org: "personal".to_owned(),
            snapshot: None,
            snapshot_retention: 5,
            auto_backup_enabled: true,
        };
        let request = WorkerRequest::CreateVolume(Box::new(create));
        self.state().volumes(&self.id, request).unwrap();
    }

    /// Has a snapshot of a volume that it has. It is there.
    pub fn add_snapshot(&self, volume: &str, id: &str) {
        let (volume, snapshot) = (volume.parse().unwrap(), id.parse().unwrap());
        let request = WorkerRequest::TakeSnapshot { volume, snapshot };
        let mut state = self.state();
        state.volumes(&self.id, request).unwrap();
        state.snapshots.last_mut().unwrap().snapshot.status = SnapshotStatus::Created;
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Moves a machine to a state with an event, and publishes it.
    pub async fn turn(&self, id: &MachineId, state: MachineState, kind: &str) -> MachineRecord {
        self.turn_with(id, state, kind, Value::Null).await
    }

    /// The same, with what the event tells.
    pub async fn turn_with(
        &self,
        id: &MachineId,
        state: MachineState,
        kind: &str,
        told: Value,
    ) -> MachineRecord {
        let enter = |record: &mut MachineRecord| {
            record.machine.operation = None;
            enter(record, state, kind);
            let event = Arc::make_mut(&mut record.machine.events.as_mut().unwrap()[0]);
            *event = event.clone().telling(told);
        };
        self.change(id, enter).await
    }

    /// Changes a machine, and publishes it.
    pub async fn change(
        &self,
        id: &MachineId,
        change: impl FnOnce(&mut MachineRecord),
    ) -> MachineRecord {
        let (record, delta) = {
            let mut state = self.state();
            let record = state.machines.get_mut(id).unwrap();
            let config = record.machine.config.clone();
            change(record);
            record.revision += 1;
            if record.machine.config != config {
                record.config_revision = record.revision;
            }
            let record = record.clone();
            (record.clone(), state.delta(&self.id, record))
        };
        self.publish(delta).await;
        record
    }

    async fn publish(&self, delta: Option<Delta>) {
        if let Some(delta) = delta {
            self.bus.publish(DELTAS, message::encode(&delta)).await.unwrap();
        }
    }

    /// Carries a request out, and lets the machine run after it when that is wanted.
    async fn carry_out(&self, request: WorkerRequest) -> WorkerResult {
        let result = self.accept(request).await;
        if let Ok(
            WorkerReply::Created { record, .. }
            | WorkerReply::Started { record, .. }
            | WorkerReply::Updated { record, .. }
            | WorkerReply::Done { record },
        ) = &result
            && self.state().prompt
            && !matches!(record.machine.state, MachineState::Started | MachineState::Destroyed)
        {
            self.turn(&record.machine.id, MachineState::Started, "start").await;
        }
        result
    }

    async fn accept(&self, request: WorkerRequest) -> WorkerResult {
        match request {
            WorkerRequest::Create(create) => {
                let (record, lease, delta) = {
                    let mut state = self.state();
                    if let Some(error) = state.create_errors.pop_front() {
                        return Err(error);
                    }
                    if let Some(record) = state.machines.get(&create.id).cloned() {
                        let lease = state.leases.get(&create.id).cloned();
                        return Ok(WorkerReply::Created { record: Box::new(record), lease });
                    }
                    let read = caddis_api::validate::read(&create.config).unwrap();
                    state.attach(&create.id, read.mounts.as_deref().unwrap_or_default())?;
                    let lease =
                        create.lease.clone().map(|(ttl, owner)| lease(&create.id, ttl, owner, ""));
                    let mut record = new_record(&self.id, *create);
                    if let Some(lease) = &lease {
                        record.lease = Some(PublicLease::from(lease));
                        state.leases.insert(record.machine.id.clone(), lease.clone());
                    }
                    state.machines.insert(record.machine.id.clone(), record.clone());
                    let delta = state.delta(&self.id, record.clone());
                    (record, lease, delta)
                };
                self.publish(delta).await;
                Ok(WorkerReply::Created { record: Box::new(record), lease })
            }
            WorkerRequest::Act { machine, nonce, action } => {
                self.act(&machine, nonce, action).await
            }
            WorkerRequest::Update { machine, update, .. } => {
                if let Some(error) = self.state().update_errors.pop_front() {
                    return Err(error);
                }
                let before = self
                    .state()
                    .machines
                    .get(&machine)
                    .cloned()
                    .ok_or_else(ApiError::machine_not_found)?;
                self.state().versions.insert(0, version(&before));
                let lease =
                    update.lease.clone().map(|(ttl, owner)| lease(&machine, ttl, owner, ""));
                let record = self.change(&machine, |record| {
                    record.machine.version = VersionId::generate();
                    record.machine.state = MachineState::Replacing;
                    record.machine.config = Some(update.config);
                });
                Ok(WorkerReply::Updated { record: Box::new(record.await), lease })
            }
            WorkerRequest::Get { machine } => {
                let record = self
                    .state()
                    .machines
                    .get(&machine)
                    .cloned()
                    .ok_or_else(ApiError::machine_not_found)?;
                Ok(WorkerReply::Machine { record: Box::new(record) })
            }
            WorkerRequest::List { after } => {
                let mut state = self.state();
                state.lists += 1;
                let later = state
                    .machines
                    .values()
                    .filter(|record| Some(&record.machine.id) > after.as_ref());
                let mut records: Vec<_> = later.take(PAGE + 1).cloned().collect();
                let more = records.len() > PAGE;
                records.truncate(PAGE);
                self.listed.notify_one();
                let incarnation = state.incarnation.clone();
                Ok(WorkerReply::Machines { records, more, incarnation, sequence: state.sequence })
            }
            WorkerRequest::Supersede { machine, .. } => {
                let record = self.turn(&machine, MachineState::Stopped, "supersede").await;
                Ok(WorkerReply::Done { record: Box::new(record) })
            }
            WorkerRequest::Events { machine, limit } => {
                let events = self.state().machines[&machine].machine.events.clone().unwrap();
                let events = events.into_iter().take(limit).map(Arc::unwrap_or_clone).collect();
                Ok(WorkerReply::Events { events })
            }
            WorkerRequest::Versions { machine } => {
                let state = self.state();
                let mut versions = state.versions.clone();
                versions.insert(0, version(&state.machines[&machine]));
                Ok(WorkerReply::Versions { versions })
            }
            WorkerRequest::Processes { .. } => {
                let process = |pid: i32, rss: u64| ProcessStat {
                    pid,
                    stime: 0,
                    rtime: 0,
                    command: "sh".to_owned(),
                    directory: "/".to_owned(),
                    cpu: 0,
                    rss,
                    listen_sockets: Vec::new(),
                };
                Ok(WorkerReply::Processes {
                    processes: vec![process(1, 10), process(7, 30), process(9, 20)],
                })
            }
            WorkerRequest::Memory { limit_mib, reclaim_mib, .. } => {
                let memory = Memory { limit_mb: limit_mib.unwrap_or(256), available_mb: 100 };
                Ok(WorkerReply::Memory { memory, reclaimed_mib: reclaim_mib.unwrap_or(0) })
            }
            request @ (WorkerRequest::CreateVolume(_)
            | WorkerRequest::ActOnVolume { .. }
            | WorkerRequest::GetVolume { .. }
            | WorkerRequest::TakeSnapshot { .. }
            | WorkerRequest::ListSnapshots { .. }
            | WorkerRequest::GetSnapshot { .. }
            | WorkerRequest::DeleteSnapshot { .. }
            | WorkerRequest::ListVolumes { .. }) => self.state().volumes(&self.id, request),
            WorkerRequest::SetPolicies { revision, apps } => {
                let mut state = self.state();
                if let Some(error) = state.policy_errors.pop_front() {
                    return Err(error);
                }
                if revision >= state.policy_revision {
                    state.policy_revision = revision;
                    state.policies = apps;
                }
                Ok(WorkerReply::PoliciesSet { revision: state.policy_revision })
            }
            WorkerRequest::SetEgress { revision, machines } => {
                let mut state = self.state();
                if revision >= state.egress_revision {
                    state.egress_revision = revision;
                    state.egress = machines;
                }
                Ok(WorkerReply::Egress { revision: state.egress_revision })
            }
            WorkerRequest::Drain { .. } => Ok(WorkerReply::Drained { stopped: 0 }),
            // Nobody but the proxy asks for it.
            WorkerRequest::Wake { .. }
            | WorkerRequest::Sleep { .. }
            | WorkerRequest::MaySleep { .. }
            | WorkerRequest::Log { .. } => Err(ApiError::internal("not here")),
            WorkerRequest::Health => {
                let state = self.state();
                Ok(WorkerReply::Health {
                    problems: state.problems.clone(),
                    warnings: state.warnings.clone(),
                })
            }
        }
    }

    async fn act(&self, id: &MachineId, nonce: Option<LeaseNonce>, action: Action) -> WorkerResult {
        let before =
            self.state().machines.get(id).cloned().ok_or_else(ApiError::machine_not_found)?;
        let held = self.state().leases.get(id).cloned();
        if let Some(held) = &held
            && nonce.as_ref() != Some(&held.nonce)
            && !matches!(
                action,
                Action::Signal { .. }
                    | Action::SetMetadata { .. }
                    | Action::GetLease
                    | Action::Hold { .. }
                    | Action::ReleaseHold
            )
        {
            return Err(ApiError::aborted(format!(
                "machine ID {id} lease currently held by {}, expires at 2030-01-01T00:00:00Z",
                held.owner
            )));
        }
        let no_lease = || ApiError::new(caddis_api::ErrorCode::NotFound, "lease not found");
        let record = match action {
            Action::Start => {
                let record = self.turn(id, MachineState::Starting, "start").await;
                let previous_state = before.machine.state;
                let reply = StartReply { previous_state, migrated: false, new_host: String::new() };
                return Ok(WorkerReply::Started { reply, record: Box::new(record) });
            }
            Action::Stop { .. } => self.turn(id, MachineState::Stopping, "stop").await,
            Action::Restart { .. } => self.turn(id, MachineState::Restarting, "restart").await,
            Action::Suspend => self.turn(id, MachineState::Suspending, "suspend").await,
            Action::SetMetadata { changes, .. } => {
                let change = |record: &mut MachineRecord| {
                    let config = record.machine.config.get_or_insert_default();
                    let mut fields = config.fields();
                    let metadata = fields
                        .entry("metadata")
                        .or_insert_with(|| json!({}))
                        .as_object_mut()
                        .unwrap();
                    metadata.extend(changes.into_iter().map(|(key, value)| (key, json!(value))));
                    metadata.retain(|_, value| !value.is_null() && value != "");
                    *config = fields.into();
                };
                self.change(id, change).await
            }
            Action::Signal { .. } => before,
            Action::Destroy { force } => {
                if !force && before.machine.state == MachineState::Started {
                    return Err(ApiError::precondition(
                        "unable to destroy machine, not currently stopped, suspended, failed or \
                         created",
                    ));
                }
                self.state().leases.remove(id);
                self.state().detach(id);
                self.turn(id, MachineState::Destroyed, "destroy").await
            }
            Action::Cordon { cordoned } => {
                self.change(id, |record| record.machine.cordoned = cordoned).await
            }
            Action::AcquireLease { ttl_seconds, owner, description } => {
                let mut lease = lease(id, ttl_seconds, owner, &description);
                lease.nonce = held.map_or(lease.nonce, |held| held.nonce);
                self.state().leases.insert(id.clone(), lease.clone());
                self.change(id, |record| record.lease = Some(PublicLease::from(&lease))).await;
                return Ok(WorkerReply::Lease { lease });
            }
            Action::GetLease => {
                return Ok(WorkerReply::Lease { lease: held.ok_or_else(no_lease)? });
            }
            Action::Hold { ttl_seconds, reason } => {
                let until = format!("2026-03-31T06:08:08.{ttl_seconds:03}Z");
                self.change(id, |record| record.machine.hold = Some(Hold { until, reason })).await
            }
            Action::ReleaseHold => self.change(id, |record| record.machine.hold = None).await,
            Action::ReleaseLease => {
                held.ok_or_else(no_lease)?;
                self.state().leases.remove(id);
                self.change(id, |record| record.lease = None).await
            }
        };
        Ok(WorkerReply::Done { record: Box::new(record) })
    }
}

impl State {
    fn delta(&mut self, worker: &WorkerId, record: MachineRecord) -> Option<Delta> {
        self.sequence += 1;
        let delta = Delta {
            worker: worker.clone(),
            sequence: self.sequence,
            incarnation: self.incarnation.clone(),
            record,
        };
        (!self.mute).then_some(delta)
    }
}

#[async_trait]
impl Handler for FakeWorker {
    async fn handle(&self, request: Bytes) -> Bytes {
        let envelope: Envelope = message::decode("test", &request).unwrap();
        let known = self.state().answered.get(&envelope.request_id).cloned();
        let create = matches!(envelope.request, WorkerRequest::Create(_));
        let answer = match known {
            Some(answer) => answer,
            None => {
                self.state().requests.push(envelope.request.clone());
                let gate = create.then(|| self.state().create_gate.take()).flatten();
                if let Some(gate) = gate {
                    gate.notified().await;
                }
                self.carry_out(envelope.request).await
            }
        };
        self.state().answered.insert(envelope.request_id, answer.clone());
        let silent = create && {
            let mut state = self.state();
            let silent = state.silent_creates > 0;
            state.silent_creates = state.silent_creates.saturating_sub(1);
            silent
        };
        if silent {
            std::future::pending::<()>().await;
        }
        message::encode(&answer)
    }
}

struct Offers(FakeWorker);

#[async_trait]
impl Handler for Offers {
    async fn handle(&self, _: Bytes) -> Bytes {
        let offer = self.0.state().offer.clone().unwrap_or_else(|| Offer {
            worker: self.0.id.clone(),
            fits: true,
            drains: false,
            shortage: None,
            free_memory_mib: 1024,
            free_cpus: 4,
            free_disk_gib: 80,
            free_volume_gib: Some(1000),
            has_image: false,
        });
        message::encode(&offer)
    }
}
