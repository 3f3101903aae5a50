//! `POST /v1/hosts/{id}/drain`: stops the guests of a host for a shutdown. They start again when it
//! is back.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
};
use caddis_api::{ApiError, ErrorCode, error::ErrorBody};
use caddis_bus::message::{WorkerReply, WorkerRequest};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::http::{
    context::Context,
    errors::{HttpError, unexpected},
    extract::JsonBody,
    responses::BadBody,
};

/// What a worker needs beyond the deadline to answer.
const GRACE: Duration = Duration::from_secs(10);
const LONGEST_SECONDS: u64 = 3600;

/// Body of the request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct Drain {
    /// Machines that are still running after this time go down with the host. At most 3600.
    timeout_seconds: u64,
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout_seconds: 60 }
    }
}

/// Body of the answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Drained {
    /// Number of machines stopped.
    stopped: u64,
}

/// Stop the machines of a host for a shutdown.
///
/// They start again when the host is back. Caddis extension.
#[utoipa::path(
    post,
    path = "/v1/hosts/{id}/drain",
    operation_id = "Host_drain",
    tag = "Host",
    params(("id" = String, Path, description = "Id of the host, as in /v1/platform/status")),
    request_body = Drain,
    responses(
        (status = 200, description = "They are stopped", body = Drained),
        (status = 404, description = "No such host", body = ErrorBody),
        BadBody,
    ),
)]
pub(crate) async fn drain(
    State(context): State<Context>,
    Path(id): Path<String>,
    JsonBody(request): JsonBody<Drain>,
) -> Result<Json<Drained>, HttpError> {
    let host = context.view.hosts().named(&id).ok_or_else(|| {
        let id: String = id.chars().take(100).collect();
        ApiError::new(ErrorCode::NotFound, format!("host not found: {}", id.escape_debug()))
    })?;
    if request.timeout_seconds > LONGEST_SECONDS {
        let text = format!("invalid timeout_seconds: use at most {LONGEST_SECONDS}");
        return Err(ApiError::invalid(text).into());
    }
    let deadline = Duration::from_secs(request.timeout_seconds);
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    match context.ask(&host, WorkerRequest::Drain { deadline_ms }, deadline + GRACE).await? {
        WorkerReply::Drained { stopped } => Ok(Json(Drained { stopped })),
        other => Err(HttpError(unexpected(&other))),
    }
}
