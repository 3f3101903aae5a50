//! What is not small: exec, logs, images. See [`caddis_bus::stream`] for the paths.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, Request, Response, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use bytes::Bytes;
use caddis_api::{
    ApiError, AppName, ErrorCode, LeaseNonce, MachineId, RegionCode,
    exec::{CommandLine, ExecReply, ExecRequest, MAX_TIMEOUT_SECONDS, OUTPUT_LIMIT},
    requests::OkReply,
};
use caddis_bus::stream::StreamService;
use caddis_guest_protocol::host::{ExecCommand, SessionError};
use serde::Deserialize;
use tower::ServiceExt as _;

use crate::{engine::Shared, requests::RequestHandler, requests::session};

mod images;
mod logs;
mod terminal;
mod usage;

/// Time beyond an exec's own that its answer may take on the way.
const EXEC_GRACE: Duration = Duration::from_secs(10);

/// The worker's stream endpoint.
pub struct StreamEndpoint {
    router: Router,
}

impl StreamEndpoint {
    /// The endpoint of this worker.
    pub fn new(shared: Arc<Shared>, requests: Arc<RequestHandler>) -> Self {
        let carry_out = async move |request: Bytes| requests.carry_out(&request).await;
        let router = Router::new()
            .route("/requests", post(carry_out))
            .route("/machines/{id}/exec", post(exec))
            .route("/machines/{id}/session", post(terminal::session))
            .route("/logs", get(logs::read))
            .route("/usage", get(usage::read))
            .route("/images", get(images::list).post(images::import).delete(images::remove))
            .layer(DefaultBodyLimit::disable())
            .with_state(shared);
        Self { router }
    }
}

#[async_trait]
impl StreamService for StreamEndpoint {
    async fn call(&self, request: Request<Body>) -> Response<Body> {
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// An error as an answer.
struct Failed(ApiError);

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0.body(None))).into_response()
    }
}

async fn exec(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(request): Json<ExecRequest>,
) -> Result<Json<ExecReply>, Failed> {
    let machine: MachineId = id.parse().map_err(|e| ApiError::invalid(format!("{e}")))?;
    let nonce = headers.get("fly-machine-lease-nonce").and_then(|value| value.to_str().ok());
    let session = session(&shared, &machine, Some(nonce.map(LeaseNonce::from_trusted))).await?;
    let argv = argv(&request)?;
    let timeout = Duration::from_secs(
        request.timeout.unwrap_or(MAX_TIMEOUT_SECONDS).clamp(1, MAX_TIMEOUT_SECONDS),
    );
    let command = ExecCommand {
        argv,
        timeout,
        stdin: Bytes::from(request.stdin.unwrap_or_default()),
        output_limit: OUTPUT_LIMIT,
        ..ExecCommand::default()
    };
    let outcome = tokio::time::timeout(timeout + EXEC_GRACE, session.exec(command))
        .await
        .map_err(|_| {
            ApiError::new(ErrorCode::Unavailable, "unavailable: the guest does not answer")
        })?
        .map_err(not_run)?;
    Ok(Json(ExecReply {
        exit_code: outcome.code,
        exit_signal: outcome.signal.unwrap_or(0),
        stdout: String::from_utf8_lossy(&outcome.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&outcome.stderr).into_owned(),
        truncated: outcome.truncated,
        timed_out: outcome.timed_out,
    }))
}

/// Why there is no outcome, by whose fault it is.
fn not_run(error: SessionError) -> ApiError {
    match error {
        SessionError::Refused(_) | SessionError::TooLarge(_) => {
            ApiError::invalid(format!("invalid_argument: can't run the command: {error}"))
        }
        SessionError::Closed | SessionError::Broken => ApiError::aborted(
            "the machine was stopped, suspended or destroyed while the command ran",
        ),
        SessionError::NotConnected | SessionError::NoAnswer(_) => {
            ApiError::new(ErrorCode::Unavailable, format!("unavailable: {error}"))
        }
    }
}

fn argv(request: &ExecRequest) -> Result<Vec<String>, ApiError> {
    let argv = match (&request.command, &request.cmd) {
        (Some(command), _) if !command.is_empty() => command.clone(),
        (_, Some(CommandLine::Words(words))) => words.clone(),
        (_, Some(CommandLine::Line(line))) => shell_words::split(line)
            .map_err(|e| ApiError::invalid(format!("invalid cmd, can't be split: {e}")))?,
        _ => Vec::new(),
    };
    if argv.is_empty() {
        return Err(ApiError::invalid("invalid command, give the program and its arguments"));
    }
    if argv.iter().any(|word| word.contains('\0')) {
        return Err(ApiError::invalid("invalid command, arguments can't contain a NUL"));
    }
    Ok(argv)
}

/// Which machines a log request is about.
#[derive(Debug, Deserialize)]
struct LogQuery {
    app: AppName,
    instance: Option<String>,
    next_token: Option<String>,
    until_token: Option<String>,
    limit: Option<usize>,
    wait_seconds: Option<u64>,
    region: Option<RegionCode>,
    /// Nanoseconds since the Unix epoch.
    since_ns: Option<u64>,
    until_ns: Option<u64>,
}

impl LogQuery {
    fn machines(&self, shared: &Shared) -> HashSet<MachineId> {
        if self.region.as_ref().is_some_and(|region| *region != shared.config.region) {
            return HashSet::new();
        }
        let wanted = self.instance.as_deref().filter(|instance| !instance.is_empty());
        match wanted {
            Some(id) => {
                let id = MachineId::from_trusted(id);
                HashSet::from_iter(shared.publisher.is_of_app(&self.app, &id).then_some(id))
            }
            None => shared.publisher.of_app(&self.app).into_iter().collect(),
        }
    }
}
