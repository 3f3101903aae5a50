//! The document as one HTML page that needs nothing else: no scripts, fonts or pictures.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::{Map, Value};

const STYLE: &str = include_str!("page.css");

const METHODS: &[&str] = &["get", "post", "put", "patch", "delete"];

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
                header {
                    h1 { (title) " " small { (string(&document["info"]["version"])) } }
                    (text(&document["info"]["description"]))
                    p { "The same for programs: " a href="/v1/openapi.json" { "/v1/openapi.json" } }
                }
                nav {
                    h2 { "Contents" }
                    @for tag in &tags {
                        h3 { (string(&tag["name"])) }
                        ul {
                            @for operation in of(tag) {
                                li {
                                    a href={ "#" (operation.id()) } { (operation.line()) }
                                    " " (string(&operation.value["summary"]))
                                }
                            }
                        }
                    }
                    h3 { "Types" }
                    p {
                        @for name in schemas.into_iter().flat_map(Map::keys) { a href={ "#" (name) } { (name) } " " }
                    }
                }
                main {
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
            }
        }
    };
    page.into_string()
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

    fn line(&self) -> Markup {
        html! { code { b { (self.method.to_uppercase()) } " " (self.path) } }
    }

    fn render(&self) -> Markup {
        let parameters = self.value["parameters"].as_array();
        let body = self.value.get("requestBody");
        let responses = self.value["responses"].as_object().into_iter().flatten();
        html! {
            article id=(self.id()) {
                h3 { (self.line()) }
                p {
                    (string(&self.value["summary"]))
                    @if self.value["deprecated"] == true { " " em { "Deprecated." } }
                    @if self.value["security"].as_array().is_none_or(|all| all.iter().all(is_empty)) {
                        " " em { "No token needed." }
                    }
                }
                (text(&self.value["description"]))
                @if let Some(parameters) = parameters {
                    table {
                        tr { th { "Parameter" } th { "In" } th { "Type" } th { "" } }
                        @for parameter in parameters {
                            tr {
                                td { code { (string(&parameter["name"])) } (required(parameter["required"] == true)) }
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
                    tr { th { "Answer" } th { "Type" } th { "" } }
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
                        td { code { (name) } (self::required(required.iter().any(|required| *required == name))) }
                        td { (type_of(field)) }
                        td { (text(&field["description"])) }
                    }
                }
            }
            @if schema["additionalProperties"] == true { p { "And any other fields." } }
            @if let Some(example) = schema.get("example") { p { "For example " code { (example) } } }
        } @else if let Some(parts) = parts {
            @for part in parts {
                @if part.get("$ref").is_some() { p { "All of " (type_of(part)) " and:" } } @else { (definition(part)) }
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
        html! { @for (index, alternative) in shown.enumerate() { @if index > 0 { " or " } (type_of(alternative)) } }
    } else if let Some(words) = schema["enum"].as_array() {
        html! { @for (index, word) in words.iter().enumerate() { @if index > 0 { ", " } code { (plain(word)) } } }
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
                "parameters": [{ "name": evil, "in": evil, "schema": { "type": evil }, "description": evil }],
                "requestBody": { "content": { evil: { "schema": { "enum": [evil] } } } },
                "responses": { evil: { "description": evil, "content": { evil: { "schema": { "$ref": evil } } } } },
            } } },
            "components": { "schemas": { evil: { "properties": { evil: { "description": evil } }, "example": evil } } },
        }));
        assert!(!page.contains("<script") && !page.contains("<i>"), "{page}");
        assert!(page.matches("&lt;script&gt;").count() > 20);
    }

    #[test]
    fn the_page_needs_nothing_else_and_its_links_lead_somewhere() {
        let page = render(&crate::openapi::document(crate::endpoints::all()));
        for forbidden in ["http://", "https://", "<script", "src=", "@import", "url("] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        let links: Vec<_> =
            page.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(links.len() > 100);
        for link in links {
            assert!(page.contains(&format!("id=\"{link}\"")), "{link}");
        }
    }
}
