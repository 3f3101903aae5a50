//! Requests to the worker: makes new machines, hands the rest to their owners, answers questions.

use std::{sync::Arc, time::Duration};

use caddis_api::{
    ApiError, ErrorCode, LeaseNonce, Machine, MachineId, MachineState, RawConfig, lease::Lease,
    requests::StartReply,
};
use caddis_bus::message::{Action, VersionRecord, WorkerReply, WorkerRequest, WorkerResult};
use tokio::sync::oneshot;

use crate::{
    connections, disturbance,
    engine::Shared,
    owner::{Message, RequestId},
    publish::Page,
    volumes::{self, snapshots},
};

mod create;
mod dedupe;
mod guest;
mod host;
mod offer;
mod traffic;
mod update;

pub use self::{
    dedupe::{RequestHandler, remembered_since},
    guest::{quiet_session, session},
    host::check_disk,
    offer::QuestionHandler,
};

/// Carries out a request. Its id is recorded with what it changes.
pub async fn handle(shared: &Arc<Shared>, id: RequestId, request: WorkerRequest) -> WorkerResult {
    match request {
        WorkerRequest::Create(create) => create::create(shared, *create, id).await,
        WorkerRequest::Update { machine, nonce, update } => {
            update::update(shared, &machine, nonce, *update, id).await
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
        WorkerRequest::Processes { machine } => guest::processes(shared, &machine).await,
        WorkerRequest::Memory { machine, nonce, limit_mib, reclaim_mib } => {
            guest::memory(shared, &machine, nonce, limit_mib, reclaim_mib).await
        }
        WorkerRequest::Wake { machine, deadline_ms } => {
            traffic::wake(shared, &machine, Duration::from_millis(deadline_ms), id).await
        }
        WorkerRequest::Sleep { machine, mode, reason } => {
            traffic::sleep(shared, &machine, mode, reason, id).await
        }
        WorkerRequest::MaySleep { machine, mode } => {
            traffic::may_sleep(shared, &machine, mode).await
        }
        WorkerRequest::Log { machine, lines } => traffic::log(shared, &machine, lines),
        WorkerRequest::Drain { deadline_ms } => {
            host::drain(shared, Duration::from_millis(deadline_ms)).await
        }
        WorkerRequest::CreateVolume(create) => volumes::create(shared, *create, id).await,
        WorkerRequest::ActOnVolume { volume, action } => {
            volumes::act(shared, &volume, action, id).await
        }
        WorkerRequest::GetVolume { volume } => volumes::get(shared, &volume).await,
        WorkerRequest::TakeSnapshot { volume, snapshot } => {
            snapshots::take(shared, &volume, &snapshot, id).await
        }
        WorkerRequest::ListSnapshots { volume } => Ok(snapshots::list(shared, &volume)),
        WorkerRequest::GetSnapshot { snapshot } => Ok(snapshots::get(shared, &snapshot)),
        WorkerRequest::DeleteSnapshot { volume, snapshot } => {
            snapshots::delete(shared, &volume, &snapshot, id).await
        }
        WorkerRequest::SetPolicies { revision, apps } => {
            shared.policies.set(shared, revision, apps).await
        }
        WorkerRequest::SetEgress { revision, machines } => {
            shared.egress.set(shared, revision, machines).await
        }
        WorkerRequest::ListVolumes { after } => Ok(volumes::list(shared, after.as_ref())),
        WorkerRequest::Health => {
            let mut warnings = shared.vmm.warnings();
            warnings.extend(disturbance::warning(shared));
            warnings.extend(connections::warning(shared).await);
            warnings.extend(shared.volumes.warnings());
            warnings.extend(shared.check_not_draining().err().map(|error| error.message));
            Ok(WorkerReply::Health { problems: host::problems(shared).await, warnings })
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
            let text = "the lease that this request had acquired is now held by someone else";
            Ok(WorkerReply::Lease { lease: lease.ok_or_else(|| ApiError::aborted(text))? })
        }
        WorkerRequest::Act { machine, .. } => Ok(WorkerReply::Done { record: status(&machine)? }),
        WorkerRequest::Sleep { machine, mode, .. } => {
            Ok(WorkerReply::Sleeping { mode, record: status(&machine)? })
        }
        WorkerRequest::Update { machine, update, .. } => {
            let record = shared.publisher.get(&machine).ok_or_else(ApiError::machine_not_found)?;
            let lease = held_lease(shared, &machine, update.lease.as_ref()).await;
            Ok(WorkerReply::Updated { record: Box::new(record), lease })
        }
        WorkerRequest::ActOnVolume { volume, .. } => volumes::get(shared, &volume).await,
        // It may have been deleted since.
        WorkerRequest::TakeSnapshot { snapshot, .. } => Ok(snapshots::get(shared, &snapshot)),
        // These find what they have done themselves.
        other => handle(shared, None, other).await,
    }
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
            "internal error in the server, the request may have been partly carried out; see the \
             machine's events and the server's log",
        ));
    }
    if destroy {
        return Ok(WorkerReply::Done { record: Box::new(record) });
    }
    Err(ApiError::new(ErrorCode::NotFound, "machine not found: it has been destroyed"))
}
