//! An operation as a command line of curl, with the examples of the document.

use serde_json::Value;

/// Longest body that stands in one line.
const LINE: usize = 60;

/// The command. It takes the server's address from `$URL` and the token from `$TOKEN`.
pub(super) fn command(method: &str, path: &str, operation: &Value) -> String {
    let mut command = "curl -fsS".to_owned();
    if operation["security"].is_array() {
        command += " -H \"Authorization: Bearer $TOKEN\"";
    }
    let (mut path, mut query) = (path.to_owned(), Vec::new());
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let (Some(name), Some(value)) = (parameter["name"].as_str(), parameter.get("example"))
        else {
            continue;
        };
        let value = plain(value);
        match parameter["in"].as_str() {
            Some("path") => path = path.replace(&format!("{{{name}}}"), &value),
            Some("header") => {
                command += &format!(" \\\n  -H {}", quoted(&format!("{name}: {value}")))
            }
            _ => query.push(format!("{name}={value}")),
        }
    }
    // Nothing but the answer tells that it is no usual request.
    let upgrades = operation["responses"].get("101").is_some();
    if upgrades {
        command += " --include --no-buffer --max-time 2 \\\n  -H \"Connection: Upgrade\" \
                    -H \"Upgrade: websocket\" \\\n  -H \"Sec-WebSocket-Version: 13\" \
                    -H \"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\"";
    }
    let body = body(&operation["requestBody"]);
    // Data is sent by POST unless another method is named.
    let sends = body.as_ref().is_some_and(|body| body.starts_with("-d"));
    if method != "get" && !(method == "post" && sends) {
        command += &format!(" -X {}", method.to_uppercase());
    }
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    command += &format!(" \\\n  \"$URL{path}{query}\"");
    if let Some(body) = body {
        command += &format!(" \\\n  {body}");
    }
    command
}

fn body(body: &Value) -> Option<String> {
    let (media, content) = body["content"].as_object()?.iter().next()?;
    if media != "application/json" {
        return Some("-T image.tar".to_owned());
    }
    let example = content.get("example")?;
    Some(format!("-d {}", quoted(&text(example))))
}

/// JSON in one line where it is short, any other text as it is.
pub(super) fn text(value: &Value) -> String {
    let line = plain(value);
    if value.is_string() || line.len() <= LINE { line } else { format!("{value:#}") }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn method_token_parameters_and_body_are_in_it() {
        let operation = json!({
            "security": [{ "bearer": [] }],
            "parameters": [
                { "name": "app", "in": "path", "example": "a" },
                { "name": "ttl", "in": "query", "example": 5 },
                { "name": "other", "in": "query" },
                { "name": "nonce", "in": "header", "example": "n" },
            ],
            "requestBody": { "content": { "application/json": { "example": { "a": "it's" } } } },
            "responses": { "200": {} },
        });
        let expected = "curl -fsS -H \"Authorization: Bearer $TOKEN\" \\\n  -H 'nonce: n' -X \
                        PUT \\\n  \
                        \"$URL/v1/a?ttl=5\" \\\n  -d '{\"a\":\"it'\\''s\"}'";
        assert_eq!(command("put", "/v1/{app}", &operation), expected);
        assert!(!command("post", "/v1/{app}", &operation).contains("-X"));
        let open = json!({ "responses": { "200": {} } });
        assert_eq!(command("get", "/healthz", &open), "curl -fsS \\\n  \"$URL/healthz\"");
        assert!(command("delete", "/", &open).contains("-X DELETE"));
    }
}
