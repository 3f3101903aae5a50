//! Changes that answer once the worker has accepted them.

use axum::{Json, extract::State};
use caddis_api::{
    ApiError, Signal,
    requests::{OkReply, SignalRequest, StartReply, StopRequest},
    validate::MAX_STOP_TIMEOUT_SECONDS,
};
use caddis_bus::message::{Action, WorkerReply};

use super::starting;
use crate::http::{
    authorization::MachinePath,
    context::Context,
    errors::{HttpError, unexpected},
    extract::{JsonBody, LenientJson, Nonce},
    query::Params,
    responses::{BadBody, NoMachine, Refused},
};

type Done = Result<Json<OkReply>, HttpError>;

async fn act(context: &Context, path: &MachinePath, nonce: Nonce, action: Action) -> Done {
    match path.act(context, nonce.0, action).await? {
        WorkerReply::Done { .. } => Ok(Json(OkReply::OK)),
        other => Err(unexpected(&other).into()),
    }
}

fn check_stop(timeout: Option<caddis_api::ApiDuration>) -> Result<(), ApiError> {
    if let Some(reason) = timeout.and_then(|timeout| timeout.check_unit().err()) {
        return Err(ApiError::invalid(format!("invalid timeout, {reason}")));
    }
    if timeout.is_some_and(|timeout| timeout.0.as_secs() > MAX_STOP_TIMEOUT_SECONDS) {
        return Err(ApiError::invalid(format!(
            "invalid timeout, cannot exceed {MAX_STOP_TIMEOUT_SECONDS}s"
        )));
    }
    Ok(())
}

/// Start a machine.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/start",
    operation_id = "Machines_start",
    tag = "Machines",
    params(MachinePath, Nonce),
    responses(
        (status = 200, description = "Accepted", body = StartReply),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn start(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
) -> Result<Json<StartReply>, HttpError> {
    match path.act(&context, nonce.0, Action::Start).await? {
        WorkerReply::Started { reply, .. } => Ok(Json(reply)),
        other => Err(unexpected(&other).into()),
    }
}

/// Stop a machine.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/stop",
    operation_id = "Machines_stop",
    tag = "Machines",
    params(MachinePath, Nonce),
    request_body = Option<StopRequest>,
    responses(
        (status = 200, description = "Accepted", body = OkReply),
        NoMachine,
        BadBody,
        Refused,
    ),
)]
pub(crate) async fn stop(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    LenientJson(request): LenientJson<StopRequest>,
) -> Done {
    check_stop(request.timeout)?;
    let timeout = request.timeout.filter(|timeout| !timeout.0.is_zero());
    act(&context, &path, nonce, Action::Stop { signal: request.signal, timeout }).await
}

/// Restart a machine.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/restart",
    operation_id = "Machines_restart",
    tag = "Machines",
    params(
        MachinePath,
        Nonce,
        ("timeout" = Option<String>, Query, description = "Time to stop; Go's notation or whole \
            seconds"),
        ("signal" = Option<Signal>, Query, description = "Signal to stop with"),
        ("force_stop" = Option<bool>, Query, description = "Do not wait for the program"),
    ),
    responses(
        (status = 200, description = "Accepted", body = OkReply),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn restart(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    params: Params,
) -> Done {
    let (signal, timeout) = (params.parsed::<Signal>("signal")?, params.duration("timeout")?);
    check_stop(timeout)?;
    let timeout = timeout.filter(|timeout| !timeout.0.is_zero());
    act(
        &context,
        &path,
        nonce,
        Action::Restart { signal, timeout, force: params.flag("force_stop")? },
    )
    .await
}

/// Send a signal to the program.
///
/// Works in spite of a lease. Waits for a machine that is about to start.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/signal",
    operation_id = "Machines_signal",
    tag = "Machines",
    params(MachinePath),
    request_body = SignalRequest,
    responses(
        (status = 200, description = "Accepted", body = OkReply),
        NoMachine,
        BadBody,
        Refused,
    ),
)]
pub(crate) async fn signal(
    State(context): State<Context>,
    path: MachinePath,
    JsonBody(request): JsonBody<SignalRequest>,
) -> Done {
    starting::settled(&context, &path, starting::For::TheOneStarted, starting::SIGNAL_TIMEOUT)
        .await?;
    act(&context, &path, Nonce(None), Action::Signal { signal: request.signal }).await
}

/// Destroy a machine.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}/machines/{machine_id}",
    operation_id = "Machines_delete",
    tag = "Machines",
    params(
        MachinePath,
        Nonce,
        ("force" = Option<bool>, Query, description = "Also if it is running"),
        ("kill" = Option<bool>, Query, description = "Alias of force"),
    ),
    responses(
        (status = 200, description = "Accepted", body = OkReply),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn destroy(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    params: Params,
) -> Done {
    let force = params.flag("force")? | params.flag("kill")?;
    act(&context, &path, nonce, Action::Destroy { force }).await
}

/// Take a machine out of routing.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/cordon",
    operation_id = "Machines_cordon",
    tag = "Machines",
    params(MachinePath, Nonce),
    responses(
        (status = 200, description = "Accepted", body = OkReply),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn cordon(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
) -> Done {
    act(&context, &path, nonce, Action::Cordon { cordoned: true }).await
}

/// Put a machine back into routing.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/uncordon",
    operation_id = "Machines_uncordon",
    tag = "Machines",
    params(MachinePath, Nonce),
    responses(
        (status = 200, description = "Accepted", body = OkReply),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn uncordon(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
) -> Done {
    act(&context, &path, nonce, Action::Cordon { cordoned: false }).await
}

/// Suspend a machine to disk; the next start resumes it.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/suspend",
    operation_id = "Machines_suspend",
    tag = "Machines",
    params(MachinePath, Nonce),
    responses(
        (status = 200, description = "Accepted", body = OkReply),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn suspend(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
) -> Done {
    act(&context, &path, nonce, Action::Suspend).await
}
