//! Errors on their way to a client.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use caddis_api::{ApiError, ErrorCode};
use caddis_bus::message::WorkerReply;

/// An error on its way out of an endpoint.
#[derive(Debug)]
pub(crate) struct HttpError(pub ApiError);

impl<E: Into<ApiError>> From<E> for HttpError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = status(&self.0).into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

fn status(error: &ApiError) -> StatusCode {
    StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// 404 with the text that clients look for.
pub(crate) fn app_not_found(name: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("Could not find App \"{}\"", name.escape_debug()))
}

/// A worker answered something that does not fit the request.
pub(crate) fn unexpected(reply: &WorkerReply) -> ApiError {
    tracing::error!(?reply, "a worker's answer does not fit the request");
    ApiError::internal("the worker's answer does not fit the request")
}
