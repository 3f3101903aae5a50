//! What registries and token servers say when they refuse something, in their own words.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{Response, header::CONTENT_TYPE};
use serde_json::Value;

use crate::json;

/// Most of an answer that is read for its words, bytes.
const LONGEST_ANSWER: usize = 64 << 10;
/// How long is waited for them.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Most that is passed on, characters.
const LONGEST: usize = 300;
/// Errors of one answer that are passed on.
const MOST: usize = 3;

/// `HTTP 403` and what the answer says, quoted.
pub(super) async fn of(response: Response) -> String {
    let status = format!("HTTP {}", response.status().as_u16());
    let is_page = says_page(&response);
    let mut body = Vec::new();
    let reading = async {
        let mut stream = response.bytes_stream();
        while let Some(Ok(chunk)) = stream.next().await {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST_ANSWER {
                break;
            }
        }
    };
    // What has come by then says enough, or nothing.
    let _ = tokio::time::timeout(READ_TIMEOUT, reading).await;
    if is_page || is_page_text(&body) {
        return format!("{status} with a web page (HTML): is it a registry?");
    }
    said(&body).map_or(status.clone(), |words| format!("{status}, \"{words}\""))
}

/// Whether an answer claims to be a page for browsers.
pub(super) fn says_page(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

/// Whether this is a page for browsers.
pub(super) fn is_page_text(body: &[u8]) -> bool {
    let start = &body.trim_ascii_start()[..body.trim_ascii_start().len().min(14)];
    let start = start.to_ascii_lowercase();
    start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
}

/// The words in a body: of the distribution specification's `errors`, OAuth's `error_description`
/// and their like, or a line of text.
pub(super) fn said(body: &[u8]) -> Option<String> {
    let words = match json::read::<Value>(body) {
        Ok(answer) => in_answer(&answer)?,
        Err(_) => {
            String::from_utf8(body.to_vec()).ok().filter(|text| text.trim().lines().count() == 1)?
        }
    };
    let words: String =
        words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    (!words.is_empty()).then_some(words)
}

fn in_answer(answer: &Value) -> Option<String> {
    let text = |value: &Value, name: &str| {
        value
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.trim().is_empty())
            .map(str::to_owned)
    };
    let of_error = |error: &Value| {
        let names = ["message", "error_description", "detail", "details", "code", "error"];
        let inner = || error.as_str().map(str::to_owned);
        names.iter().find_map(|name| text(error, name)).or_else(inner)
    };
    let mut words: Vec<String> = Vec::new();
    let errors = answer.get("errors").and_then(Value::as_array).into_iter().flatten();
    for said in errors.filter_map(of_error) {
        if !words.contains(&said) && words.len() < MOST {
            words.push(said);
        }
    }
    if !words.is_empty() {
        return Some(words.join("; "));
    }
    of_error(answer).or_else(|| of_error(answer.get("error")?)).filter(|_| answer.is_object())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_found_in_all_shapes_that_answers_have() {
        for (body, words) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"access is denied","detail":{"x":[1]}}]}"#,
                Some("access is denied"),
            ),
            (
                concat!(
                    r#"{"errors":[{"code":"A","message":"one"},{"message":"one"},"#,
                    r#"{"code":"TWO","message":null}]}"#
                ),
                Some("one; TWO"),
            ),
            (r#"{"errors":["just text"]}"#, Some("just text")),
            (r#"{"Errors":null,"Message":"of an API"}"#, Some("of an API")),
            (
                r#"{"details":"incorrect username or password"}"#,
                Some("incorrect username or password"),
            ),
            (
                r#"{"error":"invalid_grant","error_description":"token expired"}"#,
                Some("token expired"),
            ),
            (r#"{"error":{"code":401,"message":"nested"}}"#, Some("nested")),
            ("404 page not found\n", Some("404 page not found")),
            ("two\nlines", None),
            ("{}", None),
            ("", None),
            ("null", None),
            (r#"["x"]"#, None),
            (r#"{"errors":[]}"#, None),
            (r#"{"message":"  "}"#, None),
        ] {
            assert_eq!(said(body.as_bytes()).as_deref(), words, "{body}");
        }
        let evil = said(br#"{"message":"a\u001b[31m\r\nb"}"#).unwrap();
        assert_eq!(evil, "a [31m  b", "a terminal is told nothing");
        assert_eq!(
            said(format!(r#"{{"message":"{}"}}"#, "x".repeat(5000)).as_bytes()).unwrap().len(),
            LONGEST
        );
    }

    #[test]
    fn pages_are_known_by_how_they_start() {
        for page in ["<!DOCTYPE html><html>", "\n  <html lang=de>", "<HTML>", "<!doctype HTML"] {
            assert!(is_page_text(page.as_bytes()), "{page}");
        }
        for other in ["", "<", "{}", "<?xml version='1.0'?>", "text <html>"] {
            assert!(!is_page_text(other.as_bytes()), "{other}");
        }
    }
}
