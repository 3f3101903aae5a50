//! What the OpenAPI document promises, and whether an exchange keeps to it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock},
};

use axum::http::{Method, StatusCode};
use jsonschema::Validator;
use serde_json::{Value, json};

/// The document of the code.
pub static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(&caddis_gateway::openapi_json()).unwrap());

pub static CONTRACT: LazyLock<Contract> = LazyLock::new(|| Contract::of(&DOCUMENT));

pub struct Contract {
    pub operations: Vec<Operation>,
    error: Arc<Validator>,
}

/// Bodies by their media type.
type Contents = BTreeMap<String, Arc<Validator>>;

pub struct Operation {
    pub id: String,
    pub method: Method,
    pub path: String,
    pub needs_token: bool,
    /// Name, place and schema.
    pub parameters: Vec<(String, String, Value)>,
    pub request: Contents,
    responses: BTreeMap<u16, Contents>,
}

impl Contract {
    fn of(document: &Value) -> Self {
        let mut known = HashMap::new();
        let mut validator = |schema: &Value| {
            let build = || {
                let mut root = schema.clone();
                root["components"] = document["components"].clone();
                Arc::new(jsonschema::draft202012::new(&root).unwrap())
            };
            known.entry(schema.to_string()).or_insert_with(build).clone()
        };
        let mut contents = |body: &Value| -> Contents {
            let contents = body["content"].as_object().into_iter().flatten();
            contents
                .map(|(media, content)| (media.clone(), validator(&content["schema"])))
                .collect()
        };
        let mut operations = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                let responses = operation["responses"].as_object().unwrap().iter();
                operations.push(Operation {
                    id: text(&operation["operationId"]),
                    method: method.to_uppercase().parse().unwrap(),
                    path: path.clone(),
                    needs_token: operation["security"].is_array(),
                    parameters: parameters
                        .map(|parameter| {
                            (
                                text(&parameter["name"]),
                                text(&parameter["in"]),
                                parameter["schema"].clone(),
                            )
                        })
                        .collect(),
                    request: contents(&operation["requestBody"]),
                    responses: responses
                        .map(|(status, response)| (status.parse().unwrap(), contents(response)))
                        .collect(),
                });
            }
        }
        let error = validator(&json!({ "$ref": "#/components/schemas/ErrorBody" }));
        Self { operations, error }
    }

    /// What a schema of the document accepts.
    pub fn schema(&self, name: &str) -> Validator {
        let mut root = json!({ "$ref": format!("#/components/schemas/{name}") });
        root["components"] = DOCUMENT["components"].clone();
        jsonschema::draft202012::new(&root).unwrap()
    }

    /// The operation that a request is for.
    pub fn operation(&self, method: &Method, path: &str) -> Option<&Operation> {
        self.operations
            .iter()
            .find(|operation| operation.method == method && fits(&operation.path, path))
    }

    /// Panics when an answer is not one that the document promises.
    #[track_caller]
    pub fn check(
        &self,
        (method, path): (&Method, &str),
        status: StatusCode,
        media: &str,
        body: &str,
    ) {
        let place = format!("{method} {path} answered {status} with {media:?}: {body}");
        let media = media.split(';').next().unwrap_or_default();
        let Some(operation) = self.operation(method, path) else {
            assert!(matches!(status.as_u16(), 404 | 405), "not in the document: {place}");
            return accept(&self.error, body, &place);
        };
        let contents = operation.responses.get(&status.as_u16());
        let contents =
            contents.unwrap_or_else(|| panic!("{} has no such status: {place}", operation.id));
        if contents.is_empty() {
            return assert!(body.is_empty(), "{} has no body: {place}", operation.id);
        }
        let validator = contents
            .get(media)
            .unwrap_or_else(|| panic!("{} has other types: {place}", operation.id));
        match media {
            "application/json" => accept(validator, body, &place),
            "text/event-stream" => {
                events(body).for_each(|event| accept(validator, &event.to_string(), &place))
            }
            "application/x-ndjson" => body.lines().for_each(|line| accept(validator, line, &place)),
            _ => {}
        }
    }
}

/// Panics when a schema does not accept a text.
#[track_caller]
pub fn accept(validator: &Validator, text: &str, place: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {place}"));
    let errors: Vec<_> = validator
        .iter_errors(&value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{place}\nis not what the document says: {errors:#?}");
}

/// Server-sent events as objects of their fields.
fn events(body: &str) -> impl Iterator<Item = Value> {
    let events = body.split("\n\n").filter(|event| !event.is_empty());
    events.map(|event| event.lines().filter_map(|line| line.split_once(": ")).collect())
}

fn fits(template: &str, path: &str) -> bool {
    let (mut words, mut found) = (template.split('/'), path.split('/'));
    loop {
        match (words.next(), found.next()) {
            (None, None) => return true,
            (Some(word), Some(found)) if word == found || word.starts_with('{') => {}
            _ => return false,
        }
    }
}
