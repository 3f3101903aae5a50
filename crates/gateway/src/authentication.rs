//! Who asks: `Bearer`, `FlyV1` or a bare token. One of several comma-joined tokens being ours is enough.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use caddis_api::{ApiError, ErrorCode};
use caddis_catalog::{Catalog, PERSONAL};

use crate::{context::Context, envelope::Failure, idempotency};

/// Tokens looked at in one header.
const MAX_TOKENS: usize = 16;

/// The one who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Name of the token.
    pub name: String,
    /// What `personal` means for it.
    organization: String,
}

impl Caller {
    /// As it appears as the owner of leases.
    pub fn owner(&self) -> String {
        format!("{}@tokens.caddis", self.name)
    }

    /// The slug meant by a request's.
    pub fn organization<'a>(&'a self, slug: &'a str) -> &'a str {
        if slug == PERSONAL { &self.organization } else { slug }
    }
}

/// Lets in who has a token of ours.
pub(crate) async fn authenticate(State(context): State<Context>, mut request: Request, next: Next) -> Response {
    match caller(&context.catalog, request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller.clone());
            if idempotency::applies_to(&request) {
                return idempotency::once(context, &caller, request, next).await;
            }
            next.run(request).await
        }
        Err(error) => Failure(error).into_response(),
    }
}

async fn caller(catalog: &Catalog, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let refused = |text: &str| ApiError::new(ErrorCode::Unauthenticated, text);
    let value = headers
        .get(AUTHORIZATION)
        .ok_or_else(|| refused("unauthenticated: send a token in the header 'Authorization: Bearer <token>'"))?;
    let value = value.to_str().map_err(|_| refused("unauthenticated: the Authorization header is not ASCII"))?.trim();
    let tokens = match value.split_once(char::is_whitespace) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("flyv1") => rest,
        _ => value,
    };
    for token in tokens.split(',').take(MAX_TOKENS) {
        // Each may carry a scheme of its own.
        let token = token.trim();
        let token = token.split_once(char::is_whitespace).map_or(token, |(_, token)| token.trim());
        if let Some(record) = catalog.authenticate(token).await? {
            return Ok(Caller { name: record.name, organization: record.organization });
        }
    }
    Err(refused("unauthenticated: the token is not valid on this server"))
}
