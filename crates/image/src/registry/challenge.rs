//! What a registry asks for in `WWW-Authenticate` (RFC 9110, 11.6.1), as registries write it:
//! values with and without quotes, with commas missing or doubled. What can't be read loses only
//! itself.

use reqwest::header::HeaderMap;

/// Longest header that is looked at, bytes.
const LONGEST: usize = 16 << 10;

/// One way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The first value of a parameter that says something.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let called = |(known, value): &&(String, String)| {
            known.eq_ignore_ascii_case(name) && !value.is_empty()
        };
        self.parameters.iter().find(called).map(|(_, value)| value.as_str())
    }
}

/// All that these headers ask for.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(reqwest::header::WWW_AUTHENTICATE);
    values.iter().flat_map(|value| parse(&String::from_utf8_lossy(value.as_bytes()))).collect()
}

pub(super) fn parse(text: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let separator = |c: char| c == ',' || c.is_whitespace();
    let mut rest = text.get(..LONGEST).unwrap_or(text).trim_start_matches(separator);
    while !rest.is_empty() {
        let end = rest.find(|c| c == '=' || separator(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = match after.trim_start().strip_prefix('=') {
            Some(after) => {
                let (value, after) = value(after.trim_start());
                if let Some(challenge) = challenges.last_mut() {
                    challenge.parameters.push((name.to_owned(), value));
                }
                after
            }
            None => {
                challenges.push(Challenge { scheme: name.to_owned(), parameters: Vec::new() });
                after
            }
        }
        .trim_start_matches(separator);
    }
    challenges
}

/// A value, without its quotes, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "") // never closed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(text: &str) -> Challenge {
        let found = parse(text)
            .into_iter()
            .find(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer"));
        found.unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn a_realm_is_found_however_the_challenge_is_written() {
        for text in [
            r#"Bearer realm="https://a.io/t?x=1",service="svc",scope="repository:a:pull,push""#,
            r#"bearer REALM="https://a.io/t?x=1", Service=svc"#,
            r"Bearer realm=https://a.io/t?x=1,service=svc",
            r"Bearer realm=https://a.io/t?x=1 service=svc",
            r#"Bearer realm = "https://a.io/t?x=1" , , service = "svc""#,
            r#"Bearer service=svc realm="https://a.io/t?x=1"#,
            r#"Bearer error=,realm="https://a.io/t?x=1",service="s\vc",junk"#,
            r#"Bearer scope=[bad"value,realm="https://a.io/t?x=1",service="svc""#,
            concat!(
                r#"Negotiate YWJj==, Basic realm="other", "#,
                r#"Bearer realm="https://a.io/t?x=1",service="svc""#
            ),
            r#",Bearer ,realm="",realm="https://a.io/t?x=1",service="svc", Basic realm="other""#,
            "Bearer\trealm=\"https://a.io/t?x=1\",\tservice=\"svc\"",
        ] {
            let challenge = bearer(text);
            assert_eq!(challenge.parameter("realm"), Some("https://a.io/t?x=1"), "{text}");
            assert_eq!(challenge.parameter("service"), Some("svc"), "{text}");
        }
    }

    #[test]
    fn what_is_no_challenge_asks_for_nothing_known() {
        for text in ["", ",,,", "=", "\"", "a=b", "\\", "Bearer=\"x\"", "\u{e4}=\u{fc},\u{1f600}"] {
            assert!(
                parse(text).iter().all(|challenge| challenge.parameter("realm").is_none()),
                "{text}"
            );
        }
        assert_eq!(parse("Basic").len(), 1);
        let schemes: Vec<_> =
            parse("Basic realm=\"a\", Bearer realm=\"b\"").into_iter().map(|c| c.scheme).collect();
        assert_eq!(schemes, ["Basic", "Bearer"]);
        assert!(parse(&"a ".repeat(100_000)).len() <= LONGEST);
    }
}
