//! The OpenAPI document: what is checked in, what is served, and that each operation does what it
//! says.

use std::path::Path;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use serde_json::Value;
use tower::ServiceExt as _;

use crate::support::{
    CONTRACT, Fixture,
    contract::{DOCUMENT, Operation, accept},
};

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

/// The page's part on an operation, with the characters that stand for others in HTML put back.
fn part(page: &str, operation: &Operation) -> String {
    let start = page.find(&format!("<article id=\"{}\">", operation.id));
    let part = &page[start.unwrap_or_else(|| panic!("the page has no {}", operation.id))..];
    let part = &part[..part.find("</article>").unwrap()];
    part.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

fn preformatted<'a>(part: &'a str, class: &str) -> Option<&'a str> {
    let (_, rest) = part.split_once(&format!("<pre class=\"{class}\">"))?;
    Some(rest.split_once("</pre>")?.0)
}

#[tokio::test]
async fn the_page_has_a_command_and_an_answer_of_each_operation() {
    let fixture = Fixture::new().await;
    let page = fixture.send(Request::get("/docs").body(Body::empty()).unwrap()).await.text;
    assert_eq!(caddis_gateway::operations().len(), CONTRACT.operations.len());
    for row in &CONTRACT.operations {
        let part = part(&page, row);
        let curl = preformatted(&part, "curl").unwrap_or_else(|| panic!("{}: no curl", row.id));
        assert!(curl.starts_with("curl ") && curl.contains("\"$URL/"), "{curl}");
        assert!(!curl.contains('{') || curl.contains(" -d '"), "a parameter has no value: {curl}");
        assert_eq!(curl.contains("$TOKEN"), row.needs_token, "{curl}");
        let answer = preformatted(&part, "answer").unwrap_or_else(|| panic!("{}: none", row.id));
        let status = &answer[..answer.find(' ').unwrap()];
        assert!(["101", "200", "201", "202", "204"].contains(&status), "{answer}");
        // Whoever reads it knows what comes with it.
        let content =
            &DOCUMENT["paths"][&row.path][row.method.as_str().to_lowercase()]["responses"][status];
        assert_eq!(answer.contains("\n\n"), content["content"].is_object(), "{}: {answer}", row.id);
    }
}

#[test]
fn the_examples_are_such_as_the_document_describes() {
    for operation in &CONTRACT.operations {
        let place = &DOCUMENT["paths"][&operation.path][operation.method.as_str().to_lowercase()];
        for (media, content) in place["requestBody"]["content"].as_object().into_iter().flatten() {
            if media == "application/json" {
                let validator = &operation.request[media];
                accept(validator, &content["example"].to_string(), &operation.id);
            }
        }
        let parameters = place["parameters"].as_array().into_iter().flatten();
        for parameter in parameters {
            let required = parameter["required"] == true;
            assert!(
                !required || parameter["example"] != Value::Null,
                "{}: {parameter}",
                operation.id
            );
        }
        for (status, response) in place["responses"].as_object().unwrap() {
            for (media, content) in response["content"].as_object().into_iter().flatten() {
                let Some(example) = content.get("example") else { continue };
                let text = match media.as_str() {
                    "text/event-stream" => format!(
                        "event: {}\ndata: {}\n\n",
                        example["event"].as_str().unwrap(),
                        example["data"].as_str().unwrap()
                    ),
                    _ => example.to_string(),
                };
                let status = StatusCode::from_bytes(status.as_bytes()).unwrap();
                CONTRACT.check((&operation.method, &operation.path), status, media, &text);
            }
        }
    }
}

#[tokio::test]
async fn the_page_tells_how_to_begin_and_the_errors_once() {
    let fixture = Fixture::new().await;
    let answer = fixture.send(Request::get("/docs").body(Body::empty()).unwrap()).await;
    let page = &answer.text;
    for words in ["Authorization: Bearer TOKEN", "caddis auth token", "root.token", "base URL"] {
        assert!(page.contains(words), "{words}");
    }
    assert_eq!(page.matches("Missing or unknown token").count(), 1, "common errors are told once");
    let codes = DOCUMENT["components"]["schemas"]["ErrorCode"]["enum"].as_array().unwrap();
    for code in codes {
        assert!(page.contains(&format!("<code>{}</code>", code.as_str().unwrap())), "{code}");
    }
    let policy = answer.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'sha256-"));
    assert!(!policy.contains("script-src 'unsafe-inline'"), "{policy}");
    assert!(page.contains("id=\"search\""), "the side bar can be searched");
}

#[tokio::test]
async fn the_root_leads_to_the_page() {
    let fixture = Fixture::new().await;
    let request = Request::get("/").body(Body::empty()).unwrap();
    let answer = fixture.router.clone().oneshot(request).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (307, &"/docs".parse().unwrap())
    );
}
