//! One machine.

use axum::{
    Json,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use caddis_api::{ApiError, ErrorCode, Machine, MachineState};
use caddis_bus::message::{WorkerReply, WorkerRequest};
use caddis_view::CachedMachine;

use super::update::all_versions;
use crate::http::{
    authorization::MachinePath,
    context::Context,
    errors::{HttpError, unexpected},
    query::Params,
    responses::NoMachine,
};

/// Show a machine.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}",
    operation_id = "Machines_show",
    tag = "Machines",
    params(
        MachinePath,
        ("version" = Option<String>, Query, description = "Show the machine as it was in this \
            version"),
        ("include_leases" = Option<bool>, Query, description = "Include the holder of its lease"),
    ),
    responses(
        (status = 200, description = "The machine", body = Machine),
        NoMachine,
    ),
)]
pub(crate) async fn get(
    State(context): State<Context>,
    path: MachinePath,
    params: Params,
) -> Result<Response, HttpError> {
    let shown = path.look_up(&context).await?;
    if let Some(version) = params.get("version")
        && version != shown.record.machine.version.as_str()
    {
        return Ok(Json(earlier(&context, &path, &shown, version).await?).into_response());
    }
    if shown.state() == MachineState::Destroyed {
        return Ok(Json(destroyed(&context, &shown).await?).into_response());
    }
    Ok(if params.flag("include_leases")? {
        Json(with_lease(&shown)).into_response()
    } else {
        ([(CONTENT_TYPE, "application/json")], shown.body()).into_response()
    })
}

/// A destroyed machine. Its configuration is in no memory any more: its worker reads it.
pub(super) async fn destroyed(
    context: &Context,
    shown: &CachedMachine,
) -> Result<Machine, ApiError> {
    let request = WorkerRequest::Get { machine: shown.record.machine.id.clone() };
    match context.ask(&shown.record.worker, request, context.settings.request_deadline).await? {
        WorkerReply::Machine { record } => Ok(record.machine),
        other => Err(unexpected(&other)),
    }
}

/// The machine as it was in a version that was replaced.
async fn earlier(
    context: &Context,
    path: &MachinePath,
    shown: &CachedMachine,
    version: &str,
) -> Result<Machine, ApiError> {
    let versions = all_versions(context, path).await?;
    let record = versions.into_iter().find(|record| record.version.as_str() == version);
    let record =
        record.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "machine version not found"))?;
    Ok(Machine {
        state: MachineState::Replaced,
        instance_id: record.version.clone(),
        version: record.version,
        config: Some(record.config),
        image_ref: record.image,
        operation: None,
        ..shown.record.machine.clone()
    })
}

/// The machine with its lease, which may have run out without a change of the machine.
pub(crate) fn with_lease(shown: &CachedMachine) -> Machine {
    let mut machine = shown.record.machine.clone();
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    machine.lease = shown.record.lease.clone().filter(|lease| lease.expires_at > now);
    machine
}
