//! `GET /healthz`: 200 when requests will succeed, else 503 with the reasons.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use caddis_bus::message::{WorkerReply, WorkerRequest};
use caddis_view::ByReach;
use futures::future::join_all;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{egress::outside, http::context::Context};

/// How long a worker may take to say how it is. Asked twice.
const DEADLINE: Duration = Duration::from_secs(2);

/// Body of the answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// Whether requests will succeed.
    pub(crate) ok: bool,
    /// Reasons why not.
    pub(crate) problems: Vec<String>,
    /// Problems that do not make requests fail.
    pub(crate) warnings: Vec<String>,
}

/// Show whether the server is healthy.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "Health_show",
    tag = "Server",
    responses(
        (status = 200, description = "Healthy", body = Health),
        (status = 503, description = "Unhealthy, with the reasons", body = Health),
    ),
)]
pub(crate) async fn health(State(context): State<Context>) -> (StatusCode, Json<Health>) {
    let health = check(&context).await;
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health))
}

/// Asks the catalog and all workers.
pub(crate) async fn check(context: &Context) -> Health {
    let mut problems = Vec::new();
    if let Err(error) = context.catalog.check().await {
        problems.push(error.to_string());
    }
    let ByReach { heard, silent } = context.view.hosts().by_reach();
    if heard.is_empty() {
        let text = if silent.is_empty() { "no host is known" } else { "no host can be reached" };
        problems.push(text.to_owned());
    }
    let answers = heard.iter().map(|(worker, _)| async move {
        match context.ask(worker, WorkerRequest::Health, DEADLINE).await {
            Ok(WorkerReply::Health { mut problems, warnings }) => {
                if problems.is_empty() && !context.view.is_listed(worker) {
                    problems.push(format!("the machines of worker {worker} are not known yet"));
                }
                (problems, warnings)
            }
            Ok(_) => (vec![format!("worker {worker} sent an unexpected answer")], Vec::new()),
            Err(error) => (vec![caddis_api::ApiError::from(error).message], Vec::new()),
        }
    });
    let (of_workers, warnings): (Vec<_>, Vec<_>) = join_all(answers).await.into_iter().unzip();
    problems.extend(of_workers.into_iter().flatten());
    let unreachable = silent.iter().map(|(worker, host)| {
        let seconds = host.last_seen.elapsed().as_secs();
        format!(
            "no heartbeat from host {worker} for {seconds} s: its machines are shown as last known"
        )
    });
    let of_proxy = context.settings.traffic.info.iter().flat_map(|proxy| proxy.warnings());
    let of_workers = warnings.into_iter().flatten();
    let of_egress = outside(context).await;
    let warnings = unreachable.chain(of_workers).chain(of_proxy).chain(of_egress).collect();
    Health { ok: problems.is_empty(), problems, warnings }
}
