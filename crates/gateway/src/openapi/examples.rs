//! A request and an answer of each operation, as they stand in `examples.json`, for the document:
//! by the operation's id, values of its parameters, `body` and `answer`. They tell of one app and
//! one machine.

use serde_json::{Map, Value};

const EXAMPLES: &str = include_str!("examples.json");

/// Values of what stands in paths.
const PATH: &[(&str, &str)] = &[
    ("app_name", "hello"),
    ("machine_id", "148ed193b95389"),
    ("org_slug", "personal"),
    ("key", "role"),
    ("id", "01K3A5ZJ6R2X8N4B7D9F0H1M2P"),
    ("ip", "127.64.0.1"),
    ("policy_id", "np_4l2k8s0d7fj3n1qz"),
    ("volume_id", "vol_9vw681egy1jj5xm4"),
    ("name", "laptop"),
    ("snapshot_id", "vs_Ql8xbllZOYDSDgo2D7NY"),
];

/// Adds them to a document.
pub(super) fn add(document: &mut Value) {
    // A test reads it.
    let examples: Value = serde_json::from_str(EXAMPLES).unwrap_or_default();
    let paths = document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    for operation in paths.filter_map(Value::as_object_mut).flat_map(Map::values_mut) {
        let example = operation["operationId"].as_str().map(|id| &examples[id]);
        let Some(example) = example.cloned() else { continue };
        let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
        for parameter in parameters.into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap_or_default();
            let fixed = PATH.iter().find(|(known, _)| *known == name && parameter["in"] == "path");
            let value = fixed.map_or_else(|| example["parameters"].get(name), |_| None).cloned();
            let value = value.or_else(|| Some(fixed?.1.into()));
            if let (Some(value), Some(parameter)) = (value, parameter.as_object_mut()) {
                parameter.insert("example".to_owned(), value);
            }
        }
        if let Some(body) = example.get("body") {
            show(operation.get_mut("requestBody"), body);
        }
        let responses = operation.get_mut("responses").and_then(Value::as_object_mut).into_iter();
        for (status, response) in responses.flatten() {
            if let (Some(answer), true) = (example.get("answer"), status.starts_with('2')) {
                show(Some(response), answer);
            }
        }
    }
}

/// Adds an example to what has contents.
fn show(body: Option<&mut Value>, example: &Value) {
    let contents = body.and_then(|body| body.get_mut("content")).and_then(Value::as_object_mut);
    for content in contents.into_iter().flat_map(Map::values_mut) {
        if let Some(content) = content.as_object_mut() {
            content.insert("example".to_owned(), example.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_is_one_of_each_operation_and_no_other() {
        let examples: Map<String, Value> = serde_json::from_str(EXAMPLES).unwrap();
        let named: BTreeSet<_> = examples.keys().cloned().collect();
        let document = crate::openapi::document(crate::endpoints::all());
        let paths = document["paths"].as_object().unwrap().values();
        let operations = paths.flat_map(|item| item.as_object().unwrap().values());
        let there: BTreeSet<_> =
            operations.map(|row| row["operationId"].as_str().unwrap().to_owned()).collect();
        assert_eq!(named, there);
    }
}
