//! Changes that answer once the worker has accepted them.

use axum::{Json, extract::State};
use caddis_api::{
    ApiError, Signal,
    requests::{OkReply, SignalRequest, StartReply, StopRequest},
    validate::MAX_STOP_TIMEOUT_SECONDS,
};
use caddis_bus::message::{Action, WorkerReply};

use crate::{
    context::{Context, unexpected},
    envelope::Failure,
    extract::{JsonBody, MachinePath, Nonce, Sparse},
    query::Params,
};

type Done = Result<Json<OkReply>, Failure>;

async fn act(context: &Context, path: &MachinePath, nonce: Nonce, action: Action) -> Done {
    match context.act(&path.app, &path.id, nonce.0, action).await? {
        WorkerReply::Done { .. } => Ok(Json(OkReply::OK)),
        other => Err(unexpected(&other).into()),
    }
}

fn check_stop(signal: Option<Signal>, timeout: Option<caddis_api::ApiDuration>) -> Result<(), ApiError> {
    if signal.is_some_and(|signal| !signal.is_stop_signal()) {
        return Err(ApiError::invalid(
            "invalid signal, use SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2 or SIGTERM",
        ));
    }
    if timeout.is_some_and(|timeout| timeout.0.as_secs() > MAX_STOP_TIMEOUT_SECONDS) {
        return Err(ApiError::invalid(format!("invalid timeout, cannot exceed {MAX_STOP_TIMEOUT_SECONDS}s")));
    }
    Ok(())
}

/// `POST …/start`.
pub(crate) async fn start(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
) -> Result<Json<StartReply>, Failure> {
    match context.act(&path.app, &path.id, nonce.0, Action::Start).await? {
        WorkerReply::Started { reply, .. } => Ok(Json(reply)),
        other => Err(unexpected(&other).into()),
    }
}

/// `POST …/stop`.
pub(crate) async fn stop(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    Sparse(request): Sparse<StopRequest>,
) -> Done {
    check_stop(request.signal, request.timeout)?;
    let timeout = request.timeout.filter(|timeout| !timeout.0.is_zero());
    act(&context, &path, nonce, Action::Stop { signal: request.signal, timeout }).await
}

/// `POST …/restart`.
pub(crate) async fn restart(State(context): State<Context>, path: MachinePath, nonce: Nonce, params: Params) -> Done {
    let (signal, timeout) = (params.parsed::<Signal>("signal")?, params.duration("timeout")?);
    check_stop(signal, timeout)?;
    let timeout = timeout.filter(|timeout| !timeout.0.is_zero());
    act(&context, &path, nonce, Action::Restart { signal, timeout, force: params.flag("force_stop")? }).await
}

/// `POST …/signal`. A lease does not stand in its way.
pub(crate) async fn signal(
    State(context): State<Context>,
    path: MachinePath,
    JsonBody(request): JsonBody<SignalRequest>,
) -> Done {
    act(&context, &path, Nonce(None), Action::Signal { signal: request.signal }).await
}

/// `DELETE …/machines/{id}`.
pub(crate) async fn destroy(State(context): State<Context>, path: MachinePath, nonce: Nonce, params: Params) -> Done {
    let force = params.flag("force")? | params.flag("kill")?;
    act(&context, &path, nonce, Action::Destroy { force }).await
}

/// `POST …/cordon`.
pub(crate) async fn cordon(State(context): State<Context>, path: MachinePath, nonce: Nonce) -> Done {
    act(&context, &path, nonce, Action::Cordon { cordoned: true }).await
}

/// `POST …/uncordon`.
pub(crate) async fn uncordon(State(context): State<Context>, path: MachinePath, nonce: Nonce) -> Done {
    act(&context, &path, nonce, Action::Cordon { cordoned: false }).await
}

/// `POST …/suspend`.
pub(crate) async fn suspend(State(context): State<Context>, path: MachinePath, nonce: Nonce) -> Done {
    act(&context, &path, nonce, Action::Suspend).await
}
