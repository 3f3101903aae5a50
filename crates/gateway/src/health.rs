//! `GET /healthz`: 200 when requests will succeed, else 503 with the reasons.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use caddis_bus::message::{WorkerReply, WorkerRequest};
use futures::future::join_all;
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;

/// How long a worker may take to say how it is. Asked twice.
const DEADLINE: Duration = Duration::from_secs(2);

/// Body of the answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// Whether requests will succeed.
    ok: bool,
    /// Why they will not.
    problems: Vec<String>,
}

/// Say whether requests will succeed.
///
/// Our addition.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "Health_show",
    tag = "Server",
    responses(
        (status = 200, description = "They will", body = Health),
        (status = 503, description = "They will not, and why", body = Health),
    ),
)]
pub(crate) async fn health(State(context): State<Context>) -> (StatusCode, Json<Health>) {
    let problems = problems(&context).await;
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Health { ok: problems.is_empty(), problems }))
}

/// Why requests will not succeed.
pub(crate) async fn problems(context: &Context) -> Vec<String> {
    let mut problems = Vec::new();
    if let Err(error) = context.catalog.check().await {
        problems.push(error.to_string());
    }
    if context.workers.is_empty() {
        problems.push("no worker is known".to_owned());
    }
    let answers = context.workers.iter().map(|worker| async move {
        match context.ask(worker, WorkerRequest::Health, DEADLINE).await {
            Ok(WorkerReply::Health { problems }) if problems.is_empty() && !context.view.is_listed(worker) => {
                vec![format!("the machines of worker {worker} are not known yet")]
            }
            Ok(WorkerReply::Health { problems }) => problems,
            Ok(_) => vec![format!("worker {worker} gave no answer that fits")],
            Err(error) => vec![caddis_api::ApiError::from(error).message],
        }
    });
    problems.extend(join_all(answers).await.into_iter().flatten());
    problems
}
