//! Query parameters. Unknown ones are ignored, as clients append what they like.

use std::{convert::Infallible, str::FromStr};

use axum::{extract::FromRequestParts, http::request::Parts};
use caddis_api::{ApiDuration, ApiError};
use serde::de::{DeserializeOwned, IntoDeserializer as _};

/// The parameters of a request, decoded, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params(pub Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect()))
    }
}

impl Params {
    /// The last value of a parameter; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A truth value; false when absent.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("false" | "0" | "f" | "no") => Ok(false),
            Some("true" | "1" | "t" | "yes") => Ok(true),
            Some(other) => Err(invalid(name, other, "true or false")),
        }
    }

    /// A number within limits.
    pub fn number(&self, name: &str, minimum: u64, maximum: u64) -> Result<Option<u64>, ApiError> {
        let expected = || format!("{minimum} to {maximum}");
        let Some(text) = self.get(name) else { return Ok(None) };
        let number: u64 = text.parse().map_err(|_| invalid(name, text, &expected()))?;
        if (minimum..=maximum).contains(&number) {
            Ok(Some(number))
        } else {
            Err(invalid(name, text, &expected()))
        }
    }

    /// Something that is read from text.
    pub fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &self,
        name: &str,
    ) -> Result<Option<T>, ApiError> {
        self.get(name)
            .map(|text| {
                text.parse()
                    .map_err(|e| ApiError::invalid(format!("invalid parameter {name}: {e}")))
            })
            .transpose()
    }

    /// One of the words that a type knows.
    pub fn word<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let word = T::deserialize(text.into_deserializer());
        let word = word.map_err(|e: serde::de::value::Error| {
            ApiError::invalid(format!("invalid parameter {name}: {e}"))
        });
        word.map(Some)
    }

    /// Go's notation or a number of seconds.
    pub fn duration(&self, name: &str) -> Result<Option<ApiDuration>, ApiError> {
        self.parsed(name)
    }
}

/// 400 that names parameter, value and what would be right.
pub(crate) fn invalid(name: &str, value: &str, expected: &str) -> ApiError {
    let value: String = value.escape_debug().take(100).collect();
    ApiError::invalid(format!("invalid parameter {name} '{value}', use {expected}"))
}
