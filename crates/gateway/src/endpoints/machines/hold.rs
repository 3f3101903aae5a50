//! Holds: decided by the worker, only carried here.

use axum::{Json, extract::State};
use caddis_api::{
    ApiError, ErrorCode,
    hold::{Hold, HoldRequest, MAX_REASON_BYTES, MAX_TTL_SECONDS},
    requests::OkReply,
};
use caddis_bus::message::{Action, WorkerReply};

use crate::http::{
    authorization::MachinePath,
    context::Context,
    errors::{HttpError, unexpected},
    extract::LenientJson,
    responses::{BadBody, NoMachine, Refused},
};

fn not_found() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "the machine has no hold")
}

/// Keep a machine from being put to sleep when idle.
///
/// Takes the place of an earlier hold, and ends when the machine stops. Requests to stop or suspend
/// the machine are carried out all the same. Programs in the machine do it by the socket
/// `/.fly/api`. Caddis extension.
#[utoipa::path(
    put,
    path = "/v1/apps/{app_name}/machines/{machine_id}/hold",
    operation_id = "Machines_set_hold",
    tag = "Machines",
    params(MachinePath),
    request_body = HoldRequest,
    responses(
        (status = 200, description = "The hold", body = Hold),
        NoMachine,
        BadBody,
        Refused,
    ),
)]
pub(crate) async fn set(
    State(context): State<Context>,
    path: MachinePath,
    LenientJson(request): LenientJson<HoldRequest>,
) -> Result<Json<Hold>, HttpError> {
    let within = 1..=MAX_TTL_SECONDS;
    let ttl_seconds = request.ttl.filter(|ttl| within.contains(ttl)).ok_or_else(|| {
        ApiError::invalid(format!("invalid ttl, must be from 1 to {MAX_TTL_SECONDS} seconds"))
    })?;
    let reason = request.reason;
    if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON_BYTES) {
        let text = format!("invalid reason, at most {MAX_REASON_BYTES} bytes");
        return Err(ApiError::invalid(text).into());
    }
    match path.act(&context, None, Action::Hold { ttl_seconds, reason }).await? {
        WorkerReply::Done { record } => Ok(Json(record.machine.hold.ok_or_else(not_found)?)),
        other => Err(unexpected(&other).into()),
    }
}

/// Show the hold of a machine.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/hold",
    operation_id = "Machines_show_hold",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "The hold", body = Hold),
        NoMachine,
    ),
)]
pub(crate) async fn get(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<Hold>, HttpError> {
    let shown = path.look_up(&context).await?;
    Ok(Json(shown.record.machine.hold.clone().ok_or_else(not_found)?))
}

/// End the hold of a machine, if there is one.
///
/// Caddis extension.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}/machines/{machine_id}/hold",
    operation_id = "Machines_release_hold",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "There is no hold", body = OkReply),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn release(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<OkReply>, HttpError> {
    match path.act(&context, None, Action::ReleaseHold).await? {
        WorkerReply::Done { .. } => Ok(Json(OkReply::OK)),
        other => Err(unexpected(&other).into()),
    }
}
