//! What is said of an endpoint, once: whom it serves, how its requests are counted, and what
//! becomes of one that was cut short. Router, limits, idempotency and the OpenAPI document are
//! made from it; [`crate::endpoints`] is the table.

use axum::{Router, middleware::from_fn_with_state, routing::MethodRouter};
use caddis_catalog::Access;
use utoipa::openapi::{
    Paths, RefOr,
    path::{Operation, PathItem},
    schema::Schema,
};
use utoipa_axum::router::UtoipaMethodRouter;

use crate::http::{authentication::authenticate, context::Context, limits::limit};

/// Whom an endpoint serves, and what of: what it finds for a caller is what that caller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Anybody, without a token.
    Open,
    /// Whoever has a token. What it lists is what the caller may see.
    Caller,
    /// Only callers that may see and change the whole installation.
    Installation,
    /// The organisation that the request names. Writing is not for tokens of one app.
    Organization(Access),
    /// The app in the path.
    App(Access),
    /// The machine in the path, and the app it is looked for in.
    Machine(Access),
}

impl Scope {
    /// What is done to what the request is about.
    pub(crate) fn access(self) -> Access {
        match self {
            Self::Open | Self::Caller => Access::Read,
            Self::Installation => Access::Write,
            Self::Organization(access) | Self::App(access) | Self::Machine(access) => access,
        }
    }

    /// Whether a token of ours may not be enough.
    pub(crate) fn may_be_refused(self) -> bool {
        self == Self::Installation || self.access() == Access::Write
    }
}

/// Which requests are counted together, for the limits on how often they may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// None: it is not limited.
    Unlimited,
    /// Those of one method and path.
    Path,
    /// Those of one method for one machine, under this name, which several endpoints may share.
    Machine(&'static str),
    /// Reads of one machine, which may come more often.
    MachineRead,
    /// Deletions of apps, of all apps together.
    AppDeletion,
}

/// What becomes of a POST with an `Idempotency-Key` that was cut short before, and may have been
/// carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replay {
    /// It is refused: only the client can find out.
    #[default]
    Refuse,
    /// It is carried out again, which comes to the same.
    Repeatable,
    /// It is carried out again, and finds what it has made by the id of the request.
    Makes,
    /// The key is not looked at.
    Exempt,
}

/// What is said of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Whom it serves.
    pub scope: Scope,
    /// Which of its requests are counted together.
    pub rate: Rate,
    /// What becomes of a request that was cut short; only of POST.
    pub replay: Replay,
}

/// An endpoint: a handler, its place in the document, and what is said of it.
pub(crate) struct Endpoint {
    pub description: Description,
    pub path: String,
    /// Its operations in the document: several where the handler takes several methods.
    pub item: PathItem,
    /// Types that the operations refer to.
    pub schemas: Vec<(String, RefOr<Schema>)>,
    handler: MethodRouter<Context>,
}

impl Endpoint {
    /// One handler, as `routes!` gives it. A POST that was cut short is refused unless
    /// [`Self::replay`] says otherwise.
    pub fn new(described: UtoipaMethodRouter<Context>, scope: Scope, rate: Rate) -> Self {
        let (schemas, Paths { paths, .. }, handler) = described;
        // One handler has one path.
        let (path, item) = paths.into_iter().next().unwrap_or_default();
        let description = Description { scope, rate, replay: Replay::default() };
        Self { description, path, item, schemas, handler }
    }

    /// Says what becomes of a POST that was cut short.
    pub fn replay(mut self, replay: Replay) -> Self {
        self.description.replay = replay;
        self
    }

    /// Adds it to a router, behind what its description asks for and nothing else: a layer costs
    /// a reader a tenth.
    pub fn route(self, router: Router<Context>, context: &Context) -> Router<Context> {
        let Self { description, path, mut handler, .. } = self;
        let state = (context.clone(), description);
        if context.limits.is_some() && description.rate != Rate::Unlimited {
            handler = handler.route_layer(from_fn_with_state(state.clone(), limit));
        }
        // Before the limits, so that nobody else uses up what a client may ask.
        if description.scope != Scope::Open {
            handler = handler.route_layer(from_fn_with_state(state, authenticate));
        }
        router.route(&path, handler)
    }

    /// Its operations by method.
    pub fn operations(&self) -> impl Iterator<Item = (&'static str, &Operation)> {
        let PathItem { get, put, post, delete, patch, .. } = &self.item;
        let read = [("GET", get)];
        let changing = [("PUT", put), ("POST", post), ("DELETE", delete), ("PATCH", patch)];
        let all = read.into_iter().chain(changing);
        all.filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
    }
}

/// An operation of the API, and what is said of its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedOperation {
    /// Its id in the OpenAPI document.
    pub id: String,
    /// Its method, in capitals.
    pub method: &'static str,
    /// Its path, with the names of parameters in braces.
    pub path: String,
    /// What is said of its endpoint.
    pub description: Description,
}

/// All operations, for tests of what callers may do.
pub fn operations() -> Vec<DescribedOperation> {
    let described = |endpoint: &Endpoint| -> Vec<_> {
        let described = endpoint.operations().map(|(method, operation)| DescribedOperation {
            id: operation.operation_id.clone().unwrap_or_default(),
            method,
            path: endpoint.path.clone(),
            description: endpoint.description,
        });
        described.collect()
    };
    crate::endpoints::all().iter().flat_map(described).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use axum::{
        body::Body,
        http::{Request, Response},
    };
    use caddis_api::{ApiError, ErrorCode, WorkerId};
    use caddis_bus::{
        InProcessBus,
        stream::{InProcessStreams, StreamService},
    };
    use caddis_catalog::{Catalog, MemoryStore};
    use tower::ServiceExt as _;
    use utoipa_axum::routes;

    use super::*;
    use crate::{
        GatewayParts, Settings,
        http::{context::Inner, envelope::HttpError},
        router,
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
            region: "local".to_owned(),
            regions: Vec::new(),
            workers: Vec::new(),
            settings: Settings::default(),
        });
        let undecided = Endpoint::new(routes!(undecided), Scope::Caller, Rate::Unlimited);
        let repeatable = Endpoint::new(routes!(repeatable), Scope::Caller, Rate::Unlimited);
        let router = router::of(context, vec![undecided, repeatable.replay(Replay::Repeatable)]);
        let status = async |path: &str| {
            let request = Request::post(path).header("authorization", &token);
            let request = request.header("idempotency-key", path).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap().status().as_u16()
        };
        assert_eq!([status("/undecided").await, status("/undecided").await], [504, 409]);
        assert_eq!([status("/repeatable").await, status("/repeatable").await], [504, 504]);
    }
}
