//! A new configuration of a machine, and those it had.

use axum::{Extension, Json, extract::State};
use caddis_api::{
    ApiError, Machine, VersionId,
    requests::{CreateMachineRequest, MachineVersion},
    validate,
};
use caddis_bus::message::{UpdateMachine, VersionRecord, WorkerReply, WorkerRequest};

use super::create::checked_ttl;
use crate::{
    authentication::Caller,
    context::{Context, unexpected},
    envelope::Failure,
    extract::{JsonBody, MachinePath, Nonce},
    idempotency::RequestId,
};

/// `POST` or `PUT …/machines/{id}`.
pub(crate) async fn update(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Option<Extension<RequestId>>,
    path: MachinePath,
    nonce: Nonce,
    JsonBody(request): JsonBody<CreateMachineRequest>,
) -> Result<Json<Machine>, Failure> {
    let shown = context.machine(&path.app, &path.id).await?;
    let machine = &shown.record.machine;
    let fixed = [("name", &request.name, &machine.name), ("region", &request.region, &machine.region)];
    for (field, wanted, current) in fixed {
        if wanted.as_ref().is_some_and(|wanted| !wanted.is_empty() && wanted != current) {
            return Err(ApiError::invalid(format!("invalid {field}, it can't be changed from {current}")).into());
        }
    }
    let raw = request.config.ok_or_else(|| ApiError::invalid("invalid config, it is required"))?;
    let (config, _) = validate::normalise(raw)?;
    let update = UpdateMachine {
        config,
        expected: request.current_version.filter(|version| !version.as_str().is_empty()),
        skip_launch: request.skip_launch,
        cordoned: request.skip_service_registration,
        lease: checked_ttl(request.lease_ttl)?.map(|ttl| (ttl, caller.owner())),
        version: id.map(|Extension(RequestId(id))| VersionId::from_trusted(id)),
    };
    let request = WorkerRequest::Update { machine: path.id.clone(), nonce: nonce.0, update: Box::new(update) };
    match context.ask(&shown.record.worker, request, context.settings.create_deadline).await.map_err(ApiError::from)? {
        WorkerReply::Updated { record, lease } => {
            Ok(Json(Machine { nonce: lease.map(|lease| lease.nonce), ..record.machine }))
        }
        other => Err(unexpected(&other).into()),
    }
}

/// Those that are kept, newest first.
pub(crate) async fn all_versions(context: &Context, path: &MachinePath) -> Result<Vec<VersionRecord>, ApiError> {
    let shown = context.machine(&path.app, &path.id).await?;
    let request = WorkerRequest::Versions { machine: path.id.clone() };
    match context.ask(&shown.record.worker, request, context.settings.request_deadline).await? {
        WorkerReply::Versions { versions } => Ok(versions),
        other => Err(unexpected(&other)),
    }
}

/// `GET …/versions`.
pub(crate) async fn versions(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<Vec<MachineVersion>>, Failure> {
    let versions = all_versions(&context, &path).await?.into_iter();
    let shown = versions.map(|record| MachineVersion { version: record.version, user_config: record.config });
    Ok(Json(shown.collect()))
}
