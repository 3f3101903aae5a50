//! What is asked of the worker: makes new machines, hands the rest to their owners, answers
//! questions.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use caddis_api::{
    ApiError, ErrorCode, LeaseNonce, Machine, MachineConfig, MachineId, MachineState, RawConfig,
    VersionId,
    exec::{ListenSocket, ProcessStat},
    lease::Lease,
    requests::{Memory, StartReply},
};
use caddis_bus::{
    Handler,
    message::{
        Action, CreateMachine, Offer, Question, UpdateMachine, VersionRecord, WorkerReply,
        WorkerRequest, WorkerResult, decode, encode,
    },
};
use caddis_guest_protocol::{
    host::{Session, SessionError},
    message::ProcessInfo,
};
use caddis_image::ResolvedImage;
use caddis_network::MachineAddresses;
use tokio::sync::oneshot;

use crate::{
    capacity::Room as Capacity,
    clock::now_ms,
    disturbance,
    engine::Shared,
    event::Source,
    operations::OperationKind,
    owner::{Message, RequestId, Revision, Transaction, grant_lease},
    publish::Page,
    row::{FORMAT, MachineRow},
    store::{Change, Durability, Room},
};

/// Time init may take to list its processes.
const PROCESSES_DEADLINE: Duration = Duration::from_secs(20);

/// Carries out a request. Its id is recorded with what it changes.
pub async fn handle(shared: &Arc<Shared>, id: RequestId, request: WorkerRequest) -> WorkerResult {
    match request {
        WorkerRequest::Create(create) => make(shared, *create, id).await,
        WorkerRequest::Update { machine, nonce, update } => {
            self::update(shared, &machine, nonce, *update, id).await
        }
        WorkerRequest::Act { machine, nonce, action } => {
            act(shared, &machine, nonce, action, id).await
        }
        WorkerRequest::Get { machine } => {
            let mut record =
                shared.publisher.get(&machine).ok_or_else(ApiError::machine_not_found)?;
            record.machine.config = Some(config(shared, record.machine.config, &machine).await?);
            Ok(WorkerReply::Machine { record: Box::new(record) })
        }
        WorkerRequest::List { after } => {
            let Page { records, more, sequence } = shared.publisher.list(after.as_ref());
            let incarnation = shared.publisher.incarnation().to_owned();
            Ok(WorkerReply::Machines { records, more, incarnation, sequence })
        }
        WorkerRequest::Supersede { machine, epoch } => supersede(shared, &machine, epoch).await,
        WorkerRequest::Events { machine, limit } => {
            shared.publisher.get(&machine).ok_or_else(ApiError::machine_not_found)?;
            let events = shared.store.events(&machine, limit).await.map_err(ApiError::internal)?;
            Ok(WorkerReply::Events { events })
        }
        WorkerRequest::Versions { machine } => {
            Ok(WorkerReply::Versions { versions: all_versions(shared, &machine).await? })
        }
        WorkerRequest::Processes { machine } => processes(shared, &machine).await,
        WorkerRequest::Memory { machine, nonce, limit_mib, reclaim_mib } => {
            memory(shared, &machine, nonce, limit_mib, reclaim_mib).await
        }
        WorkerRequest::Drain { deadline_ms } => {
            drain(shared, Duration::from_millis(deadline_ms)).await
        }
        WorkerRequest::Health => {
            let mut warnings = shared.vmm.warnings();
            warnings.extend(disturbance::warning(shared));
            Ok(WorkerReply::Health { problems: problems(shared).await, warnings })
        }
    }
}

/// The answer to a request that an earlier process of this worker has accepted: nothing is done
/// again.
pub async fn accepted(shared: &Arc<Shared>, request: WorkerRequest) -> WorkerResult {
    let status = |machine: &MachineId| {
        let record = shared.publisher.get(machine).ok_or_else(ApiError::machine_not_found)?;
        Ok::<_, ApiError>(Box::new(record.status_only()))
    };
    match request {
        WorkerRequest::Act { machine, action: Action::Start, .. } => {
            let record = status(&machine)?;
            let previous_state = record.machine.state;
            let reply = StartReply { previous_state, migrated: false, new_host: String::new() };
            Ok(WorkerReply::Started { reply, record })
        }
        WorkerRequest::Act {
            machine,
            action: Action::AcquireLease { ttl_seconds, owner, .. },
            ..
        } => {
            let lease = held_lease(shared, &machine, Some(&(ttl_seconds, owner))).await;
            let text = "the lease that this request had acquired is another's by now";
            Ok(WorkerReply::Lease { lease: lease.ok_or_else(|| ApiError::aborted(text))? })
        }
        WorkerRequest::Act { machine, .. } => Ok(WorkerReply::Done { record: status(&machine)? }),
        WorkerRequest::Update { machine, update, .. } => {
            let record = shared.publisher.get(&machine).ok_or_else(ApiError::machine_not_found)?;
            let lease = held_lease(shared, &machine, update.lease.as_ref()).await;
            Ok(WorkerReply::Updated { record: Box::new(record), lease })
        }
        // These find what they have done themselves.
        other => handle(shared, None, other).await,
    }
}

async fn make(shared: &Arc<Shared>, create: CreateMachine, request: RequestId) -> WorkerResult {
    let _turn = shared.creations.begin(&create.id).await;
    // A gateway that got no answer asks again.
    if let Some(record) = shared.publisher.get(&create.id) {
        if record.epoch < create.placement_epoch {
            let text = "this host has a copy of an earlier placement of the machine, which must be destroyed first";
            return Err(ApiError::precondition(text));
        }
        let lease = held_lease(shared, &create.id, create.lease.as_ref()).await;
        return Ok(WorkerReply::Created { record: Box::new(record), lease });
    }
    shared.check_not_draining()?;
    check_disk(shared).await?;
    let (config, typed) = caddis_api::validate::normalise(create.config.clone())?;
    let image = shared.images.resolve(typed.image.as_deref().unwrap_or_default()).await?;
    let network = create
        .network
        .parse()
        .map_err(|e| ApiError::internal(format!("network {}: {e}", create.network)))?;
    let ipv4 = shared.capacity.reserve(&create.id, &typed)?;
    let addresses =
        MachineAddresses { ipv4, ipv6: create.ipv6, network, mac: caddis_network::random_mac() };
    let id = create.id.clone();
    record_new(shared, new_row(create, config, image, addresses), typed, request)
        .await
        .inspect_err(|_| shared.capacity.release(&id))
}

async fn record_new(
    shared: &Arc<Shared>,
    row: MachineRow,
    config: MachineConfig,
    request: RequestId,
) -> WorkerResult {
    // Fails now rather than at the first start when there is nothing to run.
    crate::spec::machine_spec(&row, &config, shared.network.guest_spec(&row.addresses))?;
    let mut draft = Transaction::new(row);
    draft.begin(OperationKind::Create, Source::Worker);
    let mut change = draft.into_change();
    change.request = request.map(|id| (id, now_ms()));
    shared.store.commit(vec![change.clone()], Durability::Synced, Room::Free).await.map_err(|e| {
        tracing::error!(machine = %change.row.id, error = %e, "can't record a new machine");
        if e.is_full() {
            return ApiError::disk_full();
        }
        ApiError::internal("can't record the machine; see the server's log, and free space if its disk is full")
    })?;
    let Change { row, mut events, .. } = change;
    events.reverse();
    let lease = row.lease.clone();
    let warnings = crate::spec::image_warnings(&row.image.config, &config);
    let mut record = shared.adopt(row, config, events, None);
    record.machine.warnings = warnings;
    Ok(WorkerReply::Created { record: Box::new(record), lease })
}

fn new_row(
    create: CreateMachine,
    config: RawConfig,
    image: ResolvedImage,
    addresses: MachineAddresses,
) -> MachineRow {
    let now = now_ms();
    let mut row = MachineRow {
        format: FORMAT,
        id: create.id,
        name: create.name,
        app: create.app,
        org: create.org,
        region: create.region,
        created_at: now,
        updated_at: now,
        state: MachineState::Creating,
        version: VersionId::generate(),
        config,
        image,
        addresses,
        placement_epoch: create.placement_epoch,
        cordoned: create.cordoned,
        launched: false,
        operation: None,
        next: (!create.skip_launch).then_some(OperationKind::START),
        ended: None,
        has_vm: false,
        boot: 0,
        drained: false,
        lease: None,
        restarts: Vec::new(),
        rested_at: 0,
        start_kind: None,
        replaced: None,
        last_event: None,
        revision: now,
        destroyed_at: None,
        superseded_by: None,
        is_quarantined: false,
    };
    row.lease = create.lease.map(|(ttl, owner)| {
        grant_lease(&row, LeaseNonce::random(), ttl, owner, String::new(), now)
    });
    row
}

async fn act(
    shared: &Arc<Shared>,
    machine: &MachineId,
    nonce: Option<LeaseNonce>,
    action: Action,
    request: RequestId,
) -> WorkerResult {
    let destroy = matches!(action, Action::Destroy { .. });
    let Some(owner) = shared.owner(machine) else { return gone(shared, machine, destroy) };
    let (reply, answer) = oneshot::channel();
    if owner.send(Message::Act { nonce, action, request, reply }).await.is_err() {
        return gone(shared, machine, destroy);
    }
    match answer.await {
        Ok(result) => result,
        Err(_) => gone(shared, machine, destroy),
    }
}

async fn supersede(shared: &Arc<Shared>, machine: &MachineId, epoch: u64) -> WorkerResult {
    let Some(owner) = shared.owner(machine) else { return gone(shared, machine, true) };
    let (reply, answer) = oneshot::channel();
    if owner.send(Message::Supersede { epoch, reply }).await.is_err() {
        return gone(shared, machine, true);
    }
    answer.await.unwrap_or_else(|_| gone(shared, machine, true))
}

/// Finds out what the new version runs, which may take a while, before the owner is asked to take
/// it on.
async fn update(
    shared: &Arc<Shared>,
    machine: &MachineId,
    nonce: Option<LeaseNonce>,
    update: UpdateMachine,
    request: RequestId,
) -> WorkerResult {
    let Some(owner) = shared.owner(machine) else { return gone(shared, machine, false) };
    if let Some(version) = &update.version
        && all_versions(shared, machine).await?.iter().any(|known| known.version == *version)
    {
        let record = shared.publisher.get(machine).ok_or_else(ApiError::machine_not_found)?;
        let lease = held_lease(shared, machine, update.lease.as_ref()).await;
        return Ok(WorkerReply::Updated { record: Box::new(record), lease });
    }
    shared.check_not_draining()?;
    let (raw, config) = caddis_api::validate::normalise(update.config.clone())?;
    let image = shared.images.resolve(config.image.as_deref().unwrap_or_default()).await?;
    let revision = Box::new(Revision { raw, config, image, update });
    let (reply, answer) = oneshot::channel();
    if owner.send(Message::Update { nonce, revision, request, reply }).await.is_err() {
        return gone(shared, machine, false);
    }
    answer.await.unwrap_or_else(|_| gone(shared, machine, false))
}

/// The lease that a request has taken on a machine, if it wanted one and still has it: another's
/// nonce is not told.
async fn held_lease(
    shared: &Arc<Shared>,
    machine: &MachineId,
    wanted: Option<&(u64, String)>,
) -> Option<Lease> {
    let (_, owner) = wanted?;
    match act(shared, machine, None, Action::GetLease, None).await {
        Ok(WorkerReply::Lease { lease }) if lease.owner == *owner => Some(lease),
        _ => None,
    }
}

/// All versions, the current one first.
async fn all_versions(
    shared: &Arc<Shared>,
    machine: &MachineId,
) -> Result<Vec<VersionRecord>, ApiError> {
    let record = shared.publisher.get(machine).ok_or_else(ApiError::machine_not_found)?;
    let replaced = shared.store.versions(machine).await.map_err(ApiError::internal)?;
    let Machine { version, config, image_ref: image, .. } = record.machine;
    let current =
        VersionRecord { version, config: self::config(shared, config, machine).await?, image };
    // It may have become one that was replaced in between.
    let replaced = replaced.into_iter().filter(|version| version.version != current.version);
    Ok(std::iter::once(current.clone()).chain(replaced).collect())
}

/// A machine's configuration, as published or, of a destroyed one, as recorded.
async fn config(
    shared: &Arc<Shared>,
    published: Option<RawConfig>,
    machine: &MachineId,
) -> Result<RawConfig, ApiError> {
    match published {
        Some(config) => Ok(config),
        None => {
            Ok(shared.store.config(machine).await.map_err(ApiError::internal)?.unwrap_or_default())
        }
    }
}

/// The answer for a machine that has no owner: it is destroyed, or there is none.
/// What is answered of a machine whose owner takes no requests: it is destroyed, or its owner has
/// panicked, which will have another in a moment.
fn gone(shared: &Arc<Shared>, machine: &MachineId, destroy: bool) -> WorkerResult {
    let record = shared.publisher.get(machine).ok_or_else(ApiError::machine_not_found)?;
    if record.machine.state != MachineState::Destroyed {
        return Err(ApiError::internal(
            "internal error in the server, the request may have been carried out in part; see the machine's events \
             and the server's log",
        ));
    }
    if destroy {
        return Ok(WorkerReply::Done { record: Box::new(record) });
    }
    Err(ApiError::new(ErrorCode::NotFound, "machine not found: it has been destroyed"))
}

async fn processes(shared: &Arc<Shared>, machine: &MachineId) -> WorkerResult {
    let session = session(shared, machine, None).await?;
    let list = tokio::time::timeout(PROCESSES_DEADLINE, session.processes()).await;
    let processes = list
        .map_err(|_| ApiError::new(ErrorCode::Unavailable, "the guest does not answer"))?
        .map_err(|e| {
            ApiError::new(ErrorCode::Unavailable, format!("the guest does not answer: {e}"))
        })?;
    Ok(WorkerReply::Processes { processes: processes.into_iter().map(process).collect() })
}

async fn memory(
    shared: &Arc<Shared>,
    machine: &MachineId,
    nonce: Option<LeaseNonce>,
    limit_mib: Option<u64>,
    reclaim_mib: Option<u64>,
) -> WorkerResult {
    let changes = limit_mib.is_some() || reclaim_mib.is_some();
    let session = session(shared, machine, changes.then_some(nonce)).await?;
    let record = shared.publisher.get(machine).ok_or_else(ApiError::machine_not_found)?;
    let config = record
        .machine
        .config
        .map(|raw| caddis_api::validate::read(&raw))
        .transpose()?
        .unwrap_or_default();
    let all = config.memory_mib();
    if limit_mib.is_some_and(|limit| limit > all) {
        return Err(ApiError::invalid(format!(
            "invalid limit_mb, cannot exceed {all} MiB, the machine's memory"
        )));
    }
    let info = session.memory(limit_mib, reclaim_mib).await.map_err(|error| match error {
        SessionError::Refused(reason) => ApiError::precondition(reason),
        error => {
            ApiError::new(ErrorCode::Unavailable, format!("the guest does not answer: {error}"))
        }
    })?;
    let memory = Memory {
        limit_mb: info.limit_mib.unwrap_or(all).min(all),
        available_mb: info.available_mib,
    };
    Ok(WorkerReply::Memory { memory, reclaimed_mib: info.reclaimed_mib })
}

/// The way to the running guest. `nonce` is given where a lease guards what is to be done.
pub async fn session(
    shared: &Arc<Shared>,
    machine: &MachineId,
    nonce: Option<Option<LeaseNonce>>,
) -> Result<Session, ApiError> {
    let owner = shared.owner(machine).ok_or_else(ApiError::machine_not_found)?;
    let (reply, answer) = oneshot::channel();
    let gone = || gone(shared, machine, false).err().unwrap_or_else(ApiError::machine_not_found);
    owner.send(Message::Session { nonce, reply }).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

fn process(info: ProcessInfo) -> ProcessStat {
    let sockets = info.listen_sockets.into_iter();
    ProcessStat {
        pid: info.pid,
        stime: info.stime,
        rtime: info.rtime,
        command: info.command,
        directory: info.directory,
        cpu: info.cpu,
        rss: info.rss,
        listen_sockets: sockets
            .map(|socket| ListenSocket { proto: socket.proto, address: socket.address })
            .collect(),
    }
}

async fn drain(shared: &Arc<Shared>, deadline: Duration) -> WorkerResult {
    shared.begin_draining();
    let mut waiting = Vec::new();
    for owner in shared.all_owners() {
        let (done, answer) = oneshot::channel();
        if owner.send(Message::Drain { done }).await.is_ok() {
            waiting.push(answer);
        }
    }
    let all = futures::future::join_all(waiting);
    let results = tokio::time::timeout(deadline, all).await.map_err(|_| {
        ApiError::new(
            ErrorCode::DeadlineExceeded,
            format!("deadline_exceeded: some guests still run after {deadline:?}; what is left ends with the host"),
        )
    })?;
    let stopped = results.into_iter().filter(|result| matches!(result, Ok(true))).count();
    Ok(WorkerReply::Drained { stopped: stopped as u64 })
}

/// Why requests would fail; empty when they would not.
async fn problems(shared: &Arc<Shared>) -> Vec<String> {
    let mut problems = Vec::new();
    if let Err(e) = shared.store.check(now_ms()).await {
        problems.push(e.to_string());
    }
    if let Err(e) = check_disk(shared).await {
        problems.push(e.message);
    }
    if let Err(e) = shared.vmm.check().await {
        problems.push(e.to_string());
    }
    let network = shared.network.disturbances().and_then(|told| told.borrow().problem.clone());
    problems.extend(
        network.map(|problem| format!("the network of machines is not in order: {problem}")),
    );
    problems
}

async fn check_disk(shared: &Arc<Shared>) -> Result<(), ApiError> {
    shared.make_room().await;
    let free = shared
        .free_disk()
        .map_err(|e| ApiError::internal(format!("can't read the free disk space: {e}")))?;
    if free < shared.config.reserved_disk {
        let (free, wanted) = (free >> 20, shared.config.reserved_disk >> 20);
        let text = format!(
            "could not reserve resource for machine: disk is full, {free} MiB free of {wanted} MiB kept"
        );
        return Err(ApiError::new(ErrorCode::InsufficientCapacity, text));
    }
    Ok(())
}

/// Serves the region's subject.
pub struct QuestionHandler {
    shared: Arc<Shared>,
}

impl QuestionHandler {
    /// A handler for questions to all workers of the region.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl Handler for QuestionHandler {
    async fn handle(&self, request: Bytes) -> Bytes {
        let Ok(Question::Place { cpus, memory_mib, disk_gib, image }) = decode("region", &request)
        else {
            return Bytes::new();
        };
        let shared = &self.shared;
        let free = shared.capacity.free();
        let wanted = Capacity { cpus, memory_mib, disk_gib };
        let mut shortage = shared.capacity.shortage(free, wanted);
        if shared.check_not_draining().is_err() {
            shortage = Some("the host is being drained".to_owned());
        }
        // What is left of it afterwards; of what does not fit nothing is taken.
        let left = if shortage.is_none() { free.minus(wanted) } else { free };
        encode(&Offer {
            worker: shared.worker.clone(),
            fits: shortage.is_none(),
            shortage,
            free_memory_mib: left.memory_mib,
            free_cpus: left.cpus,
            free_disk_gib: left.disk_gib,
            has_image: shared.images.knows(&image),
        })
    }
}
