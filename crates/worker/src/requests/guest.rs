//! Asks the guests of machines.

use std::{sync::Arc, time::Duration};

use caddis_api::{
    ApiError, ErrorCode, LeaseNonce, MachineId,
    exec::{ListenSocket, ProcessStat},
    requests::Memory,
};
use caddis_bus::message::{WorkerReply, WorkerResult};
use caddis_guest_protocol::{
    host::{Session, SessionError, SessionInUse},
    message::ProcessInfo,
};
use tokio::sync::oneshot;

use super::gone;
use crate::{engine::Shared, owner::Message};

/// Time init may take to list its processes.
const PROCESSES_DEADLINE: Duration = Duration::from_secs(20);

pub(super) async fn processes(shared: &Arc<Shared>, machine: &MachineId) -> WorkerResult {
    let session = session(shared, machine, None).await?;
    let list = tokio::time::timeout(PROCESSES_DEADLINE, session.processes()).await;
    let processes = list
        .map_err(|_| ApiError::new(ErrorCode::Unavailable, "the guest does not answer"))?
        .map_err(|e| {
            ApiError::new(ErrorCode::Unavailable, format!("the guest does not answer: {e}"))
        })?;
    Ok(WorkerReply::Processes { processes: processes.into_iter().map(process).collect() })
}

pub(super) async fn memory(
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

/// The way to the running guest, which is not put to sleep as long as the caller has it. `nonce` is
/// given where a lease guards what is to be done.
pub async fn session(
    shared: &Arc<Shared>,
    machine: &MachineId,
    nonce: Option<Option<LeaseNonce>>,
) -> Result<SessionInUse, ApiError> {
    let owner = shared.owner(machine).ok_or_else(ApiError::machine_not_found)?;
    let (reply, answer) = oneshot::channel();
    let gone = || gone(shared, machine, false).err().unwrap_or_else(ApiError::machine_not_found);
    owner.send(Message::Session { nonce, reply }).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// The way to the guest of a machine that runs and answers, which does not count as in use: for
/// what the worker asks by itself. Without a VM its owner is not bothered.
pub async fn quiet_session(shared: &Shared, machine: &MachineId) -> Option<Session> {
    shared.vm(machine)?;
    let (reply, answer) = oneshot::channel();
    shared.owner(machine)?.send(Message::QuietSession { reply }).await.ok()?;
    answer.await.ok()?
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
