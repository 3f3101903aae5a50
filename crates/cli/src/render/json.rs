//! JSON the way the field's command line writes it.

use serde::Serialize;
use serde_json::ser::PrettyFormatter;

/// A value as indented JSON. `<`, `>`, `&` and the two line separators of Unicode are escaped as Go
/// does; they only ever stand inside strings, so that replacing them in the finished text is right.
pub fn to_string(value: &(impl Serialize + ?Sized), indent: &str) -> String {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(indent.as_bytes());
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // Only maps with keys that are no strings can fail; there are none.
    if value.serialize(&mut serializer).is_err() {
        return "null".to_owned();
    }
    let mut escaped = String::with_capacity(text.len());
    for character in String::from_utf8_lossy(&text).chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(character)))
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indents_and_escapes_as_go_does() {
        let value = serde_json::json!({"a": "<b> & \u{2028}", "empty": {}, "list": [], "n": [1]});
        assert_eq!(
            to_string(&value, "    "),
            "{\n    \"a\": \"\\u003cb\\u003e \\u0026 \\u2028\",\n    \"empty\": {},\n    \"list\": \
             [],\n    \"n\": \
             [\n        1\n    ]\n}"
        );
    }
}
