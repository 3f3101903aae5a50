//! The document of all endpoints, these two among them.

use std::sync::LazyLock;

use axum::{
    http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    response::{Html, IntoResponse},
};
use bytes::Bytes;

use super::all;
use crate::openapi;

/// The document as it is checked in and served.
pub fn json() -> String {
    format!("{:#}\n", openapi::document(all()))
}

/// Show this document.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    operation_id = "Server_openapi",
    tag = "Server",
    responses((status = 200, description = "The document", body = Value)),
)]
pub(crate) async fn show_json() -> impl IntoResponse {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| json().into());
    ([(CONTENT_TYPE, "application/json")], TEXT.clone())
}

/// Show this document as a web page.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "Server_docs",
    tag = "Server",
    responses((status = 200, description = "A page", body = String, content_type = "text/html")),
)]
pub(crate) async fn show_page() -> impl IntoResponse {
    static PAGE: LazyLock<Bytes> =
        LazyLock::new(|| openapi::page(&openapi::document(all())).into());
    ([(CONTENT_SECURITY_POLICY, openapi::page_policy())], Html(PAGE.clone()))
}
