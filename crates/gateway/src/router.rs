//! All endpoints.

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware::from_fn_with_state,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use caddis_api::{ApiError, ErrorCode};

use crate::{
    apps,
    authentication::authenticate,
    context::Context,
    envelope::{Failure, envelope},
    health, host, images,
    limits::limit,
    logs,
    machines::{
        actions, create, exec, get as get_machine, history, leases, list, memory, metadata, operation, update, wait,
    },
    organizations, regions,
};

/// See the module's text.
pub(crate) fn router(context: Context) -> Router {
    let machine = Router::new()
        .route("/", get(get_machine::get).post(update::update).put(update::update).delete(actions::destroy))
        .route("/start", post(actions::start))
        .route("/stop", post(actions::stop))
        .route("/suspend", post(actions::suspend))
        .route("/restart", post(actions::restart))
        .route("/signal", post(actions::signal))
        .route("/cordon", post(actions::cordon))
        .route("/uncordon", post(actions::uncordon))
        .route("/wait", get(wait::wait))
        .route("/exec", post(exec::exec))
        .route("/ps", get(history::processes))
        .route("/events", get(history::events))
        .route("/versions", get(update::versions))
        .route("/memory", get(memory::get).put(memory::set))
        .route("/memory/reclaim", post(memory::reclaim))
        .route("/metadata", get(metadata::all).patch(metadata::merge).put(metadata::merge))
        .route("/metadata/{key}", get(metadata::get).post(metadata::set).delete(metadata::remove))
        .route("/operation", get(operation::operation))
        .route("/lease", get(leases::get).post(leases::acquire).delete(leases::release));
    let limited = Router::new()
        .route("/v1/apps", get(apps::list).post(apps::create))
        .route("/v1/apps/{app}", get(apps::get).delete(apps::delete))
        .route("/v1/apps/{app}/machines", get(list::list).post(create::create))
        .nest("/v1/apps/{app}/machines/{id}", machine)
        .route("/v1/orgs/{org}/machines", get(organizations::machines))
        .route("/v1/images", get(images::list).post(images::import).delete(images::remove))
        .route("/v1/host/drain", post(host::drain))
        .route("/api/v1/apps/{app}/logs", get(logs::logs));
    // Not even looked at where there are none: a layer costs a reader a tenth.
    let limited = match context.limits {
        Some(_) => limited.route_layer(from_fn_with_state(context.clone(), limit)),
        None => limited,
    };
    // Before the limits, so that nobody else uses up what a client may ask.
    let protected = limited.route_layer(from_fn_with_state(context.clone(), authenticate));
    Router::new()
        .merge(protected)
        .route("/v1/platform/regions", get(regions::list))
        .route("/healthz", get(health::health))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(context.clone(), envelope))
        .with_state(context)
}

async fn unknown(method: Method, uri: Uri) -> Failure {
    let path: String = uri.path().chars().take(200).collect();
    Failure(ApiError::new(ErrorCode::NotFound, format!("no such endpoint: {method} {path}")))
}

async fn not_allowed(method: Method) -> Response {
    let mut response = Failure(ApiError::invalid(format!("method {method} is not allowed here"))).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}
