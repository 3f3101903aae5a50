//! Hands a request on to the stream endpoint of a worker. The answer's body streams through; an
//! error's is read, so that it gets its request id like all others.

use axum::{
    body::Body,
    http::{HeaderMap, Request, Response, header::CONTENT_TYPE},
};
use caddis_api::{ApiError, ErrorCode, WorkerId, error::ErrorBody};

use crate::http::{context::Context, errors::HttpError, extract::small};

/// Calls a worker.
pub(crate) async fn call(
    context: &Context,
    worker: &WorkerId,
    request: Result<Request<Body>, axum::http::Error>,
) -> Result<Response<Body>, HttpError> {
    let request =
        request.map_err(|e| ApiError::internal(format!("write a request to a worker: {e}")))?;
    let response = context.streams.call(worker, request).await.map_err(ApiError::from)?;
    let (mut parts, body) = response.into_parts();
    if parts.status.is_success() {
        // Only what describes the body is passed on.
        let content_type = parts.headers.remove(CONTENT_TYPE);
        parts.headers = HeaderMap::new();
        parts.headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
        return Ok(Response::from_parts(parts, body));
    }
    let bytes = small(body).await.unwrap_or_default();
    let error = serde_json::from_slice::<ErrorBody>(&bytes).map_err(|e| {
        ApiError::internal(format!(
            "the worker answered {} with a body that can't be read: {e}",
            parts.status
        ))
    })?;
    Err(ApiError::new(error.code.unwrap_or(ErrorCode::Internal), error.error).into())
}

/// A query of these parameters.
pub(crate) fn query<'a>(parameters: impl IntoIterator<Item = (&'a str, String)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish()
}
