//! `/v1/images`: the images of a worker. Caddis extension.

use axum::{
    body::Body,
    extract::{Request, State},
    http::header::CONTENT_LENGTH,
    response::Response,
};
use caddis_api::{
    ApiError, ErrorCode, WorkerId,
    error::ErrorBody,
    images::{ImageSummary, ImportUpdate},
    requests::OkReply,
};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::http::{
    context::{Context, Inner},
    errors::HttpError,
    forward,
    query::{Params, invalid},
    responses::BadParameter,
    steady::Steady,
};

/// What an archive looks like.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ArchiveFormat {
    /// Written by `docker save`.
    DockerArchive,
    /// An OCI layout in a tar file.
    OciArchive,
}

/// The worker meant: that of parameter `worker`, else the first.
fn worker(context: &Inner, params: &Params) -> Result<WorkerId, ApiError> {
    let Some(name) = params.get("worker") else {
        let none = || ApiError::new(ErrorCode::Unavailable, "unavailable: no worker is known");
        return context.view.hosts().reachable().into_iter().next().ok_or_else(none);
    };
    context.view.hosts().named(name).ok_or_else(|| invalid("worker", name, "the id of a worker"))
}

fn passed_on(params: &Params, names: &[&'static str]) -> String {
    forward::query(names.iter().filter_map(|name| Some((*name, params.get(name)?.to_owned()))))
}

/// List the images of a worker.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/images",
    operation_id = "Images_list",
    tag = "Images",
    params(("worker" = Option<String>, Query, description = "Id of a worker; default: the first \
        one")),
    responses((status = 200, description = "The images", body = Vec<ImageSummary>), BadParameter),
)]
pub(crate) async fn list(
    State(context): State<Context>,
    params: Params,
) -> Result<Response, HttpError> {
    forward::call(
        &context,
        &worker(&context, &params)?,
        Request::get("/images").body(Body::empty()),
    )
    .await
}

/// Import an image from an archive.
///
/// The response reports progress line by line; its last line says `done` or `failed`. Closing the
/// connection cancels the import. Caddis extension.
#[utoipa::path(
    post,
    path = "/v1/images",
    operation_id = "Images_import",
    tag = "Images",
    params(
        ("format" = inline(ArchiveFormat), Query, description = "Format of the archive"),
        (
            "image" = Option<String>, Query,
            description = "Image in the archive, by name or `@` and its index from 0; required if \
                           there are several",
        ),
        ("name" = Option<String>, Query, description = "Name for the image; default: the archive's \
            own"),
        ("worker" = Option<String>, Query, description = "Id of a worker; default: the first one"),
    ),
    request_body(
        content = Vec<u8>, content_type = "application/octet-stream", description = "The archive"
    ),
    responses(
        (status = 200, description = "One update per line", body = ImportUpdate,
            content_type = "application/x-ndjson"),
        BadParameter,
        (status = 413, description = "The archive is too large", body = ErrorBody),
    ),
)]
pub(crate) async fn import(
    State(context): State<Context>,
    params: Params,
    request: Request,
) -> Result<Response, HttpError> {
    let limit = context.settings.max_upload_bytes;
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(ApiError::new(
            ErrorCode::TooLarge,
            format!("the archive is too large, cannot exceed {limit} bytes"),
        )
        .into());
    }
    if params.word::<ArchiveFormat>("format")?.is_none() {
        return Err(invalid("format", "", "docker-archive or oci-archive").into());
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let body = Steady::new(request.into_body(), context.settings.body_timeout);
    let body = Body::new(Limited::new(body, limit).map_err(axum::Error::new));
    let path = format!("/images?{}", passed_on(&params, &["format", "image", "name"]));
    forward::call(&context, &worker(&context, &params)?, Request::post(path).body(body)).await
}

/// Remove an unused image.
///
/// Caddis extension.
#[utoipa::path(
    delete,
    path = "/v1/images",
    operation_id = "Images_delete",
    tag = "Images",
    params(
        ("name" = String, Query, description = "Name or digest of the image"),
        ("worker" = Option<String>, Query, description = "Id of a worker; default: the first one"),
    ),
    responses(
        (status = 200, description = "Removed", body = OkReply),
        BadParameter,
        (status = 404, description = "No such image", body = ErrorBody),
        (status = 412, description = "A machine uses it", body = ErrorBody),
    ),
)]
pub(crate) async fn remove(
    State(context): State<Context>,
    params: Params,
) -> Result<Response, HttpError> {
    if params.get("name").is_none() {
        return Err(invalid("name", "", "the name or digest of an image").into());
    }
    let path = format!("/images?{}", passed_on(&params, &["name"]));
    forward::call(&context, &worker(&context, &params)?, Request::delete(path).body(Body::empty()))
        .await
}
