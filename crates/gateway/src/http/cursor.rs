//! Opaque positions in lists. They are good for thirty minutes from the first page on, and later
//! pages show only what was there then.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use caddis_api::{ApiError, UnixMillis};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::http::query::Params;

const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// A position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// When the first page was asked for.
    pub first_ms: UnixMillis,
    /// The last thing already given; empty on the first page.
    pub after: String,
    /// What the first page counted.
    #[serde(default)]
    pub total: u64,
}

/// The part of a list that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// At most so many.
    pub limit: usize,
    /// Where it begins.
    pub cursor: Cursor,
}

/// What [`page`] reads.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters")]
pub(crate) struct PageParams {
    /// Maximum number of entries per page; default: all.
    #[param(minimum = 1)]
    limit: Option<u64>,
    /// Cursor given by the page before; needs `limit`.
    cursor: Option<String>,
}

/// Reads `limit` and `cursor`; nothing when the whole list is asked for.
pub(crate) fn page(params: &Params, maximum: u64) -> Result<Option<Page>, ApiError> {
    let limit = params.number("limit", 1, maximum)?;
    let now = UnixMillis::now();
    match (limit, params.get("cursor")) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(ApiError::invalid("invalid parameter cursor, it needs limit as well"))
        }
        (Some(limit), cursor) => {
            let first = Cursor { first_ms: now, after: String::new(), total: 0 };
            let cursor = cursor.map_or(Ok(first), |text| Cursor::read(text, now))?;
            Ok(Some(Page { limit: usize::try_from(limit).unwrap_or(usize::MAX), cursor }))
        }
    }
}

impl Cursor {
    /// The cursor of the page after `after`.
    pub fn following(&self, after: impl ToString, total: u64) -> String {
        let next = Self { first_ms: self.first_ms, after: after.to_string(), total };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&next).unwrap_or_default())
    }

    fn read(text: &str, now: UnixMillis) -> Result<Self, ApiError> {
        let invalid =
            || ApiError::invalid("invalid parameter cursor, start again from the first page");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        let cursor: Self = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        if now.since(cursor.first_ms).max(cursor.first_ms.since(now)) > LIFETIME {
            return Err(ApiError::invalid("expired cursor, start again from the first page"));
        }
        Ok(cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_and_expires() {
        let at = UnixMillis::new;
        let first = Cursor { first_ms: at(1_000), after: String::new(), total: 0 };
        let text = first.following("x", 7);
        let read = Cursor::read(&text, at(2_000)).unwrap();
        assert_eq!(read, Cursor { first_ms: at(1_000), after: "x".to_owned(), total: 7 });
        assert!(Cursor::read(&text, at(1_001) + LIFETIME).is_err());
        assert!(Cursor::read("%%%", at(0)).is_err());
    }
}
