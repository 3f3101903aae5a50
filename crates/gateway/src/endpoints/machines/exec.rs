//! Runs a program in a machine.

use std::time::Duration;

use axum::{
    body::Body,
    extract::State,
    http::{Request, header::CONTENT_TYPE},
    response::Response,
};
use caddis_api::{
    ApiError,
    exec::{CommandLine, ExecReply, ExecRequest, MAX_TIMEOUT_SECONDS},
};

use tokio::time::Instant;

use super::starting;
use crate::http::{
    authorization::MachinePath,
    context::Context,
    errors::HttpError,
    extract::{JsonBody, NONCE, Nonce},
    forward,
    responses::{BadBody, NoMachine, Refused},
};

/// Run a program in a machine.
///
/// Waits for a machine that is about to start, within the program's timeout.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/exec",
    operation_id = "Machines_exec",
    tag = "Machines",
    params(MachinePath, Nonce),
    request_body = ExecRequest,
    responses(
        (status = 200, description = "How the program ended, also when it failed",
            body = ExecReply),
        NoMachine,
        BadBody,
        Refused,
    ),
)]
pub(crate) async fn exec(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    JsonBody(request): JsonBody<ExecRequest>,
) -> Result<Response, HttpError> {
    let mut request = complete(request)?;
    let begun = Instant::now();
    let patience = Duration::from_secs(request.timeout.unwrap_or(MAX_TIMEOUT_SECONDS));
    let shown = starting::settled(&context, &path, starting::For::Any, patience).await?;
    // What is left for the program; a start that took nearly all of it leaves a second.
    request.timeout =
        Some(patience.saturating_sub(begun.elapsed()).as_secs_f64().ceil().max(1.0) as u64);
    let mut forwarded = Request::post(format!("/machines/{}/exec", shown.record.machine.id))
        .header(CONTENT_TYPE, "application/json");
    if let Some(nonce) = &nonce.0 {
        forwarded = forwarded.header(NONCE, nonce.as_str());
    }
    let body = Body::from(
        serde_json::to_vec(&request).map_err(|e| ApiError::internal(format!("write exec: {e}")))?,
    );
    forward::call(&context, &shown.record.worker, forwarded.body(body)).await
}

/// With `command` given and `timeout` within its limit.
fn complete(mut request: ExecRequest) -> Result<ExecRequest, ApiError> {
    let words = match (request.command.take().filter(|words| !words.is_empty()), request.cmd.take())
    {
        (Some(words), _) | (None, Some(CommandLine::Words(words))) => words,
        (None, Some(CommandLine::Line(line))) => shell_words::split(&line)
            .map_err(|_| ApiError::invalid("invalid cmd, a quote is not closed"))?,
        (None, None) => Vec::new(),
    };
    if words.first().is_none_or(String::is_empty) {
        return Err(ApiError::invalid("invalid command, give a program and its arguments"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(ApiError::invalid("invalid command, arguments can't contain a NUL"));
    }
    if let Some(container) = request.container.take().filter(|name| !name.is_empty()) {
        let name: String = container.escape_debug().take(100).collect();
        return Err(ApiError::invalid(format!(
            "invalid container, the machine has none named '{name}'"
        )));
    }
    let timeout = request.timeout.filter(|seconds| *seconds > 0).unwrap_or(MAX_TIMEOUT_SECONDS);
    Ok(ExecRequest {
        command: Some(words),
        timeout: Some(timeout.min(MAX_TIMEOUT_SECONDS)),
        ..request
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ExecRequest, ApiError> {
        complete(crate::http::extract::parse(json.as_bytes())?)
    }

    #[test]
    fn all_forms_of_a_command_become_words() {
        for (json, expected) in [
            (r#"{"command": ["echo", "a b"]}"#, &["echo", "a b"][..]),
            (r#"{"cmd": "echo 'a b' $HOME"}"#, &["echo", "a b", "$HOME"]),
            (r#"{"cmd": ["echo", "a"], "container": "", "stdin": null}"#, &["echo", "a"]),
            (r#"{"command": [], "cmd": "ls"}"#, &["ls"]),
        ] {
            assert_eq!(read(json).unwrap().command.unwrap(), expected, "{json}");
        }
        assert_eq!(read(r#"{"cmd": "a", "timeout": 600}"#).unwrap().timeout, Some(60));
        assert_eq!(read(r#"{"cmd": "a", "timeout": 5}"#).unwrap().timeout, Some(5));
    }

    #[test]
    fn what_can_not_be_run_is_refused() {
        for json in [
            "{}",
            r#"{"cmd": ""}"#,
            r#"{"cmd": "echo 'a"}"#,
            r#"{"cmd": 5}"#,
            r#"{"command": "ls"}"#,
            r#"{"command": ["a\u0000b"]}"#,
            r#"{"cmd": "ls", "container": "web"}"#,
            r#"{"cmd": "ls", "timeout": -1}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }
}
