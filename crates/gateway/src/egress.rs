//! Tells workers which egress addresses their machines have: each of all of its machines at once.
//!
//! An address that was taken away is free again only once every worker knows of that, so that no
//! connection under it is left when another app gets it.

use caddis_api::{ApiError, WorkerId};
use caddis_bus::{
    AskError,
    message::{EgressSource, MachineEgress, WorkerRequest},
};
use caddis_catalog::Push;
use caddis_view::Change;
use tokio::sync::broadcast;

use crate::{
    http::context::Context,
    push::{self, Pushed},
    told::Workers,
};

/// Most addresses that a warning names.
const MAX_NAMED: usize = 5;

impl Pushed for Vec<MachineEgress> {
    const PUSH: Push = Push::Egress;
    const NAME: &'static str = "egress addresses of its machines";

    fn workers(context: &Context) -> &Workers<Self> {
        &context.egress
    }

    async fn read(context: &Context, worker: &WorkerId) -> Result<Self, ApiError> {
        let machines = context.catalog.egress_of_worker(worker).await?;
        let shown = machines.into_iter().map(|(machine, sources)| MachineEgress {
            machine,
            sources: sources
                .into_iter()
                .map(|(address, ports)| EgressSource { address, ports })
                .collect(),
        });
        Ok(shown.collect())
    }

    fn request(self, revision: u64) -> WorkerRequest {
        WorkerRequest::SetEgress { revision, machines: self }
    }

    async fn tell_all(context: &Context) -> bool {
        tell_all(context).await
    }
}

/// To be called when a machine was placed and before it is made: its worker knows what it has, and
/// its first connection comes from there.
pub(crate) async fn machine_was_placed(
    context: &Context,
    worker: &WorkerId,
) -> Result<(), AskError> {
    let revision = context.catalog.egress_revision().await;
    match revision.map_err(|error| AskError::Refused(error.into()))? {
        Some(_) => push::tell::<Vec<MachineEgress>>(context, worker).await,
        None => Ok(()),
    }
}

/// Tells all workers, and frees the addresses of which then all know that they were taken away.
/// Whether it could.
pub(crate) async fn tell_all(context: &Context) -> bool {
    // The workers are told of this change, or of a later one.
    let known_to_all = match context.catalog.egress_revision().await {
        Ok(revision) => revision.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "can't look for egress addresses");
            return false;
        }
    };
    if context.view.hosts().all().is_empty() {
        return false;
    }
    let (all, _) = push::tell_each::<Vec<MachineEgress>>(context).await;
    if !all {
        return false;
    }
    let freed = context.catalog.forget_released_egress(known_to_all).await;
    freed.inspect_err(|error| tracing::warn!(%error, "can't free egress addresses")).is_ok()
}

/// Keeps all workers told; never ends.
pub(crate) async fn follow(context: Context, changes: broadcast::Receiver<Change>) {
    let changed = context.catalog.egress_changed();
    if let Err(error) = context.catalog.settle_all_egress().await {
        tracing::warn!(%error, "can't look through the egress addresses");
    }
    if let Some(warning) = outside(&context).await {
        tracing::warn!("{warning}");
    }
    push::follow::<Vec<MachineEgress>>(context, changes, changed).await;
}

/// What is to be said of allocated addresses that none of the server's prefixes has any more.
pub(crate) async fn outside(context: &Context) -> Option<String> {
    let prefixes = &context.settings.traffic.egress_addresses;
    let region = context.regions.own().as_str();
    // A catalog that fails is told as a problem.
    let found = context.catalog.egress_outside(region, prefixes).await.ok()?;
    let mut named: Vec<_> = found.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    if found.len() > MAX_NAMED {
        named.push(format!("{} more", found.len() - MAX_NAMED));
    }
    (!found.is_empty()).then(|| {
        format!(
            "egress addresses are allocated that --egress-addresses does not have any more, and \
             machines go on using them: {}; add their prefix again, or release them with 'caddis \
             ips release-egress'",
            named.join(", ")
        )
    })
}
