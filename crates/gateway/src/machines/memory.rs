//! What a running machine's programs may have of its memory.

use axum::{Json, extract::State};
use caddis_api::{
    ApiError, LeaseNonce,
    requests::{Memory, ReclaimMemoryReply, ReclaimMemoryRequest, SetMemoryRequest},
};
use caddis_bus::message::{WorkerReply, WorkerRequest};

use crate::{
    context::{Context, unexpected},
    envelope::Failure,
    extract::{JsonBody, MachinePath, Nonce},
};

/// The memory afterwards, and how much was taken back, MiB.
async fn ask(
    context: &Context,
    path: MachinePath,
    nonce: Option<LeaseNonce>,
    limit_mib: Option<u64>,
    reclaim_mib: Option<u64>,
) -> Result<(Memory, u64), ApiError> {
    let shown = context.machine(&path.app, &path.id).await?;
    let request = WorkerRequest::Memory { machine: path.id, nonce, limit_mib, reclaim_mib };
    match context.ask(&shown.record.worker, request, context.settings.request_deadline).await? {
        WorkerReply::Memory { memory, reclaimed_mib } => Ok((memory, reclaimed_mib)),
        other => Err(unexpected(&other)),
    }
}

/// `GET …/memory`.
pub(crate) async fn get(State(context): State<Context>, path: MachinePath) -> Result<Json<Memory>, Failure> {
    Ok(Json(ask(&context, path, None, None, None).await?.0))
}

/// `PUT …/memory`.
pub(crate) async fn set(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    JsonBody(request): JsonBody<SetMemoryRequest>,
) -> Result<Json<Memory>, Failure> {
    Ok(Json(ask(&context, path, nonce.0, Some(request.limit_mb), None).await?.0))
}

/// `POST …/memory/reclaim`.
pub(crate) async fn reclaim(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    JsonBody(request): JsonBody<ReclaimMemoryRequest>,
) -> Result<Json<ReclaimMemoryReply>, Failure> {
    let (_, actual_mb) = ask(&context, path, nonce.0, None, Some(request.amount_mb)).await?;
    Ok(Json(ReclaimMemoryReply { actual_mb }))
}
