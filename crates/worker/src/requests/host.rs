//! Asks and changes the host as a whole.

use std::{sync::Arc, time::Duration};

use caddis_api::{ApiError, ErrorCode};
use caddis_bus::message::{WorkerReply, WorkerResult};
use tokio::sync::oneshot;

use crate::{engine::Shared, owner::Message};

pub(super) async fn drain(shared: &Arc<Shared>, deadline: Duration) -> WorkerResult {
    shared.begin_draining();
    let mut waiting = Vec::new();
    for owner in shared.all_owners() {
        let (done, answer) = oneshot::channel();
        if owner.send(Message::Drain { done }).await.is_ok() {
            waiting.push(answer);
        }
    }
    let all = futures::future::join_all(waiting);
    let results = shared.clock.timeout(deadline, all).await.ok_or_else(|| {
        ApiError::new(
            ErrorCode::DeadlineExceeded,
            format!(
                "deadline_exceeded: some machines are still running after {deadline:?}; they \
                     go down with the host"
            ),
        )
    })?;
    let stopped = results.into_iter().filter(|result| matches!(result, Ok(true))).count();
    Ok(WorkerReply::Drained { stopped: stopped as u64 })
}

/// Why requests would fail; empty when they would not.
pub(super) async fn problems(shared: &Arc<Shared>) -> Vec<String> {
    let mut problems = Vec::new();
    if let Err(e) = shared.store.check(shared.clock.unix_now()).await {
        problems.push(e.to_string());
    }
    if let Err(e) = check_disk(shared).await {
        problems.push(e.message);
    }
    if let Err(e) = shared.vmm.check().await {
        problems.push(e.to_string());
    }
    let network = shared.network.disturbances().and_then(|told| told.borrow().problem.clone());
    problems.extend(network.map(|problem| format!("the network of machines is broken: {problem}")));
    problems
}

/// Refuses what takes room where the disk is full.
pub async fn check_disk(shared: &Arc<Shared>) -> Result<(), ApiError> {
    shared.make_room().await;
    let free = shared
        .free_disk()
        .map_err(|e| ApiError::internal(format!("can't read the free disk space: {e}")))?;
    if free < shared.config.reserved_disk {
        let (free, wanted) = (free >> 20, shared.config.reserved_disk >> 20);
        let text = format!(
            "could not reserve resource for machine: disk is full, {free} MiB free, {wanted} MiB \
             reserved"
        );
        return Err(ApiError::new(ErrorCode::InsufficientCapacity, text));
    }
    Ok(())
}
