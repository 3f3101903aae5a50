//! The user's own words about a machine. A lease does not stand in the way of changing them.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use caddis_api::{
    ApiError, ErrorCode, MachineState, VersionId,
    requests::{MetadataValue, PatchMetadataRequest, SetMetadataRequest},
};
use caddis_bus::message::{Action, WorkerReply};
use serde_json::{Map, Value};

use super::get::destroyed;
use crate::http::{
    authorization::MachinePath,
    context::Context,
    errors::{HttpError, unexpected},
    extract::JsonBody,
    responses::{BadBody, NoMachine, Refused},
};

/// Longest key, bytes.
const LONGEST_KEY: usize = 256;

async fn metadata(context: &Context, path: &MachinePath) -> Result<Map<String, Value>, ApiError> {
    let shown = path.look_up(context).await?;
    let config = match shown.state() {
        MachineState::Destroyed => destroyed(context, &shown).await?.config,
        _ => shown.record.machine.config.clone(),
    };
    let metadata = config.and_then(|config| config.field("metadata"));
    Ok(metadata.and_then(|metadata| metadata.as_object().cloned()).unwrap_or_default())
}

async fn change(
    context: &Context,
    path: &MachinePath,
    changes: BTreeMap<String, Option<String>>,
    expected: Option<VersionId>,
) -> Result<StatusCode, HttpError> {
    if changes.keys().any(|key| key.is_empty() || key.len() > LONGEST_KEY) {
        let text = format!("invalid metadata, a key has 1 to {LONGEST_KEY} bytes");
        return Err(ApiError::invalid(text).into());
    }
    match path.act(context, None, Action::SetMetadata { changes, expected }).await? {
        WorkerReply::Done { .. } => Ok(StatusCode::NO_CONTENT),
        other => Err(unexpected(&other).into()),
    }
}

/// Show the metadata of a machine.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/metadata",
    operation_id = "Machines_show_metadata",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "The metadata", body = BTreeMap<String, String>),
        NoMachine,
    ),
)]
pub(crate) async fn all(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<Map<String, Value>>, HttpError> {
    Ok(Json(metadata(&context, &path).await?))
}

/// Change metadata of a machine.
///
/// Keys not named stay unchanged. Works in spite of a lease.
#[utoipa::path(
    method(patch, put),
    path = "/v1/apps/{app_name}/machines/{machine_id}/metadata",
    operation_id = "Machines_update_metadata",
    tag = "Machines",
    params(MachinePath),
    request_body = PatchMetadataRequest,
    responses(
        (status = 204, description = "Done"),
        NoMachine,
        BadBody,
        Refused,
    ),
)]
pub(crate) async fn merge(
    State(context): State<Context>,
    path: MachinePath,
    JsonBody(request): JsonBody<PatchMetadataRequest>,
) -> Result<StatusCode, HttpError> {
    let expected = request.machine_version.filter(|version| !version.as_str().is_empty());
    change(&context, &path, request.metadata, expected).await
}

/// The key in the path.
type KeyPath = Path<(String, String, String)>;

/// Show a metadata value of a machine.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/metadata/{key}",
    operation_id = "Machines_get_metadata_key",
    tag = "Machines",
    params(
        MachinePath,
        ("key" = String, Path, description = "Metadata key"),
    ),
    responses(
        (status = 200, description = "The value", body = MetadataValue),
        NoMachine,
    ),
)]
pub(crate) async fn get(
    State(context): State<Context>,
    path: MachinePath,
    Path((_, _, key)): KeyPath,
) -> Result<Json<MetadataValue>, HttpError> {
    let metadata = metadata(&context, &path).await?;
    let value = metadata.get(&key).and_then(Value::as_str).ok_or_else(|| {
        let key: String = key.escape_debug().take(100).collect();
        ApiError::new(ErrorCode::NotFound, format!("metadata key '{key}' not found"))
    })?;
    Ok(Json(MetadataValue { value: value.to_owned() }))
}

/// Set a metadata value of a machine.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/metadata/{key}",
    operation_id = "Machines_upsert_metadata",
    tag = "Machines",
    params(
        MachinePath,
        ("key" = String, Path, description = "Metadata key"),
    ),
    request_body = SetMetadataRequest,
    responses(
        (status = 204, description = "Done"),
        NoMachine,
        BadBody,
        Refused,
    ),
)]
pub(crate) async fn set(
    State(context): State<Context>,
    path: MachinePath,
    Path((_, _, key)): KeyPath,
    JsonBody(request): JsonBody<SetMetadataRequest>,
) -> Result<StatusCode, HttpError> {
    change(&context, &path, BTreeMap::from([(key, Some(request.value))]), None).await
}

/// Remove a metadata value of a machine, if present.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}/machines/{machine_id}/metadata/{key}",
    operation_id = "Machines_delete_metadata",
    tag = "Machines",
    params(
        MachinePath,
        ("key" = String, Path, description = "Metadata key"),
    ),
    responses(
        (status = 204, description = "Removed"),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn remove(
    State(context): State<Context>,
    path: MachinePath,
    Path((_, _, key)): KeyPath,
) -> Result<StatusCode, HttpError> {
    change(&context, &path, BTreeMap::from([(key, None)]), None).await
}
