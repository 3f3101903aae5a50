//! Creates machines.

use std::sync::Arc;

use caddis_api::{
    ApiError, ErrorCode, LeaseNonce, MachineConfig, MachineState, RawConfig, UnixMillis, VersionId,
    config::Mount,
};
use caddis_bus::message::{CreateMachine, WorkerReply, WorkerResult};
use caddis_image::ResolvedImage;
use caddis_network::MachineAddresses;

use super::{held_lease, host::check_disk};
use crate::{
    checks::CheckResults,
    engine::Shared,
    event::Source,
    operations::OperationKind,
    owner::{RequestId, Transaction, grant_lease},
    row::{FORMAT, MachineRow},
    spec,
    store::{Change, Durability, Room},
};

pub(super) async fn create(
    shared: &Arc<Shared>,
    create: CreateMachine,
    request: RequestId,
) -> WorkerResult {
    let _turn = shared.creations.begin(&create.id).await;
    // A gateway that got no answer asks again.
    if let Some(record) = shared.publisher.get(&create.id) {
        if record.epoch < create.placement_epoch {
            let text = "this host has a copy of an earlier placement of the machine, which must be \
                        destroyed first";
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
    let mounts = typed.mounts.clone().unwrap_or_default();
    let volumes = shared.attach_volumes(&create.id, &create.app, &mounts)?;
    let ipv4 =
        shared.capacity.reserve(&create.id, &typed).map_err(|error| with_volume(error, &mounts))?;
    let addresses =
        MachineAddresses { ipv4, ipv6: create.ipv6, network, mac: caddis_network::random_mac() };
    let id = create.id.clone();
    if let Err(error) = shared.egress.admit(shared, &id, &addresses).await {
        shared.capacity.release(&id);
        return Err(error);
    }
    let row = new_row(create, config, image, addresses, shared.clock.unix_now());
    let recorded = record_new(shared, row, typed, request).await;
    match &recorded {
        Ok(_) => volumes.keep(),
        Err(_) => {
            shared.egress.is_not_made(&id);
            shared.capacity.release(&id);
        }
    }
    recorded
}

/// A machine with a volume can't be placed elsewhere.
fn with_volume(error: ApiError, mounts: &[Mount]) -> ApiError {
    let volume = mounts.iter().find_map(Mount::wanted_id);
    let Some(volume) = volume.filter(|_| error.code == ErrorCode::InsufficientCapacity) else {
        return error;
    };
    let text = format!(
        "insufficient resources to create new machine with existing volume id '{volume}': {}",
        error.message
    );
    ApiError::new(ErrorCode::VolumePlacementCapacity, text)
}

async fn record_new(
    shared: &Arc<Shared>,
    row: MachineRow,
    config: MachineConfig,
    request: RequestId,
) -> WorkerResult {
    // Fails now rather than at the first start when there is nothing to run.
    spec::machine_spec(&row, &config, shared.network.guest_spec(&row.addresses))?;
    let now = shared.clock.unix_now();
    let mut draft = Transaction::new(row, now);
    draft.begin(OperationKind::Create, Source::Worker);
    let mut change = draft.into_change();
    change.request = request.map(|id| (id, now));
    shared.store.commit(vec![change.clone()], Durability::Synced, Room::Free).await.map_err(
        |e| {
            tracing::error!(machine = %change.row.id, error = %e, "can't record a new machine");
            if e.is_full() {
                return ApiError::disk_full();
            }
            ApiError::internal(
                "can't record the machine; see the server's log, and free space if its \
                            disk is full",
            )
        },
    )?;
    let Change { row, mut events, .. } = change;
    events.reverse();
    let lease = row.lease.clone();
    let warnings = spec::image_warnings(&row.image.config, &config);
    let mut record = shared.adopt(row, config, events, None);
    record.machine.warnings = warnings;
    Ok(WorkerReply::Created { record: Box::new(record), lease })
}

fn new_row(
    create: CreateMachine,
    config: RawConfig,
    image: ResolvedImage,
    addresses: MachineAddresses,
    now: UnixMillis,
) -> MachineRow {
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
        rested_at: UnixMillis::EPOCH,
        start_kind: None,
        replaced: None,
        last_event: None,
        revision: now.as_u64(),
        destroyed_at: None,
        superseded_by: None,
        is_quarantined: false,
        started_at: UnixMillis::EPOCH,
        hold: None,
        checks: CheckResults::default(),
        saved_volumes: Vec::new(),
    };
    row.lease = create.lease.map(|(ttl, owner)| {
        grant_lease(&row, LeaseNonce::random(), ttl, owner, String::new(), now)
    });
    row
}
