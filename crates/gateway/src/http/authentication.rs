//! Who asks: `Bearer`, `FlyV1` or a bare token. One of several comma-joined tokens being ours is
//! enough.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use caddis_api::{ApiError, ErrorCode};
use caddis_catalog::{Access, Catalog, TokenRecord};

use crate::http::{
    caller::Caller, context::Context, description::Description, errors::HttpError, idempotency,
};

/// Tokens looked at in one header.
const MAX_TOKENS: usize = 16;

/// Lets in who has a token of ours that is good for this endpoint.
pub(crate) async fn authenticate(
    State((context, endpoint)): State<(Context, Description)>,
    mut request: Request,
    next: Next,
) -> Response {
    let found = caller(&context.catalog, request.headers(), endpoint.scope.access()).await;
    let admitted = found.and_then(|caller| caller.admit(endpoint.scope).map(|()| caller));
    let caller = match admitted {
        Ok(caller) => caller,
        Err(error) => return HttpError(error).into_response(),
    };
    let keyed = idempotency::applies_to(&request, endpoint.replay).then(|| caller.name.clone());
    request.extensions_mut().insert(caller);
    match keyed {
        Some(name) => idempotency::once(context, name, endpoint.replay, request, next).await,
        None => next.run(request).await,
    }
}

async fn caller(catalog: &Catalog, headers: &HeaderMap, wants: Access) -> Result<Caller, ApiError> {
    let refused = |text: &str| ApiError::new(ErrorCode::Unauthenticated, text);
    let value = headers.get(AUTHORIZATION).ok_or_else(|| {
        refused("unauthenticated: send a token in the header 'Authorization: Bearer <token>'")
    })?;
    let value = value
        .to_str()
        .map_err(|_| refused("unauthenticated: the Authorization header is not ASCII"))?
        .trim();
    let tokens = match value.split_once(char::is_whitespace) {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("flyv1") =>
        {
            rest
        }
        _ => value,
    };
    for token in tokens.split(',').take(MAX_TOKENS) {
        // Each may carry a scheme of its own.
        let token = token.trim();
        let token = token.split_once(char::is_whitespace).map_or(token, |(_, token)| token.trim());
        if let Some(record) = catalog.authenticate(token).await? {
            let TokenRecord { name, organization, scope } = record;
            return Ok(Caller { name, organization, token: scope, wants });
        }
    }
    Err(refused("unauthenticated: the token is not valid on this server"))
}
