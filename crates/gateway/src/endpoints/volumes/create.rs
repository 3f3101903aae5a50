//! A new volume: checked, placed, and accepted by its worker. Runs to its end even when the client
//! hangs up, so that nothing stays half made.

use std::collections::BTreeSet;

use axum::{Extension, Json, extract::State};
use caddis_api::{
    ApiError, ErrorCode, RegionCode, Volume, VolumeId,
    error::ErrorBody,
    fields::unknown_of_new_volume,
    volume::{ChangedVolume, CreateVolumeRequest, DEFAULT_SNAPSHOT_RETENTION},
};
use caddis_bus::{
    BusError,
    message::{CreateVolume, Offer, SnapshotSource, WorkerReply, WorkerRequest},
};
use caddis_catalog::{AppRecord, AppState, CatalogError, NewVolume, VolumePlacement};
use serde_json::json;

use super::{letters_of, source::Source};
use crate::{
    deletion,
    endpoints::placements,
    http::{
        authorization::AppPath,
        caller::Caller,
        context::{AskError, Context},
        errors::{HttpError, unexpected},
        extract::Named,
        idempotency::RequestId,
        responses::{BadBody, NoApp},
    },
    scheduler::{self, Apart, VolumeOffers, WantedVolume},
};

/// Hosts tried when one after the other turns out to be full after all.
const MAX_HOSTS: usize = 3;

/// What is asked for, checked.
struct Wanted {
    app: AppRecord,
    request: CreateVolumeRequest,
    source: Option<Source>,
    regions: Vec<RegionCode>,
    size_gb: u32,
    /// Where the client gave the request a key: what it makes has this id.
    id: Option<VolumeId>,
}

/// Create a volume.
///
/// With `source_volume_id` it is a copy of that volume, on the same host. With `snapshot_id` it is
/// made from a snapshot of any volume of the organization, also of one that is gone. Machines can
/// use either while it is still being filled (`hydrating`).
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/volumes",
    operation_id = "Volumes_create",
    tag = "Volumes",
    params(AppPath),
    request_body = CreateVolumeRequest,
    responses(
        (status = 200, description = "The volume", body = ChangedVolume),
        NoApp,
        BadBody,
        (status = 412, description = "The app is being deleted, the source can't be copied, or the \
            snapshot is not there yet", body = ErrorBody),
        (status = 422, description = "No host has enough free space, or none that is wanted",
            body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Option<Extension<RequestId>>,
    app: AppPath,
    Named(request, names): Named<CreateVolumeRequest>,
) -> Result<Json<ChangedVolume>, HttpError> {
    request.check()?;
    let warnings = unknown_of_new_volume(names.iter().map(String::as_str));
    let id = id.map(|Extension(id)| id);
    let wanted = check(&context, &caller, &app, request, id).await?;
    let work = tokio::spawn(async move { make(&context, wanted).await });
    let made = work
        .await
        .map_err(|e| ApiError::internal(format!("creating the volume was interrupted: {e}")))?;
    Ok(Json(ChangedVolume { volume: made?, warnings }))
}

async fn check(
    context: &Context,
    caller: &Caller,
    app: &AppPath,
    request: CreateVolumeRequest,
    id: Option<RequestId>,
) -> Result<Wanted, ApiError> {
    let source = Source::find(context, caller, app, &request).await?;
    let size_gb = request.size_of(source.as_ref().map(Source::size))?;
    let regions = context.regions.resolve(request.region.as_deref())?;
    let app = app.look_up(context).await?;
    if app.state == AppState::Deleting {
        return Err(CatalogError::AppInDeletion(app.name).into());
    }
    if let Some(source) = &source {
        source.check(&request, &regions)?;
    }
    let id = id.map(|RequestId(id)| id_of_request(&id));
    Ok(Wanted { app, request, source, regions, size_gb, id })
}

/// The id of what a request makes, whenever it comes.
fn id_of_request(request: &str) -> VolumeId {
    VolumeId::from_trusted(format!("vol_{}", letters_of(request, 16)))
}

#[expect(clippy::disallowed_methods, reason = "the volume that this request has placed")]
async fn make(context: &Context, mut wanted: Wanted) -> Result<Volume, ApiError> {
    if let Some(id) = &wanted.id
        && let Some(placed) = context.catalog.volume(id).await?
    {
        context.volumes_synced().await?;
        match context.view.volume(id) {
            // Made, and maybe deleted since.
            Some(record) if placed.app_number == wanted.app.number => return Ok(record.volume),
            None if placed.app_number == wanted.app.number && !placed.deleted => {
                return hand_over(context, &wanted, placed, true).await;
            }
            _ => wanted.id = None,
        }
    }
    place(context, wanted).await
}

async fn place(context: &Context, wanted: Wanted) -> Result<Volume, ApiError> {
    let (region, workers) = match &wanted.source {
        Some(Source::Volume(source)) => (source.volume.region.clone(), vec![source.worker.clone()]),
        source => {
            let volume = volume(context, &wanted).await?;
            let found = scheduler::volume_offers(context, &wanted.regions, &volume).await?;
            check_count(&wanted, &found)?;
            let VolumeOffers { region, mut offers, .. } = found;
            if let Some(Source::Snapshot(worker, _)) = source {
                // A store in a directory is that host's alone.
                offers.sort_by_key(|offer| offer.worker != *worker);
            }
            (region, offers.into_iter().map(|offer| offer.worker).collect())
        }
    };
    let mut refusal = None;
    for (index, worker) in workers.into_iter().take(MAX_HOSTS).enumerate() {
        let new = NewVolume {
            // The id of one that was refused is used up.
            id: wanted.id.clone().filter(|_| index == 0),
            app: wanted.app.name.clone(),
            name: wanted.request.name.clone(),
            worker,
            region: region.clone(),
        };
        let placed = context.catalog.place_volume(new).await?;
        match hand_over(context, &wanted, placed, false).await {
            // It was taken between the offer and now.
            Err(error) if error.code == ErrorCode::InsufficientCapacity => refusal = Some(error),
            outcome => return outcome,
        }
    }
    Err(refusal.unwrap_or_else(|| ApiError::internal("no host was tried")))
}

/// Refuses the first of several volumes for which these hosts have no room together, before any of
/// them takes some of it.
fn check_count(wanted: &Wanted, found: &VolumeOffers) -> Result<(), ApiError> {
    let (gib, count) = (u64::from(wanted.size_gb), u64::from(wanted.request.count.unwrap_or(1)));
    let (offers, hosts) = (&found.offers, found.offers.len() as u64);
    if found.apart && count > hosts {
        let setting = match wanted.request.unique_zone_app_wide {
            Some(true) => "unique_zone_app_wide",
            _ => "require_unique_zone",
        };
        let text = format!(
            "{count} volumes of {gib} GiB in zones of their own ({setting}) need as many hosts \
             with room; there is room on {hosts}"
        );
        return Err(ApiError::new(ErrorCode::InsufficientCapacity, text));
    }
    // Each has room for this one, and so much left afterwards; or as much as anybody wants.
    let of = |offer: &Offer| offer.free_volume_gib.map_or(u64::MAX, |left| 1 + left / gib.max(1));
    let fitting = offers.iter().map(of).fold(0, u64::saturating_add);
    if count <= fitting {
        return Ok(());
    }
    let ending = if fitting == 1 { "" } else { "s" };
    let text = format!(
        "there is room for {fitting} volume{ending} of {gib} GiB, not for {count}; deleted ones \
         keep their space for a day, or until they are purged"
    );
    Err(ApiError::new(ErrorCode::InsufficientCapacity, text))
}

/// What the scheduler has to know.
async fn volume(context: &Context, wanted: &Wanted) -> Result<WantedVolume, ApiError> {
    let request = &wanted.request;
    let app_wide = request.unique_zone_app_wide.unwrap_or(false);
    let apart = match request.require_unique_zone {
        _ if app_wide => Apart::Always,
        Some(true) => Apart::Always,
        None => Apart::OfSeveralHosts,
        Some(false) => Apart::No,
    };
    let placed = context.catalog.volumes_of(wanted.app.number).await?.into_iter();
    let others = placed.filter(|other| !other.deleted && (app_wide || other.name == request.name));
    let avoid: BTreeSet<_> = others.map(|other| other.worker).collect();
    let compute = match &request.compute {
        Some(guest) => {
            Some(placements::config(Some(json!(guest)), request.compute_image.as_deref())?)
        }
        None => None,
    };
    Ok(WantedVolume { gib: wanted.size_gb, compute, avoid, apart, app_wide })
}

/// `again`: its worker may have been asked before.
#[expect(clippy::disallowed_methods, reason = "the app was looked up for the caller before")]
async fn hand_over(
    context: &Context,
    wanted: &Wanted,
    placed: VolumePlacement,
    again: bool,
) -> Result<Volume, ApiError> {
    let Wanted { request, source, .. } = wanted;
    let (copied, snapshot) = match source {
        Some(Source::Volume(record)) => (Some(record.volume.id.clone()), None),
        Some(Source::Snapshot(_, record)) => {
            let (snapshot, volume) = (record.snapshot.id.clone(), record.volume.clone());
            (None, Some(SnapshotSource { snapshot, volume }))
        }
        None => (None, None),
    };
    let asked = request.filesystem()?.unwrap_or_default();
    let create = CreateVolume {
        id: placed.id.clone(),
        name: placed.name.clone(),
        app: wanted.app.name.clone(),
        org: wanted.app.organization.slug.clone(),
        region: placed.region.clone(),
        size_gb: wanted.size_gb,
        encrypted: source
            .as_ref()
            .map_or_else(|| request.encrypted.unwrap_or(true), Source::encrypted),
        filesystem: source.as_ref().map_or(asked, Source::filesystem),
        source: copied,
        snapshot,
        snapshot_retention: request
            .snapshot_retention
            .filter(|days| *days > 0)
            .unwrap_or(DEFAULT_SNAPSHOT_RETENTION),
        auto_backup_enabled: request.auto_backup_enabled.unwrap_or(true),
    };
    let ask = WorkerRequest::CreateVolume(Box::new(create));
    match context.ask(&placed.worker, ask, context.settings.create_deadline).await {
        Ok(WorkerReply::Volume { record }) => {
            let app = context.catalog.app(&wanted.app.name).await?;
            if app.is_some_and(|app| app.state == AppState::Deleting) {
                // The deletion may have looked before this volume was there.
                deletion::begin(context, &wanted.app.name);
            }
            Ok(record.volume)
        }
        Ok(other) => Err(unexpected(&other)),
        // Of one that was asked before, only its worker knows.
        Err(AskError::Bus(error)) if again || !matches!(error, BusError::NotDelivered(_)) => {
            let volume = placed.id.clone();
            tracing::warn!(%volume, %error, "a worker did not answer to a create of a volume");
            deletion::give_up_volume_unless_made(context, placed);
            Err(ApiError::new(
                ErrorCode::Unavailable,
                format!(
                    "unavailable: {error}; volume {volume} may still appear, look for it before \
                     trying again"
                ),
            ))
        }
        // What an earlier try has made may be there, though this one was refused.
        Err(AskError::Refused(error))
            if again && matches!(error.code, ErrorCode::Unavailable | ErrorCode::Internal) =>
        {
            deletion::give_up_volume_unless_made(context, placed);
            Err(error)
        }
        Err(error) => {
            deletion::give_up_volume(context, &placed).await?;
            Err(error.into())
        }
    }
}
