//! Gives machines another configuration.

use std::sync::Arc;

use caddis_api::{ApiError, LeaseNonce, MachineId};
use caddis_bus::message::{UpdateMachine, WorkerReply, WorkerResult};
use tokio::sync::oneshot;

use super::{all_versions, gone, held_lease};
use crate::{
    engine::Shared,
    owner::{Message, RequestId, Revision},
};

/// Finds out what the new version runs, which may take a while, before the owner is asked to take
/// it on.
pub(super) async fn update(
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
