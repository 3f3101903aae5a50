//! The router: every endpoint behind what its description asks for, and what is around all of them.

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware::from_fn_with_state,
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};
use caddis_api::{ApiError, ErrorCode};

use crate::{
    context::Context,
    endpoint::Endpoint,
    endpoints,
    envelope::{HttpError, envelope},
};

/// See the module's text.
pub(crate) fn router(context: Context) -> Router {
    of(context, endpoints::all())
}

/// A router of these endpoints.
pub(crate) fn of(context: Context, endpoints: Vec<Endpoint>) -> Router {
    let routes = endpoints
        .into_iter()
        .fold(Router::new(), |router, endpoint| endpoint.route(router, &context));
    routes
        // For people: it is no part of the API.
        .route("/", get(|| async { Redirect::temporary("/docs") }))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(context.clone(), envelope))
        .with_state(context)
}

async fn unknown(method: Method, uri: Uri) -> HttpError {
    let path: String = uri.path().chars().take(200).collect();
    HttpError(ApiError::new(ErrorCode::NotFound, format!("no such endpoint: {method} {path}")))
}

async fn not_allowed(method: Method) -> Response {
    let mut response = HttpError(ApiError::invalid(format!("method {method} is not allowed here")))
        .into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}
