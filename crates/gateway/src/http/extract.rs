//! Bodies and headers of requests, with errors that name the place.

use std::collections::BTreeMap;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request},
    http::request::Parts,
};
use bytes::BytesMut;
use caddis_api::{ApiError, ErrorCode, LeaseNonce};
use http_body_util::{BodyExt as _, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};
use utoipa::IntoParams;

use crate::http::{context::Context, errors::HttpError};

/// A JSON body, whatever its content type. An empty one reads as `{}`.
pub(crate) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Context> for JsonBody<T> {
    type Rejection = HttpError;

    async fn from_request(request: Request, context: &Context) -> Result<Self, HttpError> {
        Ok(Self(parse(&text(request, context).await?)?))
    }
}

/// The text of a JSON object.
async fn text(request: Request, context: &Context) -> Result<Bytes, ApiError> {
    let bytes = read(request.into_body(), context).await?;
    let text = bytes.trim_ascii();
    if text.starts_with(b"[") {
        // Serde would read an object's fields from it, one after the other.
        return Err(ApiError::invalid("invalid body: it must be an object"));
    }
    Ok(if text.is_empty() { Bytes::from_static(b"{}") } else { bytes.slice_ref(text) })
}

/// A JSON body, and which of its own fields there are.
pub(crate) struct Named<T>(pub T, pub Vec<String>);

impl<T: DeserializeOwned> FromRequest<Context> for Named<T> {
    type Rejection = HttpError;

    async fn from_request(request: Request, context: &Context) -> Result<Self, HttpError> {
        let text = text(request, context).await?;
        let value = parse(&text)?;
        let names: BTreeMap<String, IgnoredAny> = parse(&text)?;
        Ok(Self(value, names.into_keys().collect()))
    }
}

/// A JSON object of which nulls and empty strings count as absent, as some clients send all their
/// fields always.
pub(crate) struct LenientJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Context> for LenientJson<T> {
    type Rejection = HttpError;

    async fn from_request(request: Request, context: &Context) -> Result<Self, HttpError> {
        let JsonBody(mut fields) =
            JsonBody::<Option<Map<String, Value>>>::from_request(request, context).await?;
        let fields = fields.get_or_insert_default();
        fields.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
        let value = Value::Object(std::mem::take(fields));
        Ok(Self(
            serde_path_to_error::deserialize(value)
                .map_err(|e| wrong_type(&e.path().to_string(), e.inner()))?,
        ))
    }
}

/// What is still read of a body beyond its limit, and thrown away: a client that is cut off while
/// it sends never sees the answer that says why.
const DISCARDED_BYTES: usize = 256 << 20;

/// All of a body, within the limits of size and time.
pub(crate) async fn read(body: Body, context: &Context) -> Result<Bytes, ApiError> {
    let limit = context.settings.max_body_bytes;
    match tokio::time::timeout(context.settings.body_timeout, collect(body, limit)).await {
        Ok(body) => body,
        Err(_) => Err(ApiError::new(
            ErrorCode::DeadlineExceeded,
            "deadline_exceeded: the body did not arrive in time",
        )),
    }
}

async fn collect(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let (mut kept, mut seen) = (BytesMut::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            ApiError::invalid("invalid body, the connection ended before it was complete")
        })?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len();
        if seen <= limit {
            kept.extend_from_slice(&data);
        } else {
            kept = BytesMut::new();
        }
        if seen > limit.saturating_add(DISCARDED_BYTES) {
            break;
        }
    }
    if seen > limit {
        let text = format!("the body is too large, cannot exceed {limit} bytes");
        return Err(ApiError::new(ErrorCode::TooLarge, text));
    }
    Ok(kept.freeze())
}

/// Reads JSON; errors name the position or the field.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        match error.inner().classify() {
            serde_json::error::Category::Data => wrong_type(&path, error.inner()),
            _ => ApiError::invalid(format!("invalid JSON: {}", error.inner())),
        }
    })?;
    deserializer.end().map_err(|e| ApiError::invalid(format!("invalid JSON: {e}")))?;
    Ok(value)
}

fn wrong_type(path: &str, error: &serde_json::Error) -> ApiError {
    let field = if path == "." || path.is_empty() { "body" } else { path };
    ApiError::invalid(format!("invalid {field}: {error}"))
}

/// What a client holds as proof of its lease.
#[derive(IntoParams)]
#[into_params(names("fly-machine-lease-nonce"), parameter_in = Header)]
pub(crate) struct Nonce(
    /// Nonce of the machine's lease; needed when it has one.
    #[param(value_type = String, required = false)]
    pub Option<LeaseNonce>,
);

/// The header it comes in.
pub(crate) const NONCE: &str = "fly-machine-lease-nonce";

impl FromRequestParts<Context> for Nonce {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _: &Context) -> Result<Self, HttpError> {
        let Some(value) = parts.headers.get(NONCE) else { return Ok(Self(None)) };
        let text = value.to_str().ok().filter(|text| text.len() <= 64);
        let text = text.ok_or_else(|| {
            ApiError::invalid(format!("invalid header {NONCE}, use a lease's nonce"))
        })?;
        Ok(Self((!text.is_empty()).then(|| LeaseNonce::from_trusted(text))))
    }
}

/// The body of an answer, when it is an error's and small.
pub(crate) async fn small(body: Body) -> Option<Bytes> {
    Some(Limited::new(body, 1 << 20).collect().await.ok()?.to_bytes())
}
