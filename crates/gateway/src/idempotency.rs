//! `Idempotency-Key` on POST: the same request under the same key is carried out once, and answered twice. Keys are the
//! caller's own and are remembered for a day; requests that failed are forgotten, so that they may be tried again.
//!
//! A request that was cut short, by the end of the server or by a worker that did not answer, may have been carried
//! out. Sent again, what makes a thing (an app, a machine, a version) finds the one it has made; what comes to the same
//! when done twice is done again; the rest is refused. Which is which is said of each endpoint ([`Replay`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, Method, header::CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use caddis_api::{ApiError, ErrorCode};
use caddis_catalog::{Answer, Keyed, KeyedRequest};
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex as AsyncMutex;

use crate::{
    context::Context,
    endpoint::Replay,
    envelope::Failure,
    extract::{NONCE, read},
};

/// The header.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Says of an answer that it was given before.
const REPLAYED: &str = "idempotency-replayed";
/// Longest key, characters.
const MAX_KEY: usize = 255;
/// Longest answer that is kept, bytes; only outputs of programs are longer.
const MAX_ANSWER: usize = 1 << 20;

/// A request that has a key, as endpoints see it that make something ([`Replay::Makes`]): what they make goes by this id.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub String);

/// Requests with a key that are being carried out.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<(String, String), Weak<Turn>>>);

type Turn = AsyncMutex<()>;

impl Turns {
    /// One request of a caller after the other with the same key.
    fn of(&self, caller: &str, key: &str) -> Arc<Turn> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let name = (caller.to_owned(), key.to_owned());
        if let Some(turn) = turns.get(&name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(name, Arc::downgrade(&turn));
        turn
    }
}

/// Whether this matters to a request.
pub(crate) fn applies_to(request: &Request, replay: Replay) -> bool {
    request.method() == Method::POST && replay != Replay::Exempt && request.headers().contains_key(IDEMPOTENCY_KEY)
}

/// Carries out a request with a key unless that was done before. To its end, also when the client hangs up.
pub(crate) async fn once(context: Context, caller: String, replay: Replay, request: Request, next: Next) -> Response {
    let work = tokio::spawn(async move { carry_out(&context, caller, replay, request, next).await });
    match work.await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => Failure(error).into_response(),
        Err(e) => Failure(ApiError::internal(format!("the request was cut short: {e}"))).into_response(),
    }
}

async fn carry_out(
    context: &Context,
    caller: String,
    replay: Replay,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let key = key(request.headers())?;
    let (mut parts, body) = request.into_parts();
    let body = read(body, context).await?;
    let fingerprint = fingerprint(&parts, &body);
    let turn = context.turns.of(&caller, &key);
    let _turn = turn.lock().await;
    let id = ulid::Ulid::new().to_string();
    let id = match context.catalog.begin_request(KeyedRequest { caller, key, id: id.clone(), fingerprint }).await? {
        Keyed::New => id,
        Keyed::CutShort { id } if matches!(replay, Replay::Repeatable | Replay::Makes) => id,
        Keyed::CutShort { .. } => return Err(unknown_outcome()),
        Keyed::Answered(answer) => return again(answer),
        Keyed::Another => {
            let text = format!("invalid {IDEMPOTENCY_KEY}, another request came with it before");
            return Err(ApiError::new(ErrorCode::Unprocessable, text));
        }
    };
    if replay == Replay::Makes {
        parts.extensions.insert(RequestId(id.clone()));
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    if response.status().is_success() {
        return keep(context, &id, response).await;
    }
    let outcome_is_known = response.extensions().get::<ApiError>().is_none_or(|error| {
        !matches!(error.code, ErrorCode::Unavailable | ErrorCode::Internal | ErrorCode::DeadlineExceeded)
    });
    if outcome_is_known {
        context.catalog.forget_request(&id).await?;
    }
    Ok(response)
}

fn key(headers: &HeaderMap) -> Result<String, ApiError> {
    let key = headers.get(IDEMPOTENCY_KEY).and_then(|value| value.to_str().ok()).map(str::trim);
    key.filter(|key| (1..=MAX_KEY).contains(&key.len())).map(str::to_owned).ok_or_else(|| {
        ApiError::invalid(format!("invalid header {IDEMPOTENCY_KEY}, use 1 to {MAX_KEY} visible characters of ASCII"))
    })
}

fn fingerprint(parts: &axum::http::request::Parts, body: &[u8]) -> [u8; 32] {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let nonce = parts.headers.get(NONCE).map_or(&b""[..], |nonce| nonce.as_bytes());
    let mut digest = Sha256::new();
    for part in [target.as_bytes(), nonce, body] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

fn unknown_outcome() -> ApiError {
    ApiError::aborted(format!(
        "a request with this {IDEMPOTENCY_KEY} was cut short and may have been carried out: look, then use another key"
    ))
}

/// Keeps the answer before it is given.
async fn keep(context: &Context, id: &str, response: Response) -> Result<Response, ApiError> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|e| ApiError::internal(format!("read an answer: {e}")))?.to_bytes();
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let kept = (body.len() <= MAX_ANSWER).then(|| body.to_vec());
    let answer = Answer { status: parts.status.as_u16(), content_type, body: kept };
    context.catalog.end_request(id, answer).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn again(answer: Answer) -> Result<Response, ApiError> {
    let Some(body) = answer.body else {
        return Err(ApiError::aborted(format!(
            "a request with this {IDEMPOTENCY_KEY} was carried out; its answer was too long to be kept"
        )));
    };
    let mut response = Response::builder().status(answer.status).header(REPLAYED, "true");
    if let Some(content_type) = answer.content_type {
        response = response.header(CONTENT_TYPE, content_type);
    }
    response.body(Body::from(Bytes::from(body))).map_err(|e| ApiError::internal(format!("repeat an answer: {e}")))
}
