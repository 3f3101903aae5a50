//! `POST /v1/host/drain`: stops the guests of all hosts for a shutdown. They start again when their host is back.

use std::time::Duration;

use axum::{Json, extract::State};
use caddis_bus::message::{WorkerReply, WorkerRequest};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{context::Context, envelope::Failure, extract::JsonBody, openapi::errors::BadBody};

/// What a worker needs beyond the deadline to answer.
const GRACE: Duration = Duration::from_secs(10);
const LONGEST_SECONDS: u64 = 3600;

/// Body of the request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct Drain {
    /// Guests that still run after so long go down with the host.
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
    /// How many guests were stopped.
    stopped: u64,
}

/// Stop the guests of all hosts for a shutdown.
///
/// They start again when their host is back. Our addition.
#[utoipa::path(
    post,
    path = "/v1/host/drain",
    operation_id = "Host_drain",
    tag = "Host",
    request_body = Drain,
    responses((status = 200, description = "All are stopped", body = Drained), BadBody),
)]
pub(crate) async fn drain(
    State(context): State<Context>,
    JsonBody(request): JsonBody<Drain>,
) -> Result<Json<Drained>, Failure> {
    let deadline = Duration::from_secs(request.timeout_seconds.min(LONGEST_SECONDS));
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let mut stopped = 0;
    for worker in &context.workers {
        match context.ask(worker, WorkerRequest::Drain { deadline_ms }, deadline + GRACE).await? {
            WorkerReply::Drained { stopped: count } => stopped += count,
            other => return Err(Failure(caddis_api::ApiError::internal(format!("unexpected answer {other:?}")))),
        }
    }
    Ok(Json(Drained { stopped }))
}
