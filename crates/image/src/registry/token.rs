//! Answers of token servers (distribution, "Token Authentication Specification"; OAuth 2.0, RFC
//! 6749, 5.1).

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::json;

/// What a token lives that says nothing about it, or less; clients have always relied on that.
const SHORTEST_LIFE: u64 = 60;
/// An absurd life is cut to this.
const LONGEST_LIFE: u64 = 86_400;

/// A token.
#[derive(PartialEq, Eq)]
pub(super) struct Token {
    pub(super) secret: String,
    pub(super) life: Duration,
}

// It is a secret.
impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Token(.., {:?})", self.life)
    }
}

impl Token {
    /// What an answer gives; `None` when it gives none.
    pub(super) fn read(answer: &[u8]) -> Option<Self> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Answer {
            token: Value,
            access_token: Value,
            expires_in: Value,
        }
        let Answer { token, access_token, expires_in } = json::read(answer).ok()?;
        let said = |value: &Value| {
            value.as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let secret = said(&token).or_else(|| said(&access_token))?;
        // A number or a text; whatever makes no sense says nothing.
        let seconds = expires_in.as_f64().or_else(|| expires_in.as_str()?.trim().parse().ok());
        let seconds = seconds.filter(|seconds| seconds.is_finite()).unwrap_or_default();
        let life = (seconds as u64).clamp(SHORTEST_LIFE, LONGEST_LIFE);
        Some(Self { secret, life: Duration::from_secs(life) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_in_all_shapes() {
        for (answer, secret, life) in [
            (r#"{"token":"a","expires_in":300}"#, "a", 300),
            (r#"{"token":null,"access_token":"b","expires_in":300}"#, "b", 300),
            (r#"{"token":"","access_token":"b"}"#, "b", 60),
            (r#"{"token":"a","access_token":"b","expires_in":null}"#, "a", 60),
            (r#"{"token":7,"access_token":"b","expires_in":"3600"}"#, "b", 3600),
            (r#"{"token":"a","expires_in":299.9,"issued_at":null,"scope":[]}"#, "a", 299),
            (r#"{"token":"a","expires_in":3e2}"#, "a", 300),
            (r#"{"Access_Token":"b","expires_in":"soon"}"#, "b", 60),
            (r#"{"token":"a","expires_in":-5}"#, "a", 60),
            (r#"{"token":"a","expires_in":1}"#, "a", 60),
            (r#"{"token":"a","expires_in":1e300}"#, "a", 86_400),
            (r#"{"token":" a\n","expires_in":{}}"#, "a", 60),
        ] {
            let token = Token::read(answer.as_bytes()).unwrap_or_else(|| panic!("{answer}"));
            assert_eq!((token.secret.as_str(), token.life.as_secs()), (secret, life), "{answer}");
            assert!(!format!("{token:?}").contains(secret));
        }
        for answer in [
            "",
            "{}",
            "null",
            "[]",
            "<html>",
            r#"{"token":null,"access_token":null}"#,
            r#"{"token":[]}"#,
        ] {
            assert_eq!(Token::read(answer.as_bytes()), None, "{answer}");
        }
    }
}
