//! An OpenAPI document reduced to facts: places, and the types that stand there, in the notation of
//! `reference.tsv`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// Types by their place.
pub type Facts = BTreeMap<String, String>;

/// What a document says of operations and of the types they use, but for those whose path begins
/// with `without`.
pub fn facts(document: &Value, without: &str) -> Facts {
    let mut reader = Reader { schemas: &document["components"]["schemas"], seen: BTreeSet::new() };
    let mut facts = Facts::new();
    let paths = document["paths"].as_object().unwrap().iter();
    for (path, item) in paths.filter(|(path, _)| !path.starts_with(without)) {
        for (method, operation) in item.as_object().unwrap() {
            let operation = reader.operation(operation);
            let head = format!("{} {path}", method.to_uppercase());
            facts.extend(
                operation.into_iter().map(|(place, kind)| (format!("{head}{place}"), kind)),
            );
        }
    }
    let mut done = BTreeSet::new();
    while let Some(name) = reader.seen.difference(&done).next().cloned() {
        let schema = &reader.schemas[&name];
        let fields = reader.fields(schema);
        let kind = if fields.is_empty() { reader.kind(schema) } else { String::new() };
        for (field, schema) in &fields {
            facts.insert(format!("{name} {field}"), reader.kind(schema));
        }
        facts.insert(name.clone(), kind);
        done.insert(name);
    }
    facts
}

struct Reader<'a> {
    schemas: &'a Value,
    /// Types that were named.
    seen: BTreeSet<String>,
}

impl Reader<'_> {
    fn operation(&mut self, operation: &Value) -> Vec<(String, String)> {
        let mut facts = vec![(String::new(), String::new())];
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let (place, name) =
                (parameter["in"].as_str().unwrap(), parameter["name"].as_str().unwrap());
            // Those of the path stand in the path.
            if place != "path" {
                facts.push((format!(" {place} {name}"), self.kind(&parameter["schema"])));
            }
        }
        if let Some(body) = operation.get("requestBody") {
            facts.push((" body".to_owned(), self.content(body)));
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            facts.push((format!(" {status}"), self.content(response)));
        }
        facts
    }

    fn content(&mut self, body: &Value) -> String {
        let content = body["content"].as_object();
        let json = content.and_then(|content| content.get("application/json"));
        match (json, content.and_then(|content| content.iter().next())) {
            (Some(json), _) => self.kind(&json["schema"]),
            (None, Some((media, other))) => format!("{media} {}", self.kind(&other["schema"])),
            (None, None) => String::new(),
        }
    }

    /// The fields of an object, those of its parts too.
    fn fields(&self, schema: &Value) -> Map<String, Value> {
        let mut fields = Map::new();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            fields.extend(self.fields(named(part).map_or(part, |name| &self.schemas[name])));
        }
        fields.extend(schema["properties"].as_object().cloned().unwrap_or_default());
        fields
    }

    /// A type in short. Types that have a name and are more than a string or a number stay a name.
    fn kind(&mut self, schema: &Value) -> String {
        if let Some(name) = named(schema) {
            let target = &self.schemas[name];
            let worth_a_name = !self.fields(target).is_empty()
                || ["enum", "oneOf", "anyOf"].iter().any(|keyword| target.get(keyword).is_some());
            if worth_a_name {
                self.seen.insert(name.to_owned());
                return name.to_owned();
            }
            return self.kind(target);
        }
        if let (Some([part]), None) =
            (schema["allOf"].as_array().map(Vec::as_slice), schema.get("properties"))
        {
            return self.kind(part);
        }
        if let Some(alternatives) = schema.get("oneOf").or_else(|| schema.get("anyOf")) {
            let alternatives =
                alternatives.as_array().unwrap().iter().filter(|schema| schema["type"] != "null");
            let kinds: BTreeSet<_> = alternatives.map(|schema| self.kind(schema)).collect();
            return Vec::from_iter(kinds).join("|");
        }
        let fields: BTreeMap<_, _> = self.fields(schema).into_iter().collect();
        if !fields.is_empty() {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, schema)| format!("{name}: {}", self.kind(schema)))
                .collect();
            return format!("{{{}}}", fields.join(", "));
        }
        let mut words: Vec<_> = match &schema["type"] {
            Value::Array(words) => {
                words.iter().filter_map(Value::as_str).filter(|word| *word != "null").collect()
            }
            word => word.as_str().into_iter().collect(),
        };
        words.sort_unstable();
        match words[..] {
            [] => "any".to_owned(),
            ["array"] => format!("[{}]", self.kind(&schema["items"])),
            ["object"] => match schema["additionalProperties"].as_object() {
                Some(values) if !values.is_empty() => {
                    format!("{{string: {}}}", self.kind(&schema["additionalProperties"]))
                }
                _ => "object".to_owned(),
            },
            _ => {
                let word =
                    |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let values = schema["enum"]
                    .as_array()
                    .map(|values| BTreeSet::from_iter(values.iter().map(word)));
                let values = values.map(|values| format!("({})", Vec::from_iter(values).join("|")));
                format!("{}{}", words.join("|"), values.unwrap_or_default())
            }
        }
    }
}

fn named(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}
