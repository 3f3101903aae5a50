//! What registries and token servers send, and files with logins, damaged in all ways.

use jiff::Timestamp;
use proptest::prelude::*;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::json;

use super::{Repository, challenge, credentials, patience, token::Token, words};
use crate::fuzz::damaged;

#[test]
fn challenges() {
    let sound = [
        r#"Bearer realm="https://a.io/t?x=1",service="svc",scope="repository:a:pull,push""#,
        r#"Negotiate YWJj==, Basic realm="a \"b\"", bearer realm=https://a.io/t service=svc"#,
    ];
    damaged(&sound.map(|text| text.as_bytes().to_vec()), |input| {
        let text = String::from_utf8_lossy(input);
        let found = challenge::parse(&text);
        prop_assert!(found.len() <= text.len());
        for challenge in &found {
            for name in ["realm", "service"] {
                prop_assert!(
                    challenge
                        .parameter(name)
                        .is_none_or(|value| !value.is_empty() && value.len() <= text.len())
                );
            }
        }
        if let Ok(value) = HeaderValue::from_bytes(input) {
            challenge::challenges(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value.clone())]));
            let asked = patience::asked(
                &HeaderMap::from_iter([(RETRY_AFTER, value)]),
                Timestamp::UNIX_EPOCH,
            );
            prop_assert!(
                asked.is_none_or(|asked| patience::until(asked, Timestamp::UNIX_EPOCH).len() < 200)
            );
        }
        Ok(())
    });
}

#[test]
fn retry_after() {
    damaged(&[b"120".to_vec(), b"Sun, 06 Nov 1994 08:49:37 GMT".to_vec()], |input| {
        let Ok(value) = HeaderValue::from_bytes(input) else { return Ok(()) };
        let asked = patience::asked(&HeaderMap::from_iter([(RETRY_AFTER, value)]), Timestamp::MAX);
        prop_assert!(asked.is_none_or(|asked| patience::until(asked, Timestamp::MAX).len() < 200));
        Ok(())
    });
}

#[test]
fn answers_of_token_servers() {
    let sound = [
        json!({"token": "secret", "access_token": null, "expires_in": 300,
               "issued_at": "2026-01-01T00:00:00Z"}),
        json!({"access_token": "secret", "expires_in": "299.5"}),
    ];
    damaged(&sound.map(|answer| answer.to_string().into_bytes()), |input| {
        if let Some(token) = Token::read(input) {
            prop_assert!(!token.secret.is_empty() && (60..=86_400).contains(&token.life.as_secs()));
        }
        Ok(())
    });
}

#[test]
fn what_registries_say() {
    let sound = [
        json!({"errors": [{"code": "DENIED", "message": "no", "detail": {"x": [1]}},
                          {"message": "never"}]})
        .to_string(),
        json!({"error": {"code": 401, "message": "nested"}, "error_description": "x"}).to_string(),
        "404 page not found\n".to_owned(),
    ];
    damaged(&sound.map(String::into_bytes), |input| {
        let said = words::said(input).unwrap_or_default();
        prop_assert!(said.chars().count() <= 300 && !said.contains(char::is_control), "{said:?}");
        words::is_page_text(input);
        Ok(())
    });
}

#[test]
fn files_with_logins() {
    let sound = json!({
        "auths": {"r.io": {"auth": "dXNlcjpodW50ZXIy"},
                  "r.io/team": {"username": "user", "password": "hunter2", "auth": ""},
                  "https://index.docker.io/v1/": {"identitytoken": "hunter2"}, "null.io": null},
        "credHelpers": {"ecr.io": "ecr-login"}, "credsStore": "desktop", "HttpHeaders": {"x": "y"},
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    damaged(&[sound.to_string().into_bytes()], |input| {
        // What damage made a key or the name of a helper is no secret any more.
        let count = |text: &[u8], part: &[u8]| {
            text.windows(part.len()).filter(|window| *window == part).count()
        };
        let is_only = |secret: &str, fields: &[&str]| {
            let of_fields = fields
                .iter()
                .map(|field| count(input, format!("\"{field}\":\"{secret}\"").as_bytes()));
            count(input, secret.as_bytes()) == of_fields.sum::<usize>()
        };
        let secrets = [
            ("hunter2", is_only("hunter2", &["password", "identitytoken"])),
            ("dXNlcjpodW50ZXIy", is_only("dXNlcjpodW50ZXIy", &["auth"])),
        ];
        std::fs::write(&file, input).unwrap();
        for registry in ["r.io", "docker.io", "ecr.io", "null.io"] {
            let repository =
                Repository { registry: registry.to_owned(), name: "team/app".to_owned() };
            let said = match credentials::look_up(Some(&file), &repository) {
                Ok(logins) => format!("{logins:?} {}", logins.advice()),
                Err(error) => format!("{error} {error:?}"),
            };
            for (secret, _) in secrets.iter().filter(|(_, is_only)| *is_only) {
                prop_assert!(!said.contains(secret), "{said}");
            }
        }
        Ok(())
    });
}
