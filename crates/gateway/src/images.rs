//! `/v1/images`: the images of a worker. Our addition.

use axum::{
    body::Body,
    extract::{Request, State},
    http::header::CONTENT_LENGTH,
    response::Response,
};
use caddis_api::{ApiError, ErrorCode, WorkerId};
use http_body_util::{BodyExt as _, Limited};

use crate::{
    context::{Context, Inner},
    envelope::Failure,
    forward,
    query::{Params, invalid},
};

/// The worker meant: that of parameter `worker`, else the first.
fn worker<'a>(context: &'a Inner, params: &Params) -> Result<&'a WorkerId, ApiError> {
    let Some(name) = params.get("worker") else {
        let none = || ApiError::new(ErrorCode::Unavailable, "unavailable: no worker is known");
        return context.workers.first().ok_or_else(none);
    };
    let found = context.workers.iter().find(|worker| worker.as_str() == name);
    found.ok_or_else(|| invalid("worker", name, "the id of a worker"))
}

fn passed_on(params: &Params, names: &[&'static str]) -> String {
    forward::query(names.iter().filter_map(|name| Some((*name, params.get(name)?.to_owned()))))
}

/// `GET /v1/images`.
pub(crate) async fn list(State(context): State<Context>, params: Params) -> Result<Response, Failure> {
    forward::call(&context, worker(&context, &params)?, Request::get("/images").body(Body::empty())).await
}

/// `POST /v1/images?format=&name=`: the body is an archive, the answer NDJSON that tells how far the import is.
pub(crate) async fn import(
    State(context): State<Context>,
    params: Params,
    request: Request,
) -> Result<Response, Failure> {
    let limit = context.settings.max_upload_bytes;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(ApiError::new(
            ErrorCode::TooLarge,
            format!("the archive is too large, cannot exceed {limit} bytes"),
        )
        .into());
    }
    if params.get("format").is_none_or(|format| !["docker-archive", "oci-archive"].contains(&format)) {
        let format = params.get("format").unwrap_or_default();
        return Err(invalid("format", format, "docker-archive or oci-archive").into());
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let body = Body::new(Limited::new(request.into_body(), limit).map_err(axum::Error::new));
    let path = format!("/images?{}", passed_on(&params, &["format", "name"]));
    forward::call(&context, worker(&context, &params)?, Request::post(path).body(body)).await
}

/// `DELETE /v1/images?name=`.
pub(crate) async fn remove(State(context): State<Context>, params: Params) -> Result<Response, Failure> {
    if params.get("name").is_none() {
        return Err(invalid("name", "", "the name or digest of an image").into());
    }
    let path = format!("/images?{}", passed_on(&params, &["name"]));
    forward::call(&context, worker(&context, &params)?, Request::delete(path).body(Body::empty())).await
}
