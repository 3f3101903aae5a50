//! Snapshots of a volume. The worker that has the volume, or had it, is asked.

use axum::{Extension, Json, extract::State, http::StatusCode};
use caddis_api::{ApiError, SnapshotId, WorkerId, error::ErrorBody, volume::VolumeSnapshot};
use caddis_bus::message::{SnapshotRecord, WorkerReply, WorkerRequest};

use super::letters_of;
use crate::http::{
    authorization::{SnapshotPath, VolumePath},
    context::Context,
    errors::{HttpError, unexpected},
    idempotency::RequestId,
    responses::{NoSnapshot, NoVolume},
};

/// List the snapshots of a volume, oldest first.
///
/// Those of a volume that is gone are there until their retention has passed.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/volumes/{volume_id}/snapshots",
    operation_id = "Volumes_list_snapshots",
    tag = "Volumes",
    params(VolumePath),
    responses((status = 200, description = "The snapshots", body = Vec<VolumeSnapshot>), NoVolume),
)]
pub(crate) async fn list(
    State(context): State<Context>,
    path: VolumePath,
) -> Result<Json<Vec<VolumeSnapshot>>, HttpError> {
    let placed = path.placed(&context).await?;
    let request = WorkerRequest::ListSnapshots { volume: placed.id };
    let found = ask(&context, &placed.worker, request).await?;
    let mut found: Vec<_> = found.into_iter().map(|record| record.snapshot).collect();
    found.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
    Ok(Json(found))
}

/// Take a snapshot of a volume.
///
/// Answers once it is certain that it will be taken, with its status `waiting`. It holds what the
/// volume has when it is taken, a moment later.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/volumes/{volume_id}/snapshots",
    operation_id = "createVolumeSnapshot",
    tag = "Volumes",
    params(VolumePath),
    responses(
        (status = 200, description = "The snapshot", body = VolumeSnapshot),
        NoVolume,
        (status = 412, description = "The state of the volume does not allow it",
            body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(context): State<Context>,
    id: Option<Extension<RequestId>>,
    path: VolumePath,
) -> Result<Json<VolumeSnapshot>, HttpError> {
    let record = path.look_up(&context).await?;
    let snapshot = match id {
        // The worker tells of the one that an earlier try has made.
        Some(Extension(RequestId(id))) => {
            SnapshotId::from_trusted(format!("vs_{}", letters_of(&id, 20)))
        }
        None => SnapshotId::random(),
    };
    let request = WorkerRequest::TakeSnapshot { volume: record.volume.id, snapshot };
    let taken = ask(&context, &record.worker, request).await?.pop();
    let taken = taken.ok_or_else(|| ApiError::internal("the worker told of no snapshot"))?;
    Ok(Json(taken.snapshot))
}

/// Show a snapshot of a volume.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/volumes/{volume_id}/snapshots/{snapshot_id}",
    operation_id = "Volumes_get_snapshot",
    tag = "Volumes",
    params(SnapshotPath),
    responses((status = 200, description = "The snapshot", body = VolumeSnapshot), NoSnapshot),
)]
pub(crate) async fn get(
    State(context): State<Context>,
    path: SnapshotPath,
) -> Result<Json<VolumeSnapshot>, HttpError> {
    Ok(Json(path.look_up(&context).await?.1.snapshot))
}

/// Delete a snapshot of a volume.
///
/// It can't be taken back. A volume that is being restored from it gets all of it before it goes.
/// Caddis extension.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}/volumes/{volume_id}/snapshots/{snapshot_id}",
    operation_id = "Volumes_delete_snapshot",
    tag = "Volumes",
    params(SnapshotPath),
    responses(
        (status = 204, description = "The snapshot is deleted"),
        NoSnapshot,
    ),
)]
pub(crate) async fn delete(
    State(context): State<Context>,
    path: SnapshotPath,
) -> Result<StatusCode, HttpError> {
    let (worker, record) = path.look_up(&context).await?;
    let (volume, snapshot) = (record.volume, record.snapshot.id);
    ask(&context, &worker, WorkerRequest::DeleteSnapshot { volume, snapshot }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn ask(
    context: &Context,
    worker: &WorkerId,
    request: WorkerRequest,
) -> Result<Vec<SnapshotRecord>, ApiError> {
    match context.ask(worker, request, context.settings.request_deadline).await? {
        WorkerReply::Snapshots { records } => Ok(records),
        other => Err(unexpected(&other)),
    }
}
