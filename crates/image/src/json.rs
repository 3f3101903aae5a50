//! JSON as the Go programs that write images, and everybody else's clients, read it: names of
//! fields in any case, `null` and absent alike, a byte that is not UTF-8 harms only its own text.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Objects whose names are data and keep their case, and whose values may be null.
const TABLES: [&str; 3] = ["labels", "annotations", "exposedports"];

/// Reads a document into a type whose fields are named in lower case and all have defaults.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let value = serde_json::from_str(&String::from_utf8_lossy(bytes))?;
    serde_json::from_value(tidied(value))
}

/// The same with all names of fields in lower case, and without nulls. Of names that differ in case
/// the last counts. (The parser bounds how deep documents are nested.)
fn tidied(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            items.into_iter().filter(|item| !item.is_null()).map(tidied).collect()
        }
        Value::Object(fields) => {
            let mut tidy = Map::new();
            for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
                let name = name.to_ascii_lowercase();
                let value = if TABLES.contains(&name.as_str()) { value } else { tidied(value) };
                tidy.insert(name, value);
            }
            Value::Object(tidy)
        }
        other => other,
    }
}
