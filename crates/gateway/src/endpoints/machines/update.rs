//! A new configuration of a machine, and those it had.

use axum::{Extension, Json, extract::State};
use caddis_api::{
    ApiError, Machine, MachineState, VersionId,
    error::ErrorBody,
    fields::unknown_of_request,
    requests::{CreateMachineRequest, MachineVersion},
    validate,
    warnings::warnings,
};
use caddis_bus::message::{UpdateMachine, VersionRecord, WorkerReply, WorkerRequest};

use super::{
    create::{check_secrets, checked_ttl},
    mounts,
};
use crate::{
    endpoints::addresses::publish,
    http::{
        authorization::MachinePath,
        caller::Caller,
        context::Context,
        errors::{HttpError, unexpected},
        extract::{Named, Nonce},
        idempotency::RequestId,
        responses::{BadBody, NoMachine, Refused},
    },
};

/// Update a machine's configuration.
///
/// The whole configuration is replaced. A different name or region is ignored, with a warning.
#[utoipa::path(
    method(post, put),
    path = "/v1/apps/{app_name}/machines/{machine_id}",
    operation_id = "Machines_update",
    tag = "Machines",
    params(MachinePath, Nonce),
    request_body = CreateMachineRequest,
    responses(
        (status = 200, description = "The machine", body = Machine),
        NoMachine,
        BadBody,
        Refused,
        (status = 422, description = "The image can't be pulled", body = ErrorBody),
    ),
)]
pub(crate) async fn update(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Option<Extension<RequestId>>,
    path: MachinePath,
    nonce: Nonce,
    Named(request, names): Named<CreateMachineRequest>,
) -> Result<Json<Machine>, HttpError> {
    let shown = path.look_up(&context).await?;
    let machine = &shown.record.machine;
    let mut told = unknown_of_request(names.iter().map(String::as_str));
    for (field, wanted, current) in [
        ("name", &request.name, machine.name.as_str()),
        ("region", &request.region, machine.region.as_str()),
    ] {
        if wanted.as_ref().is_some_and(|wanted| !wanted.is_empty() && wanted != current) {
            told.push(format!("{field} is ignored: it can't be changed from {current}"));
        }
    }
    if matches!(machine.state, MachineState::Suspended | MachineState::Suspending) {
        told.push(
            "the memory saved by the suspend is discarded, the next start is a new boot".to_owned(),
        );
    }
    check_secrets(request.min_secrets_version)?;
    let raw = request.config.ok_or_else(|| ApiError::invalid("invalid config, it is required"))?;
    let (config, read) = validate::normalise(raw)?;
    let sent = config;
    let config = mounts::kept(&context, machine.config.as_ref(), (&sent, &read))?;
    told.extend(mounts::overridden(&sent, &config));
    told.extend(warnings(&config));
    let update = UpdateMachine {
        config,
        expected: request.current_version.filter(|version| !version.as_str().is_empty()),
        skip_launch: request.skip_launch,
        cordoned: request.skip_service_registration,
        lease: checked_ttl(request.lease_ttl)?.map(|ttl| (ttl, caller.owner())),
        version: id.map(|Extension(RequestId(id))| VersionId::from_trusted(id)),
    };
    let request = WorkerRequest::Update {
        machine: machine.id.clone(),
        nonce: nonce.0,
        update: Box::new(update),
    };
    // Also where the client goes away: the worker updates the machine all the same.
    let work = tokio::spawn(async move {
        let deadline = context.settings.create_deadline;
        match context.ask(&shown.record.worker, request, deadline).await? {
            WorkerReply::Updated { record, lease } => {
                told.extend(publish(&context, &shown.record.app, &read).await);
                let machine = Machine { nonce: lease.map(|lease| lease.nonce), ..record.machine };
                Ok::<_, ApiError>(machine.warning(told))
            }
            other => Err(unexpected(&other)),
        }
    });
    let updated = work
        .await
        .map_err(|e| ApiError::internal(format!("updating the machine was interrupted: {e}")))?;
    Ok(Json(updated?))
}

/// Those that are kept, newest first.
pub(crate) async fn all_versions(
    context: &Context,
    path: &MachinePath,
) -> Result<Vec<VersionRecord>, ApiError> {
    let shown = path.look_up(context).await?;
    let request = WorkerRequest::Versions { machine: shown.record.machine.id.clone() };
    match context.ask(&shown.record.worker, request, context.settings.request_deadline).await? {
        WorkerReply::Versions { versions } => Ok(versions),
        other => Err(unexpected(&other)),
    }
}

/// List the versions of a machine's configuration, newest first.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/versions",
    operation_id = "Machines_list_versions",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "The versions that are kept", body = Vec<MachineVersion>),
        NoMachine,
    ),
)]
pub(crate) async fn versions(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<Vec<MachineVersion>>, HttpError> {
    let versions = all_versions(&context, &path).await?.into_iter();
    let shown = versions
        .map(|record| MachineVersion { version: record.version, user_config: record.config });
    Ok(Json(shown.collect()))
}
