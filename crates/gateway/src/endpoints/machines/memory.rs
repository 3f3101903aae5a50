//! What a running machine's programs may have of its memory.

use axum::{Json, extract::State};
use caddis_api::{
    ApiError, LeaseNonce,
    requests::{Memory, ReclaimMemoryReply, ReclaimMemoryRequest, SetMemoryRequest},
};
use caddis_bus::message::{WorkerReply, WorkerRequest};

use crate::http::{
    authorization::MachinePath,
    context::Context,
    errors::{HttpError, unexpected},
    extract::{JsonBody, Nonce},
    responses::{BadBody, NoMachine, Refused},
};

/// The memory afterwards, and how much was taken back, MiB.
async fn ask(
    context: &Context,
    path: MachinePath,
    nonce: Option<LeaseNonce>,
    limit_mib: Option<u64>,
    reclaim_mib: Option<u64>,
) -> Result<(Memory, u64), ApiError> {
    let shown = path.look_up(context).await?;
    let request = WorkerRequest::Memory {
        machine: shown.record.machine.id.clone(),
        nonce,
        limit_mib,
        reclaim_mib,
    };
    match context.ask(&shown.record.worker, request, context.settings.request_deadline).await? {
        WorkerReply::Memory { memory, reclaimed_mib } => Ok((memory, reclaimed_mib)),
        other => Err(unexpected(&other)),
    }
}

/// Show the memory limit of a machine's programs.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/memory",
    operation_id = "Machines_get_memory",
    tag = "Machines",
    params(MachinePath),
    responses((status = 200, description = "The memory", body = Memory), NoMachine, Refused),
)]
pub(crate) async fn get(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<Memory>, HttpError> {
    Ok(Json(ask(&context, path, None, None, None).await?.0))
}

/// Limit the memory of a machine's programs.
///
/// Lasts until the next start. Nothing is killed to enforce it.
#[utoipa::path(
    put,
    path = "/v1/apps/{app_name}/machines/{machine_id}/memory",
    operation_id = "Machines_set_memory_limit",
    tag = "Machines",
    params(MachinePath, Nonce),
    request_body = SetMemoryRequest,
    responses(
        (status = 200, description = "The memory", body = Memory), NoMachine, BadBody, Refused,
    ),
)]
pub(crate) async fn set(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    JsonBody(request): JsonBody<SetMemoryRequest>,
) -> Result<Json<Memory>, HttpError> {
    Ok(Json(ask(&context, path, nonce.0, Some(request.limit_mb), None).await?.0))
}

/// Reclaim memory that the programs of a machine do not need right now.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/memory/reclaim",
    operation_id = "Machines_reclaim_memory",
    tag = "Machines",
    params(MachinePath, Nonce),
    request_body = ReclaimMemoryRequest,
    responses(
        (status = 200, description = "The amount reclaimed", body = ReclaimMemoryReply),
        NoMachine,
        BadBody,
        Refused,
    ),
)]
pub(crate) async fn reclaim(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    JsonBody(request): JsonBody<ReclaimMemoryRequest>,
) -> Result<Json<ReclaimMemoryReply>, HttpError> {
    let (_, actual_mb) = ask(&context, path, nonce.0, None, Some(request.amount_mb)).await?;
    Ok(Json(ReclaimMemoryReply { actual_mb }))
}
