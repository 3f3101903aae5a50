//! Snapshots of a volume, of which there are none yet.

use axum::{Json, extract::State};
use caddis_api::{ApiError, error::ErrorBody, volume::VolumeSnapshot};

use crate::http::{
    authorization::VolumePath, context::Context, errors::HttpError, responses::NoVolume,
};

/// List the snapshots of a volume.
///
/// The list is empty: this server takes no snapshots yet.
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
    path.look_up(&context).await?;
    Ok(Json(Vec::new()))
}

/// Take a snapshot of a volume.
///
/// Always refused: this server takes no snapshots yet.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/volumes/{volume_id}/snapshots",
    operation_id = "createVolumeSnapshot",
    tag = "Volumes",
    params(VolumePath),
    responses(
        (status = 200, description = "The snapshot is being taken; by no server yet"),
        NoVolume,
        (status = 412, description = "This server takes no snapshots yet", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(context): State<Context>,
    path: VolumePath,
) -> Result<(), HttpError> {
    path.look_up(&context).await?;
    Err(ApiError::precondition("this server takes no snapshots of volumes yet").into())
}
