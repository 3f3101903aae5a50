//! One volume.

use axum::{Json, extract::State};
use caddis_api::{
    Volume,
    error::ErrorBody,
    fields::unknown_of_volume_update,
    volume::{
        ChangedVolume, ExtendVolumeReply, ExtendVolumeRequest, UpdateVolumeRequest, VolumeOperation,
    },
};
use caddis_bus::message::{VolumeAction, WorkerReply, WorkerRequest};

use crate::{
    deletion,
    http::{
        authorization::VolumePath,
        context::{AskError, Context},
        errors::{HttpError, unexpected},
        extract::{JsonBody, Named},
        query::Params,
        responses::{BadBody, NoVolume},
    },
};

/// Show a volume.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/volumes/{volume_id}",
    operation_id = "Volumes_get_by_id",
    tag = "Volumes",
    params(VolumePath),
    responses((status = 200, description = "The volume", body = Volume), NoVolume),
)]
pub(crate) async fn get(
    State(context): State<Context>,
    path: VolumePath,
) -> Result<Json<Volume>, HttpError> {
    let record = path.look_up(&context).await?;
    if record.volume.host_status == "unreachable" {
        return Ok(Json(record.volume));
    }
    // Its machine tells how much of it is in use by now.
    let request = WorkerRequest::GetVolume { volume: record.volume.id.clone() };
    match context.ask(&record.worker, request, context.settings.request_deadline).await {
        Ok(WorkerReply::Volume { record }) => Ok(Json(record.volume)),
        Ok(other) => Err(unexpected(&other).into()),
        Err(AskError::Refused(error)) => Err(error.into()),
        // As it was when its host was last heard.
        Err(AskError::Bus(error)) => {
            tracing::warn!(volume = %record.volume.id, %error, "a worker did not tell of a volume");
            Ok(Json(record.volume))
        }
    }
}

/// Update a volume.
///
/// Fields that are absent or null stay as they are.
#[utoipa::path(
    put,
    path = "/v1/apps/{app_name}/volumes/{volume_id}",
    operation_id = "Volumes_update",
    tag = "Volumes",
    params(VolumePath),
    request_body = UpdateVolumeRequest,
    responses(
        (status = 200, description = "The volume", body = ChangedVolume),
        NoVolume,
        BadBody,
        (status = 412, description = "The volume is deleted", body = ErrorBody),
    ),
)]
pub(crate) async fn update(
    State(context): State<Context>,
    path: VolumePath,
    Named(request, names): Named<UpdateVolumeRequest>,
) -> Result<Json<ChangedVolume>, HttpError> {
    request.check()?;
    let warnings = unknown_of_volume_update(names.iter().map(String::as_str));
    let UpdateVolumeRequest { snapshot_retention, auto_backup_enabled } = request;
    let action = VolumeAction::Update { snapshot_retention, auto_backup_enabled };
    let volume = path.act(&context, action).await?.volume;
    Ok(Json(ChangedVolume { volume, warnings }))
}

/// Delete a volume.
///
/// Refused while a machine has it. It can be undeleted for 24 hours, and its space stays reserved
/// for as long. With `purge` it is gone at once.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}/volumes/{volume_id}",
    operation_id = "Volume_delete",
    tag = "Volumes",
    params(
        VolumePath,
        ("purge" = Option<bool>, Query, description = "Delete it for good, at once, also when it \
            is deleted already: its space is free then, and it can't be undeleted. Caddis \
            extension."),
    ),
    responses(
        (status = 200, description = "The volume", body = Volume),
        NoVolume,
        (status = 412, description = "A machine has the volume", body = ErrorBody),
    ),
)]
pub(crate) async fn delete(
    State(context): State<Context>,
    path: VolumePath,
    params: Params,
) -> Result<Json<Volume>, HttpError> {
    let action = if params.flag("purge")? { VolumeAction::Purge } else { VolumeAction::Delete };
    let record = path.act(&context, action).await?;
    deletion::sync_volume(&context, &record).await?;
    Ok(Json(record.volume))
}

/// Undelete a volume.
///
/// Takes a delete back while its `deleted_until` has not passed. Caddis extension.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/volumes/{volume_id}/undelete",
    operation_id = "Volumes_undelete",
    tag = "Volumes",
    params(VolumePath),
    responses(
        (status = 200, description = "The volume", body = Volume),
        NoVolume,
        (status = 412, description = "The volume is gone for good, or the app is being deleted",
            body = ErrorBody),
    ),
)]
pub(crate) async fn undelete(
    State(context): State<Context>,
    path: VolumePath,
) -> Result<Json<Volume>, HttpError> {
    let known = path.look_up(&context).await?;
    // First, so that its app is not gone by the time that the volume is back.
    context.catalog.undelete_volume(&known.volume.id).await?;
    match path.act(&context, VolumeAction::Undelete).await {
        Ok(record) => {
            // Who heard of the delete only now may have marked it again.
            deletion::sync_volume(&context, &record).await?;
            Ok(Json(record.volume))
        }
        Err(error) => {
            deletion::sync_volume(&context, &known).await?;
            Err(error.into())
        }
    }
}

/// Extend a volume.
///
/// The size is the new one as a whole. Volumes can't be made smaller. A machine that runs sees the
/// new size without a restart unless `needs_restart` says otherwise.
#[utoipa::path(
    put,
    path = "/v1/apps/{app_name}/volumes/{volume_id}/extend",
    operation_id = "Volumes_extend",
    tag = "Volumes",
    params(VolumePath),
    request_body = ExtendVolumeRequest,
    responses(
        (status = 200, description = "The volume", body = ExtendVolumeReply),
        NoVolume,
        BadBody,
        (status = 412, description = "The volume is deleted, not there yet, or being extended",
            body = ErrorBody),
        (status = 422, description = "Its host has not enough space", body = ErrorBody),
    ),
)]
pub(crate) async fn extend(
    State(context): State<Context>,
    path: VolumePath,
    JsonBody(request): JsonBody<ExtendVolumeRequest>,
) -> Result<Json<ExtendVolumeReply>, HttpError> {
    request.check(path.look_up(&context).await?.volume.size_gb)?;
    let action = VolumeAction::Extend { size_gb: request.size_gb };
    let volume = path.act(&context, action).await?.volume;
    // That its guest could not grow the file system.
    let failed =
        |operation: &VolumeOperation| operation.kind == "extend" && operation.error.is_some();
    let needs_restart =
        volume.size_gb >= request.size_gb && volume.operation.as_ref().is_some_and(failed);
    Ok(Json(ExtendVolumeReply { volume, needs_restart }))
}
