//! `Idempotency-Key` on POST: the same request under the same key is carried out once, and answered
//! twice. Keys are the caller's own and are remembered for a day; requests that failed are
//! forgotten, so that they may be tried again.
//!
//! While a request is carried out it is this gateway's under a lease in the catalog. The same
//! request waits for its answer: for a lock where it came to this gateway, by looking again where
//! another one has it.
//!
//! A request that was cut short, by the end of the server or by a worker that did not answer, may
//! have been carried out. Sent again, what makes a thing (an app, a machine, a version) finds the
//! one it has made; what comes to the same when done twice is done again; the rest is refused.
//! Which is which is said of each endpoint ([`Replay`]).

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{
        HeaderMap, HeaderValue, Method,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use caddis_api::{ApiError, ErrorCode, UnixMillis};
use caddis_catalog::{IdempotencyState, KeyedRequest, REQUEST_LEASE, StoredResponse};
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::http::{
    context::Context,
    description::Replay,
    errors::HttpError,
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
/// How long the answer of another gateway is waited for: longer than a lease, so that who waits
/// takes over from one that has died.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// First and longest wait between two looks for it. The catalog tells nobody of its changes.
const ANSWER_INTERVAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often the lease is renewed: it outlives two that fail.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(REQUEST_LEASE.as_secs() / 3);

/// A request that has a key, as endpoints see it that make something ([`Replay::Makes`]): what they
/// make goes by this id.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub String);

/// Whether this matters to a request.
pub(crate) fn applies_to(request: &Request, replay: Replay) -> bool {
    request.method() == Method::POST
        && replay != Replay::Exempt
        && request.headers().contains_key(IDEMPOTENCY_KEY)
}

/// Carries out a request with a key unless that was done before. To its end, also when the client
/// hangs up.
pub(crate) async fn once(
    context: Context,
    caller: String,
    replay: Replay,
    request: Request,
    next: Next,
) -> Response {
    let work =
        tokio::spawn(async move { carry_out(&context, caller, replay, request, next).await });
    match work.await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => HttpError(error).into_response(),
        Err(e) => HttpError(ApiError::internal(format!("the request was interrupted: {e}")))
            .into_response(),
    }
}

/// A request that this gateway is to carry out.
struct Held {
    /// What it makes goes by this.
    id: String,
    /// Holds its lease.
    holder: String,
    /// It was never begun before.
    is_new: bool,
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
    let turn = context.in_flight.of(&caller, &key);
    let _turn = turn.lock().await;
    let holder = ulid::Ulid::new().to_string();
    let (id, is_new) = match begin(
        context,
        KeyedRequest { caller, key, id: holder.clone(), fingerprint },
    )
    .await?
    {
        IdempotencyState::New => (holder.clone(), true),
        IdempotencyState::Interrupted { id }
            if matches!(replay, Replay::Repeatable | Replay::Makes) =>
        {
            (id, false)
        }
        IdempotencyState::Interrupted { id } => {
            context.catalog.give_up_request(&id, &holder).await?;
            return Err(unknown_outcome());
        }
        IdempotencyState::InProgress { until_ms } => return Ok(in_progress(until_ms)),
        IdempotencyState::Answered(answer) => return again(answer),
        IdempotencyState::Another => {
            let text = format!("invalid {IDEMPOTENCY_KEY}, it was used for a different request");
            return Err(ApiError::new(ErrorCode::Unprocessable, text));
        }
    };
    if replay == Replay::Makes {
        parts.extensions.insert(RequestId(id.clone()));
    }
    let held = Held { id, holder, is_new };
    tokio::select! {
        response = async {
            let response = next.run(Request::from_parts(parts, Body::from(body))).await;
            let ended = end(context, &held, response).await;
            if ended.is_err() {
                // Nobody need wait for the end of its lease. Where that can't be noted either, they
                // do.
                let _ = context.catalog.give_up_request(&held.id, &held.holder).await;
            }
            ended
        } => response,
        never = renew(context, &held) => match never {},
    }
}

/// Waits while another gateway carries the request out.
async fn begin(context: &Context, request: KeyedRequest) -> Result<IdempotencyState, ApiError> {
    let (given_up, mut pause) = (Instant::now() + ANSWER_TIMEOUT, ANSWER_INTERVAL.0);
    loop {
        match context.catalog.begin_request(request.clone()).await? {
            IdempotencyState::InProgress { .. } if Instant::now() < given_up => {
                tokio::time::sleep(pause).await;
                pause = ANSWER_INTERVAL.1.min(pause * 2);
            }
            known => return Ok(known),
        }
    }
}

/// Holds a request for as long as it is carried out.
async fn renew(context: &Context, held: &Held) -> Infallible {
    loop {
        tokio::time::sleep(RENEWAL_INTERVAL).await;
        match context.catalog.renew_request(&held.id, &held.holder).await {
            Ok(true) => {}
            // Its answer was noted a moment ago, or this gateway stood still for too long. What it
            // makes is made once.
            Ok(false) => tracing::debug!(id = held.id, "an idempotency key is no longer leased"),
            Err(error) => {
                tracing::warn!(id = held.id, %error, "can't renew the lease of an idempotency key, \
                    retrying")
            }
        }
    }
}

/// Notes what came of a request before that is answered.
async fn end(context: &Context, held: &Held, response: Response) -> Result<Response, ApiError> {
    if response.status().is_success() {
        return keep(context, &held.id, response).await;
    }
    let outcome_is_known = response.extensions().get::<ApiError>().is_none_or(|error| {
        // Of one that was cut short, an earlier try may have done what this one did not.
        (error.nothing_done && held.is_new)
            || !matches!(
                error.code,
                ErrorCode::Unavailable | ErrorCode::Internal | ErrorCode::DeadlineExceeded
            )
    });
    if outcome_is_known {
        context.catalog.forget_request(&held.id, &held.holder).await?;
    } else {
        context.catalog.give_up_request(&held.id, &held.holder).await?;
    }
    Ok(response)
}

fn key(headers: &HeaderMap) -> Result<String, ApiError> {
    let key = headers.get(IDEMPOTENCY_KEY).and_then(|value| value.to_str().ok()).map(str::trim);
    key.filter(|key| (1..=MAX_KEY).contains(&key.len())).map(str::to_owned).ok_or_else(|| {
        ApiError::invalid(format!(
            "invalid header {IDEMPOTENCY_KEY}, use 1 to {MAX_KEY} visible characters of ASCII"
        ))
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
        "a request with this {IDEMPOTENCY_KEY} was interrupted and may have been carried out: \
         check, then use another key"
    ))
}

/// Says when to come back: when the one who has it has renewed its lease or lost it.
fn in_progress(until: UnixMillis) -> Response {
    let error = ApiError::aborted(format!(
        "a request with this {IDEMPOTENCY_KEY} is still in progress: retry later to get its \
         response"
    ));
    let wait = until.since(UnixMillis::now());
    let seconds = (wait.as_secs() + u64::from(wait.subsec_millis() > 0)).max(1);
    let mut response = HttpError(error).into_response();
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// Keeps the answer before it is given.
async fn keep(context: &Context, id: &str, response: Response) -> Result<Response, ApiError> {
    let (parts, body) = response.into_parts();
    let body = body
        .collect()
        .await
        .map_err(|e| ApiError::internal(format!("read an answer: {e}")))?
        .to_bytes();
    let content_type =
        parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let kept = (body.len() <= MAX_ANSWER).then(|| body.to_vec());
    let answer = StoredResponse { status: parts.status.as_u16(), content_type, body: kept };
    context.catalog.end_request(id, answer).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn again(answer: StoredResponse) -> Result<Response, ApiError> {
    let Some(body) = answer.body else {
        return Err(ApiError::aborted(format!(
            "a request with this {IDEMPOTENCY_KEY} was carried out; its response was too large to \
             keep"
        )));
    };
    let mut response = Response::builder().status(answer.status).header(REPLAYED, "true");
    if let Some(content_type) = answer.content_type {
        response = response.header(CONTENT_TYPE, content_type);
    }
    response
        .body(Body::from(Bytes::from(body)))
        .map_err(|e| ApiError::internal(format!("repeat an answer: {e}")))
}
