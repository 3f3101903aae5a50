//! Requests that fail.

use std::{error::Error as _, io, time::Duration};

use crate::ImageError;

/// A request that did not work out.
pub(super) struct Failure {
    pub(super) error: ImageError,
    /// Another try may help.
    pub(super) again: bool,
    /// How long it asks to be left alone until then.
    pub(super) asked: Option<Duration>,
}

impl Failure {
    /// One that another try may help.
    pub(super) fn passing(error: ImageError) -> Self {
        Self { error, again: true, asked: None }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self { error, again: false, asked: None }
    }
}

pub(super) fn no_client(error: reqwest::Error) -> ImageError {
    ImageError::Program {
        program: "TLS".to_owned(),
        what: "setting up".to_owned(),
        reason: format!("{}; is ca-certificates installed?", chain(error)),
    }
}

/// Addresses are left out of it: those of redirects carry signatures that are as good as a
/// password.
pub(super) fn failed_request(target: &str, what: &str, error: reqwest::Error) -> Failure {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(inner) = inner.downcast_ref::<io::Error>()
            && inner.kind() == io::ErrorKind::PermissionDenied
            && inner.raw_os_error().is_none()
        {
            return ImageError::Refused { target: target.to_owned(), reason: inner.to_string() }
                .into();
        }
        cause = inner.source();
    }
    let error = ImageError::Unreachable {
        registry: target.to_owned(),
        what: what.to_owned(),
        reason: chain(error),
    };
    Failure::passing(error)
}

fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
