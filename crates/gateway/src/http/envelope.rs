//! Around every request: its id, the access log, panics, and the body of errors. Endpoints return
//! [`HttpError`]; the error travels as an extension of the response up to here, where the request
//! id is known.

use std::{panic::AssertUnwindSafe, time::Instant};

use axum::{
    Json,
    extract::{Request, State},
    http::HeaderValue,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use caddis_api::ApiError;
use futures::FutureExt as _;

use crate::{
    http::{context::Context, errors::HttpError},
    server::check_head,
};

/// The outermost layer.
pub(crate) async fn envelope(
    State(context): State<Context>,
    request: Request,
    next: Next,
) -> Response {
    let id = format!("{}-{}", ulid::Ulid::new(), context.regions.own());
    let (method, path, started) =
        (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    let mut response = match check_head(&request) {
        // The endpoint's state is dropped with it; what it shares is behind locks that survive a
        // panic.
        Ok(()) => AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(request_id = id, "an endpoint panicked");
            let text = "server error, please report it with the request ID";
            HttpError(ApiError::internal(text)).into_response()
        }),
        Err((status, error)) => {
            let mut response = HttpError(error).into_response();
            *response.status_mut() = status;
            response
        }
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        if response.status().is_server_error() {
            tracing::warn!(request_id = id, error = error.message, "request failed");
        }
        let body = Json(error.body(Some(id.clone()))).into_response();
        // The status stays: 405 has no code of its own.
        let (parts, body) = (response.into_parts().0, body.into_body());
        response = Response::from_parts(parts, body);
        response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
        response
            .headers_mut()
            .insert(axum::http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("fly-request-id", value);
    }
    // Neither query nor headers: they may hold secrets. A terminal that a server was started from
    // stays usable.
    tracing::debug!(
        request_id = id,
        %method,
        path,
        status = response.status().as_u16(),
        ms = started.elapsed().as_millis() as u64,
        "request"
    );
    response
}
