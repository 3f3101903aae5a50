//! An endpoint: its handler behind what is said of it ([`Description`]).

use axum::{Router, middleware::from_fn_with_state, routing::MethodRouter};
use utoipa::openapi::{
    Paths, RefOr,
    path::{Operation, PathItem},
    schema::Schema,
};
use utoipa_axum::router::UtoipaMethodRouter;

use crate::http::{
    authentication::authenticate,
    context::Context,
    description::{Description, Rate, Replay, Scope},
    limits::limit,
};

/// An endpoint: a handler, its place in the document, and what is said of it.
pub(crate) struct Endpoint {
    pub description: Description,
    pub path: String,
    /// Its operations in the document: several where the handler takes several methods.
    pub item: PathItem,
    /// Types that the operations refer to.
    pub schemas: Vec<(String, RefOr<Schema>)>,
    handler: MethodRouter<Context>,
    has_slash: bool,
}

impl Endpoint {
    /// One handler, as `routes!` gives it. A POST that was cut short is refused unless
    /// [`Self::replay`] says otherwise.
    pub fn new(described: UtoipaMethodRouter<Context>, scope: Scope, rate: Rate) -> Self {
        let (schemas, Paths { paths, .. }, handler) = described;
        // One handler has one path.
        let (path, item) = paths.into_iter().next().unwrap_or_default();
        let description = Description { scope, rate, replay: Replay::default() };
        Self { description, path, item, schemas, handler, has_slash: false }
    }

    /// Says what becomes of a POST that was cut short.
    pub fn replay(mut self, replay: Replay) -> Self {
        self.description.replay = replay;
        self
    }

    /// Serves it also with a slash at the end of its path, as the reference does here and there.
    pub fn with_slash(mut self) -> Self {
        self.has_slash = true;
        self
    }

    /// Adds it to a router, behind what its description asks for and nothing else: a layer costs
    /// a reader a tenth.
    pub fn route(self, router: Router<Context>, context: &Context) -> Router<Context> {
        let Self { description, path, mut handler, has_slash, .. } = self;
        if let Some(limits) = &context.limits
            && description.rate != Rate::Unlimited
        {
            let state = (limits.clone(), description);
            handler = handler.route_layer(from_fn_with_state(state, limit));
        }
        // Before the limits, so that nobody else uses up what a client may ask.
        if description.scope != Scope::Open {
            let state = (context.clone(), description);
            handler = handler.route_layer(from_fn_with_state(state, authenticate));
        }
        if has_slash {
            return router.route(&format!("{path}/"), handler.clone()).route(&path, handler);
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
