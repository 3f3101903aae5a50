//! The document as one HTML page that needs nothing else: no fonts, pictures or other files. Its
//! script searches the side bar; without it the page is complete.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use caddis_api::ErrorCode;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::curl;
use crate::http::responses;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

const METHODS: &[&str] = &["get", "post", "put", "patch", "delete"];

/// Where a server listens unless told otherwise; the script puts the page's own in its place.
const ORIGIN: &str = "http://127.0.0.1:4280";

/// What browsers allow the page: its own style and script.
pub(crate) fn policy() -> String {
    let script = BASE64_STANDARD.encode(Sha256::digest(SCRIPT));
    format!("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'")
}

/// An operation with its place.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    value: &'a Value,
}

/// The page of a document.
pub(crate) fn render(document: &Value) -> String {
    let tags: Vec<_> = document["tags"].as_array().into_iter().flatten().collect();
    let operations = operations(document);
    let of = |tag: &'_ Value| {
        let name = tag["name"].clone();
        operations.iter().filter(move |operation| operation.value["tags"][0] == name)
    };
    let schemas = document.pointer("/components/schemas").and_then(Value::as_object);
    let title = format!("{} API", string(&document["info"]["title"]));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                nav {
                    input id="search" type="search" placeholder="Search" aria-label="Search" hidden;
                    section {
                        h2 { "Introduction" }
                        ul {
                            li { a href="#authentication" { "Authentication" } }
                            li { a href="#errors" { "Errors" } }
                        }
                    }
                    @for tag in &tags {
                        section {
                            h2 { (string(&tag["name"])) }
                            ul {
                                @for operation in of(tag) {
                                    li {
                                        a href={ "#" (operation.id()) } { (operation.name()) }
                                        span { (operation.line()) }
                                    }
                                }
                            }
                        }
                    }
                    section {
                        h2 { "Types" }
                        ul {
                            @for name in schemas.into_iter().flat_map(Map::keys) {
                                li { a href={ "#" (name) } { (name) } }
                            }
                        }
                    }
                }
                main {
                    h1 { (title) " " small { (string(&document["info"]["version"])) } }
                    (text(&document["info"]["description"]))
                    p { "For programs: " a href="/v1/openapi.json" { "/v1/openapi.json" } }
                    (authentication())
                    (common_errors(document))
                    @for tag in &tags {
                        section {
                            h2 { (string(&tag["name"])) }
                            (text(&tag["description"]))
                            @for operation in of(tag) { (operation.render()) }
                        }
                    }
                    section {
                        h2 { "Types" }
                        @for (name, schema) in schemas.into_iter().flatten() {
                            article id=(name) {
                                h3 { code { (name) } }
                                (text(&schema["description"]))
                                (definition(schema))
                            }
                        }
                    }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

fn authentication() -> Markup {
    html! {
        section id="authentication" {
            h2 { "Address and authentication" }
            p { "All paths are below " code class="origin" { (ORIGIN) } ", the base URL." }
            p {
                "A request needs a token unless it says otherwise, in the header "
                code { "Authorization: Bearer TOKEN" } ". " code { "FlyV1 TOKEN" } " and the token \
                    alone are accepted "
                "too. The server writes a first token to " code { "root.token" } " in its data \
                    directory, and "
                code { "caddis auth token" } " prints it on the same host."
            }
            p { "The examples take both from variables:" }
            pre { "URL=" span class="origin" { (ORIGIN) } "\nTOKEN=$(caddis auth token)" }
            p {
                "In them, " code { "hello" } " is an app and " code { "148ed193b95389" }
                " a machine of it."
            }
        }
    }
}

/// The errors that any operation may answer with, once.
fn common_errors(document: &Value) -> Markup {
    let codes = document.pointer("/components/schemas/ErrorCode/enum").and_then(Value::as_array);
    let codes = codes.into_iter().flatten();
    let codes = codes.filter_map(|code| serde_json::from_value::<ErrorCode>(code.clone()).ok());
    let example =
        caddis_api::ApiError::machine_not_found().body(Some("01K3A5ZJ…-local".to_owned()));
    let example = serde_json::to_value(example).unwrap_or_default();
    html! {
        section id="errors" {
            h2 { "Errors" }
            p {
                "An error has a JSON body. " code { "code" } " is stable; " code { "retryable" }
                " says whether the same request may succeed later; " code { "request_id" }
                " is also in the header "
                code { "fly-request-id" } " and in the server's log."
            }
            pre { "404 Not Found\n\n" (format!("{example:#}")) }
            p { "Any operation may return these; others are listed with the operation." }
            table {
                tr { th { "Status" } th { "" } }
                @for (status, description) in responses::common() {
                    tr { td { code { (status) } } td { (text(&description.into())) } }
                }
            }
            table {
                tr { th { "Code" } th { "Status" } th { "Retryable" } }
                @for code in codes {
                    tr {
                        td { code { (plain(&serde_json::to_value(code).unwrap_or_default())) } }
                        td { code { (code.http_status()) } }
                        td { (if code.is_retryable() { "yes" } else { "no" }) }
                    }
                }
            }
        }
    }
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths
        .flat_map(|(path, item)| {
            METHODS
                .iter()
                .filter_map(|method| Some(Operation { method, path, value: item.get(method)? }))
        })
        .collect()
}

impl Operation<'_> {
    fn id(&self) -> &str {
        string(&self.value["operationId"])
    }

    /// What it does, in a few words.
    fn name(&self) -> &str {
        string(&self.value["summary"]).trim_end_matches('.')
    }

    fn line(&self) -> Markup {
        html! { code { b { (self.method.to_uppercase()) } " " (self.path) } }
    }

    /// Status and body with which it succeeds.
    fn answer(&self) -> Option<String> {
        let responses = self.value["responses"].as_object()?;
        let succeeds = |status: &str| status.starts_with('1') || status.starts_with('2');
        let (status, response) = responses.iter().find(|(status, _)| succeeds(status))?;
        let reason = StatusCode::from_bytes(status.as_bytes()).ok()?.canonical_reason()?;
        let mut contents = response["content"].as_object().into_iter().flatten();
        let body = contents.find_map(|(media, content)| {
            let example = content.get("example")?;
            Some(match media.as_str() {
                "application/x-ndjson" => example.to_string(),
                "text/event-stream" => {
                    let [event, data] = ["event", "data"].map(|name| string(&example[name]));
                    format!("event: {event}\ndata: {data}")
                }
                _ => curl::text(example),
            })
        });
        let body = body.map(|body| format!("\n\n{body}")).unwrap_or_default();
        Some(format!("{status} {reason}{body}"))
    }

    fn render(&self) -> Markup {
        let parameters = self.value["parameters"].as_array();
        let body = self.value.get("requestBody");
        let common: BTreeSet<_> = responses::common().into_iter().collect();
        let is_common = |status: &str, response: &Value| {
            common.contains(&(status.to_owned(), plain(&response["description"])))
        };
        let responses = self.value["responses"].as_object().into_iter().flatten();
        let responses = responses.filter(|(status, response)| !is_common(status, response));
        html! {
            article id=(self.id()) {
                h3 { (self.line()) }
                p {
                    (string(&self.value["summary"]))
                    @if self.value["deprecated"] == true { " " em { "Deprecated." } }
                    @let security = self.value["security"].as_array();
                    @if security.is_none_or(|all| all.iter().all(is_empty)) {
                        " " em { "No token needed." }
                    }
                }
                (text(&self.value["description"]))
                pre class="curl" { (curl::command(self.method, self.path, self.value)) }
                @if let Some(answer) = self.answer() { pre class="answer" { (answer) } }
                @if let Some(parameters) = parameters {
                    table {
                        tr { th { "Parameter" } th { "In" } th { "Type" } th { "" } }
                        @for parameter in parameters {
                            tr {
                                td {
                                    code { (string(&parameter["name"])) }
                                    (required(parameter["required"] == true))
                                }
                                td { (string(&parameter["in"])) }
                                td { (type_of(&parameter["schema"])) }
                                td { (text(&parameter["description"])) }
                            }
                        }
                    }
                }
                @if let Some(body) = body {
                    p { "Body: " (content(body)) (required(body["required"] == true)) }
                }
                table {
                    tr { th { "Status" } th { "Type" } th { "" } }
                    @for (status, response) in responses {
                        tr {
                            td { code { (status) } }
                            td { (content(response)) }
                            td { (text(&response["description"])) }
                        }
                    }
                }
            }
        }
    }
}

/// What a body is: its type, and its media type unless that is JSON.
fn content(body: &Value) -> Markup {
    html! {
        @for (media, content) in body["content"].as_object().into_iter().flatten() {
            (type_of(&content["schema"]))
            @if media != "application/json" { " as " code { (media) } }
        }
    }
}

/// What a named type consists of.
fn definition(schema: &Value) -> Markup {
    let parts = schema["allOf"].as_array();
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().collect();
    html! {
        @if let Some(fields) = schema["properties"].as_object() {
            table {
                tr { th { "Field" } th { "Type" } th { "" } }
                @for (name, field) in fields {
                    tr {
                        td {
                            code { (name) }
                            (self::required(required.iter().any(|required| *required == name)))
                        }
                        td { (type_of(field)) }
                        td { (text(&field["description"])) }
                    }
                }
            }
            @if schema["additionalProperties"] == true { p { "And any other fields." } }
            @if let Some(example) = schema.get("example") {
                p { "For example " code { (example) } }
            }
        } @else if let Some(parts) = parts {
            @for part in parts {
                @if part.get("$ref").is_some() {
                    p { "All of " (type_of(part)) " and:" }
                } @else {
                    (definition(part))
                }
            }
        } @else {
            p { (type_of(schema)) }
        }
    }
}

/// A type in one line.
fn type_of(schema: &Value) -> Markup {
    let alternatives =
        schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Value::as_array);
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        html! { a href={ "#" (name) } { (name) } }
    } else if let Some(alternatives) = alternatives {
        let shown = alternatives.iter().filter(|alternative| alternative["type"] != "null");
        html! {
            @for (index, alternative) in shown.enumerate() {
                @if index > 0 { " or " } (type_of(alternative))
            }
        }
    } else if let Some(words) = schema["enum"].as_array() {
        html! {
            @for (index, word) in words.iter().enumerate() {
                @if index > 0 { ", " } code { (plain(word)) }
            }
        }
    } else if let Some(fields) = schema["properties"].as_object() {
        html! {
            "{ "
            @for (index, (name, field)) in fields.iter().enumerate() {
                @if index > 0 { ", " } code { (name) } ": " (type_of(field))
            }
            " }"
        }
    } else if schema["type"] == "array" || schema["type"][0] == "array" {
        html! { "list of " (type_of(&schema["items"])) }
    } else if schema["additionalProperties"].is_object() {
        html! { "map of " (type_of(&schema["additionalProperties"])) }
    } else {
        let words: Vec<_> = match &schema["type"] {
            Value::Array(words) => {
                words.iter().filter_map(Value::as_str).filter(|word| *word != "null").collect()
            }
            Value::String(word) => vec![word.as_str()],
            _ => vec!["anything"],
        };
        html! { (words.join(" or ")) }
    }
}

fn required(required: bool) -> Markup {
    html! { @if required { " " em { "required" } } }
}

/// Paragraphs, in which backticks mark code.
fn text(value: &Value) -> Markup {
    html! {
        @for paragraph in string(value).split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
            p {
                @for (index, part) in paragraph.split('`').enumerate() {
                    @if index % 2 == 1 { code { (part) } } @else { (part) }
                }
            }
        }
    }
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_none_or(Map::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stands_in_a_document_is_escaped() {
        let evil = "<script>alert('1')</script>\"&`<i>`";
        let page = render(&json!({
            "info": { "title": evil, "version": evil, "description": evil },
            "tags": [{ "name": evil, "description": evil }],
            "paths": { evil: { "get": {
                "operationId": evil, "summary": evil, "description": evil, "tags": [evil],
                "parameters": [
                    { "name": evil, "in": evil, "schema": { "type": evil }, "description": evil },
                ],
                "requestBody": { "content": { evil: { "schema": { "enum": [evil] } } } },
                "responses": { evil: {
                    "description": evil, "content": { evil: { "schema": { "$ref": evil } } },
                } },
            } } },
            "components": { "schemas": { evil: {
                "properties": { evil: { "description": evil } }, "example": evil,
            } } },
        }));
        assert_eq!(page.matches("<script").count(), 1, "{page}");
        assert!(!page.contains("<i>"), "{page}");
        assert!(page.matches("&lt;script&gt;").count() > 20);
    }

    #[test]
    fn the_page_needs_nothing_else_and_its_links_lead_somewhere() {
        let page = render(&crate::openapi::document(crate::endpoints::all()));
        let own = page.replace(ORIGIN, "");
        for forbidden in ["http://", "https://", "<script ", "src=", "@import", "url(", "fetch("] {
            assert!(!own.contains(forbidden), "{forbidden}");
        }
        assert_eq!(page.split("<script>").nth(1).unwrap().split("</script>").next(), Some(SCRIPT));
        let links: Vec<_> =
            page.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(links.len() > 100);
        for link in links {
            assert!(page.contains(&format!("id=\"{link}\"")), "{link}");
        }
    }
}
