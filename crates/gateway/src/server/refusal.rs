//! What a connection is told before there is a request: as JSON and with a request id, like all
//! other errors.
//!
//! Hyper answers heads that are too large or no HTTP by itself, with an empty body, and nothing in
//! it says otherwise. Such an answer is known by its form, and by coming while no request is in
//! progress; [`super::stream`] puts ours in its place.

use axum::http::StatusCode;
use caddis_api::{ApiError, ErrorCode, RegionCode};

/// Largest head of a request, bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Most header fields.
pub(super) const MAX_HEADERS: usize = 100;
/// Longest head that hyper writes by itself.
const LONGEST: usize = 512;

/// Makes answers; knows what request ids end with.
#[derive(Clone)]
pub(super) struct Refusals {
    region: RegionCode,
}

impl Refusals {
    pub(super) fn new(region: &RegionCode) -> Self {
        Self { region: region.clone() }
    }

    /// In place of one of hyper's.
    pub(super) fn instead_of(&self, status: StatusCode) -> Vec<u8> {
        self.answer(status, &head_error(status), "")
    }

    /// For whom there is no place.
    pub(super) fn busy(&self) -> Vec<u8> {
        let text = "unavailable: too many connections with requests in progress; nothing was done, \
                    try again";
        // Sent again by usual clients by themselves, and rightly: nothing was carried out.
        self.answer(
            StatusCode::SERVICE_UNAVAILABLE,
            &ApiError::new(ErrorCode::Unavailable, text),
            "retry-after: 1\r\n",
        )
    }

    fn answer(&self, status: StatusCode, error: &ApiError, more: &str) -> Vec<u8> {
        let id = format!("{}-{}", ulid::Ulid::new(), self.region);
        tracing::debug!(request_id = id, status = status.as_u16(), "connection refused");
        // It is plain data, for which serialisation has no way to fail.
        let body = serde_json::to_string(&error.body(Some(id.clone()))).unwrap_or_default();
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: \
             {}\r\nfly-request-id: {id}\r\n{more}connection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// What is wrong with a head.
pub(crate) fn head_error(status: StatusCode) -> ApiError {
    match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ApiError::new(
            ErrorCode::TooLarge,
            format!(
                "the header fields are too large, cannot exceed {MAX_HEAD} bytes and {MAX_HEADERS} \
                 fields"
            ),
        ),
        StatusCode::URI_TOO_LONG => ApiError::new(ErrorCode::TooLarge, "the path is too long"),
        _ => ApiError::invalid("invalid request: it is not HTTP"),
    }
}

/// Where in what is to be written an answer begins that hyper made by itself, and its status.
pub(super) fn find(bytes: &[u8]) -> Option<(usize, StatusCode)> {
    const VERSION: &[u8] = b"HTTP/1.";
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let from = bytes.len().saturating_sub(LONGEST);
    let at = from + bytes[from..].windows(VERSION.len()).rposition(|window| window == VERSION)?;
    let head = std::str::from_utf8(&bytes[at..]).ok()?;
    let status: StatusCode = head.get(9..12)?.parse().ok()?;
    let expected = [
        StatusCode::BAD_REQUEST,
        StatusCode::URI_TOO_LONG,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    ];
    // An answer of an endpoint has an id.
    let bare = head.contains("\r\ncontent-length: 0\r\n") && !head.contains("\r\nfly-request-id: ");
    (expected.contains(&status) && bare).then_some((at, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_that_hyper_made_by_itself_are_found() {
        let own = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: \
                   close\r\ncontent-length: 0\r\n\r\n";
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        assert_eq!(find(own.as_bytes()), Some((0, status)));
        assert_eq!(find(format!("0\r\n\r\n{own}").as_bytes()), Some((5, status)));
        let ids = own.replace("\r\n\r\n", "\r\nfly-request-id: 1\r\n\r\n");
        for other in [
            &own[..own.len() - 1],
            &ids,
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 7\r\n\r\n",
            "data: {}\r\n\r\n",
            "\r\n\r\n",
            "HTTP/1.",
            "",
        ] {
            assert_eq!(find(other.as_bytes()), None, "{other:?}");
        }
    }
}
