//! All endpoints. Each says its path, parameters and answers where it is defined, so that router and OpenAPI document are
//! made from the same.

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware::from_fn_with_state,
    response::{IntoResponse as _, Response},
};
use caddis_api::{ApiError, ErrorCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    apps,
    authentication::authenticate,
    context::Context,
    envelope::{Failure, envelope},
    health, host, images,
    limits::limit,
    logs,
    machines::{
        actions, create, exec, get as get_machine, history, leases, list, memory, metadata, operation, terminal,
        update, usage, wait, watch,
    },
    openapi, organizations, placements, platform_status, regions,
};

/// The endpoints that ask for a token, and those that do not.
pub(crate) fn endpoints() -> (OpenApiRouter<Context>, OpenApiRouter<Context>) {
    let protected = OpenApiRouter::new()
        .routes(routes!(apps::list, apps::create))
        .routes(routes!(apps::get, apps::delete))
        .routes(routes!(list::list, create::create))
        .routes(routes!(get_machine::get, update::update, actions::destroy))
        .routes(routes!(actions::start))
        .routes(routes!(actions::stop))
        .routes(routes!(actions::suspend))
        .routes(routes!(actions::restart))
        .routes(routes!(actions::signal))
        .routes(routes!(actions::cordon))
        .routes(routes!(actions::uncordon))
        .routes(routes!(wait::wait))
        .routes(routes!(watch::watch))
        .routes(routes!(usage::usage))
        .routes(routes!(exec::exec))
        .routes(routes!(terminal::session))
        .routes(routes!(history::processes))
        .routes(routes!(history::events))
        .routes(routes!(update::versions))
        .routes(routes!(memory::get, memory::set))
        .routes(routes!(memory::reclaim))
        .routes(routes!(metadata::all, metadata::merge))
        .routes(routes!(metadata::get, metadata::set, metadata::remove))
        .routes(routes!(operation::operation))
        .routes(routes!(leases::get, leases::acquire, leases::release))
        .routes(routes!(organizations::list))
        .routes(routes!(organizations::machines))
        .routes(routes!(images::list, images::import, images::remove))
        .routes(routes!(host::drain))
        .routes(routes!(platform_status::status))
        .routes(routes!(placements::place))
        .routes(routes!(logs::logs));
    let open = OpenApiRouter::new()
        .routes(routes!(regions::list))
        .routes(routes!(health::health))
        .routes(routes!(openapi::show_json))
        .routes(routes!(openapi::show_page));
    (protected, open)
}

/// See the module's text.
pub(crate) fn router(context: Context) -> Router {
    let (protected, open) = endpoints();
    let limited = Router::from(protected);
    // Not even looked at where there are none: a layer costs a reader a tenth.
    let limited = match context.limits {
        Some(_) => limited.route_layer(from_fn_with_state(context.clone(), limit)),
        None => limited,
    };
    // Before the limits, so that nobody else uses up what a client may ask.
    let protected = limited.route_layer(from_fn_with_state(context.clone(), authenticate));
    protected
        .merge(open)
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
