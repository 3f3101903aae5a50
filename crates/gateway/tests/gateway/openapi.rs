//! The OpenAPI document: what is checked in, what is served, and that each operation does what it
//! says.

use std::path::Path;

use axum::{body::Body, http::Request};
use serde_json::Value;

use crate::support::Fixture;

#[test]
fn the_document_checked_in_is_the_one_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let generated = caddis_gateway::openapi_json();
    if std::env::var_os("CADDIS_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &generated).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        generated == checked_in,
        "docs/openapi.json is not what the code says; look at what changed with:\n    \
         CADDIS_BLESS=1 cargo test -p caddis-gateway openapi && git diff docs/openapi.json"
    );
}

#[tokio::test]
async fn document_and_page_are_served_to_anyone() {
    let fixture = Fixture::new().await;
    let document =
        fixture.send(Request::get("/v1/openapi.json").body(Body::empty()).unwrap()).await;
    assert_eq!(document.headers["content-type"], "application/json");
    assert_eq!(document.text, caddis_gateway::openapi_json());
    let page = fixture.send(Request::get("/docs").body(Body::empty()).unwrap()).await;
    assert_eq!(
        (page.status.as_u16(), page.headers["content-type"].to_str().unwrap()),
        (200, "text/html; charset=utf-8")
    );
    let document: Value = document.ok();
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(page.text.contains(path), "{path}");
    }
}
