//! Tells workers which egress addresses their machines have. The catalog knows; a worker is told
//! all of its machines at once, when something of that has changed, and when it is new or was away.
//!
//! An address that was taken away is free again only once every worker knows of that, so that no
//! connection under it is left when another app gets it.

use std::time::Duration;

use caddis_api::{ApiError, WorkerId};
use caddis_bus::{
    AskError,
    message::{EgressSource, MachineEgress, WorkerReply, WorkerRequest},
};
use caddis_view::Change;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::http::{context::Context, errors::unexpected};

/// Until a worker that could not be told is told again.
const AGAIN: Duration = Duration::from_secs(1);

/// Tells a worker what its machines have, if it does not know. Once this has ended new connections
/// come from it.
pub(crate) async fn tell(context: &Context, worker: &WorkerId) -> Result<u64, AskError> {
    let refused = |error| AskError::Refused(ApiError::from(error));
    let egress = context.catalog.egress_of_worker(worker).await.map_err(refused)?;
    let known = context.egress_told.lock().get(worker).copied();
    if known.is_some_and(|known| known >= egress.revision) {
        return Ok(egress.revision);
    }
    let machines = egress.machines.into_iter().map(|(machine, sources)| MachineEgress {
        machine,
        sources: sources
            .into_iter()
            .map(|(address, ports)| EgressSource { address, ports })
            .collect(),
    });
    let request =
        WorkerRequest::SetEgress { revision: egress.revision, machines: machines.collect() };
    match context.ask(worker, request, context.settings.request_deadline).await? {
        WorkerReply::Egress { revision } => {
            let mut told = context.egress_told.lock();
            let told = told.entry(worker.clone()).or_default();
            *told = (*told).max(revision);
            Ok(revision)
        }
        other => Err(AskError::Refused(unexpected(&other))),
    }
}

/// Tells all workers, and frees the addresses of which then all know that they were taken away.
/// Whether it could.
pub(crate) async fn tell_all(context: &Context) -> bool {
    let hosts = context.view.hosts().all();
    if hosts.is_empty() {
        return false;
    }
    let mut known_to_all = u64::MAX;
    for (worker, _) in hosts {
        match tell(context, &worker).await {
            Ok(revision) => known_to_all = known_to_all.min(revision),
            Err(error) => {
                let error = ApiError::from(error).message;
                tracing::warn!(%worker, error, "can't tell a worker the egress addresses of its \
                    machines, will try again");
                return false;
            }
        }
    }
    let freed = context.catalog.forget_released_egress(known_to_all).await;
    freed.inspect_err(|error| tracing::warn!(%error, "can't free egress addresses")).is_ok()
}

/// Keeps all workers told; never ends.
pub(crate) async fn follow(context: Context, mut changes: broadcast::Receiver<Change>) {
    let mut changed = context.catalog.egress_changed();
    if let Err(error) = context.catalog.settle_all_egress().await {
        tracing::warn!(%error, "can't look through the egress addresses");
    }
    let (mut is_told, mut again) = (false, tokio::time::interval(AGAIN));
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                // It may be another process than before.
                Ok(Change::Listed(worker)) => {
                    context.egress_told.lock().remove(&worker);
                }
                Ok(Change::Host(_)) | Err(RecvError::Lagged(_)) => {}
                Ok(_) => continue,
                Err(RecvError::Closed) => return,
            },
            changed = changed.changed() => if changed.is_err() { return },
            _ = again.tick(), if !is_told => {}
        }
        is_told = tell_all(&context).await;
    }
}
