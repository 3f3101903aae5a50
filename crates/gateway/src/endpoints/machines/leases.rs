//! Leases: decided by the worker, only carried here.

use axum::{Extension, Json, extract::State, http::StatusCode};
use caddis_api::{
    ApiError,
    lease::{DEFAULT_TTL_SECONDS, Lease, LeaseReleased, LeaseReply, LeaseRequest, MAX_TTL_SECONDS},
};
use caddis_bus::message::{Action, WorkerReply};
use serde_json::{Value, json};

use crate::http::{
    authorization::MachinePath,
    caller::Caller,
    context::Context,
    errors::{HttpError, unexpected},
    extract::{LenientJson, Nonce},
    query::{Params, invalid},
    responses::{BadBody, NoMachine, Refused},
};

fn lease(reply: WorkerReply) -> Result<Lease, ApiError> {
    match reply {
        WorkerReply::Lease { lease } => Ok(lease),
        other => Err(unexpected(&other)),
    }
}

/// Take the lease of a machine, or extend it with its nonce.
///
/// `ttl` in the body takes precedence over the query's.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/lease",
    operation_id = "Machines_create_lease",
    tag = "Machines",
    params(
        MachinePath,
        Nonce,
        ("ttl" = Option<u64>, Query, description = "Seconds; default 30"),
    ),
    request_body = Option<LeaseRequest>,
    responses(
        (status = 201, description = "The lease", body = LeaseReply),
        NoMachine,
        BadBody,
        Refused,
    ),
)]
pub(crate) async fn acquire(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    path: MachinePath,
    nonce: Nonce,
    params: Params,
    LenientJson(request): LenientJson<LeaseRequest>,
) -> Result<(StatusCode, Json<LeaseReply>), HttpError> {
    let ttl = match request.ttl {
        Some(ttl) => Some(ttl),
        None => params.number("ttl", 0, u64::MAX)?,
    };
    let ttl_seconds = ttl.filter(|ttl| *ttl > 0).unwrap_or(DEFAULT_TTL_SECONDS);
    if ttl_seconds > MAX_TTL_SECONDS {
        return Err(invalid(
            "ttl",
            &ttl_seconds.to_string(),
            &format!("at most {MAX_TTL_SECONDS} seconds"),
        )
        .into());
    }
    let description = request.description.unwrap_or_default();
    if description.len() > 1024 {
        return Err(ApiError::invalid("invalid description, at most 1024 bytes").into());
    }
    let action = Action::AcquireLease { ttl_seconds, owner: caller.owner(), description };
    let taken = lease(path.act(&context, nonce.0, action).await?)?;
    Ok((StatusCode::CREATED, Json(taken.into())))
}

/// Show the lease of a machine.
///
/// Only its owner sees the nonce.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/lease",
    operation_id = "Machines_show_lease",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "The lease", body = LeaseReply),
        NoMachine,
    ),
)]
pub(crate) async fn get(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    path: MachinePath,
) -> Result<Json<Value>, HttpError> {
    let held = lease(path.act(&context, None, Action::GetLease).await?)?;
    let is_owner = held.owner == caller.owner();
    let mut reply = json!(LeaseReply::from(held));
    if !is_owner {
        for place in ["", "/data"] {
            if let Some(Value::Object(fields)) = reply.pointer_mut(place) {
                fields.remove("nonce");
            }
        }
    }
    Ok(Json(reply))
}

/// Release a lease.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}/machines/{machine_id}/lease",
    operation_id = "Machines_release_lease",
    tag = "Machines",
    params(MachinePath, Nonce),
    responses(
        (status = 200, description = "Released", body = LeaseReleased),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn release(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
) -> Result<Json<LeaseReleased>, HttpError> {
    match path.act(&context, nonce.0, Action::ReleaseLease).await? {
        WorkerReply::Done { .. } => Ok(Json(LeaseReleased::default())),
        other => Err(unexpected(&other).into()),
    }
}
