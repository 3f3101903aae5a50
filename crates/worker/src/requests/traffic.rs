//! Wakes machines and puts them to sleep on account of their traffic, and writes what is told of it
//! into their logs.

use std::{sync::Arc, time::Duration};

use caddis_api::{ApiError, MachineId, hold::MAX_REASON_BYTES};
use caddis_bus::message::{HostLine, SleepMode, WhyNotWoken, WorkerReply, WorkerResult};
use tokio::sync::oneshot;

use super::gone;
use crate::{
    engine::Shared,
    owner::{Message, RequestId, Wake},
};

/// How long the owner of a machine may take to decide.
const DECISION_TIME: Duration = Duration::from_secs(5);

pub(super) async fn wake(
    shared: &Arc<Shared>,
    machine: &MachineId,
    deadline: Duration,
    request: RequestId,
) -> WorkerResult {
    let Some(owner) = shared.owner(machine) else { return not_there(shared, machine) };
    let (reply, decided) = oneshot::channel();
    let decided = async {
        owner.send(Message::Wake { request, reply }).await.ok()?;
        decided.await.ok()
    };
    let end = shared.clock.now() + deadline;
    let answer = match shared.clock.timeout(deadline.max(DECISION_TIME), decided).await {
        Some(Some(Wake::Answer(result))) => return result,
        Some(Some(Wake::Begun(answer))) => {
            let left = end.saturating_duration_since(shared.clock.now());
            shared.clock.timeout(left, answer).await
        }
        Some(None) => return not_there(shared, machine),
        None => None,
    };
    match answer {
        Some(Ok(result)) => result,
        Some(Err(_)) => not_there(shared, machine),
        None => {
            let record = shared.publisher.get(machine).ok_or_else(ApiError::machine_not_found)?;
            let message = format!("the machine did not start within {deadline:?}");
            let why = WhyNotWoken::TimedOut;
            Ok(WorkerReply::NotWoken { why, message, record: Box::new(record.status_only()) })
        }
    }
}

/// A destroyed machine is one that traffic does not start.
fn not_there(shared: &Arc<Shared>, machine: &MachineId) -> WorkerResult {
    match gone(shared, machine, true)? {
        WorkerReply::Done { record } => Ok(WorkerReply::NotWoken {
            why: WhyNotWoken::State,
            message: "the machine has been destroyed".to_owned(),
            record,
        }),
        other => Ok(other),
    }
}

pub(super) async fn sleep(
    shared: &Arc<Shared>,
    machine: &MachineId,
    mode: SleepMode,
    mut reason: String,
    request: RequestId,
) -> WorkerResult {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    let Some(owner) = shared.owner(machine) else { return gone(shared, machine, false) };
    let (reply, answer) = oneshot::channel();
    if owner.send(Message::Sleep { mode, reason, request, reply }).await.is_err() {
        return gone(shared, machine, false);
    }
    answer.await.unwrap_or_else(|_| gone(shared, machine, false))
}

pub(super) async fn may_sleep(
    shared: &Arc<Shared>,
    machine: &MachineId,
    mode: SleepMode,
) -> WorkerResult {
    let Some(owner) = shared.owner(machine) else { return gone(shared, machine, false) };
    let (reply, answer) = oneshot::channel();
    if owner.send(Message::MaySleep { mode, reply }).await.is_err() {
        return gone(shared, machine, false);
    }
    answer.await.unwrap_or_else(|_| gone(shared, machine, false))
}

pub(super) fn log(shared: &Arc<Shared>, machine: &MachineId, lines: Vec<HostLine>) -> WorkerResult {
    if lines.len() > HostLine::MOST {
        return Err(ApiError::invalid(format!("more than {} lines", HostLine::MOST)));
    }
    // A machine that was destroyed has no log for long.
    shared.owner(machine).ok_or_else(ApiError::machine_not_found)?;
    shared.logs.append_of_proxy(machine, lines);
    Ok(WorkerReply::Logged)
}
