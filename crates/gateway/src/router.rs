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
    endpoints,
    http::{context::Context, endpoint::Endpoint, envelope::envelope, errors::HttpError},
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use axum::{
        body::Body,
        http::{Request, Response},
    };
    use caddis_api::{ApiError, ErrorCode, RegionCode, WorkerId};
    use caddis_bus::{
        InProcessBus,
        stream::{InProcessStreams, StreamService},
    };
    use caddis_catalog::{Catalog, MemoryStore};
    use tower::ServiceExt as _;
    use utoipa_axum::routes;

    use super::*;
    use crate::{
        http::{
            context::Inner,
            description::{Rate, Replay, Scope},
        },
        settings::{GatewayParts, Settings},
    };

    fn unknown_outcome() -> HttpError {
        HttpError(ApiError::new(
            ErrorCode::Unavailable,
            "unavailable: it may have been carried out",
        ))
    }

    #[utoipa::path(post, path = "/undecided", responses((status = 200)))]
    async fn undecided() -> HttpError {
        unknown_outcome()
    }

    #[utoipa::path(post, path = "/repeatable", responses((status = 200)))]
    async fn repeatable() -> HttpError {
        unknown_outcome()
    }

    struct NoStreams;

    #[async_trait]
    impl StreamService for NoStreams {
        async fn call(&self, _: Request<Body>) -> Response<Body> {
            Response::new(Body::empty())
        }
    }

    #[tokio::test]
    async fn a_post_that_was_cut_short_is_refused_unless_its_endpoint_says_otherwise() {
        let catalog = Catalog::new(Arc::new(MemoryStore::default()));
        let token = catalog.ensure_root_token().await.unwrap().unwrap();
        let worker = WorkerId::from_trusted("W1");
        let context = Inner::new(GatewayParts {
            bus: Arc::new(InProcessBus::new()),
            streams: Arc::new(InProcessStreams::new(worker, Arc::new(NoStreams))),
            catalog,
            region: RegionCode::from_trusted("local"),
            regions: Vec::new(),
            workers: Vec::new(),
            settings: Settings::default(),
        });
        let undecided = Endpoint::new(routes!(undecided), Scope::Caller, Rate::Unlimited);
        let repeatable = Endpoint::new(routes!(repeatable), Scope::Caller, Rate::Unlimited);
        let router = of(context, vec![undecided, repeatable.replay(Replay::Repeatable)]);
        let status = async |path: &str| {
            let request = Request::post(path).header("authorization", &token);
            let request = request.header("idempotency-key", path).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap().status().as_u16()
        };
        assert_eq!([status("/undecided").await, status("/undecided").await], [504, 409]);
        assert_eq!([status("/repeatable").await, status("/repeatable").await], [504, 504]);
    }
}
