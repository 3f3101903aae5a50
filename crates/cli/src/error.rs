//! How a command ends when it does not end well: text, hints, exit code.

use std::{fmt::Display, io};

use caddis_api::ErrorCode;
use caddis_client::ClientError;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Something is wrong, said in full.
    #[error("{message}")]
    Failed {
        /// What.
        message: String,
        /// What to do about it.
        hint: Option<String>,
        /// The server's id of the request, when it was the server that said no.
        request_id: Option<String>,
        /// Whether the server refused it, so that it certainly did nothing.
        is_refusal: bool,
    },
    /// A request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Time ran out.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The user was asked and said no. Not an error.
    #[error("declined")]
    Declined,
    /// A program in a machine ended with this exit code, and the user wants it to be ours.
    #[error("exit code {0}")]
    ExitCode(u8),
    /// Standard output or error can't be written.
    #[error("could not write the output: {0}")]
    Output(#[from] io::Error),
}

impl CliError {
    /// An error of our own.
    pub fn new(message: impl Into<String>) -> Self {
        Self::failed(message.into(), None)
    }

    /// With what to do about it.
    pub fn with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::failed(message.into(), Some(hint.into()))
    }

    fn failed(message: String, hint: Option<String>) -> Self {
        Self::Failed { message, hint, request_id: None, is_refusal: false }
    }

    /// A failed request, with what was attempted in front of the server's text.
    pub fn attempted(what: impl Display, error: ClientError) -> Self {
        match error {
            // These say by themselves all there is to say, and the hints go with them.
            ClientError::Unreachable { .. } => Self::Client(error),
            error if error.is_unauthenticated() => Self::Client(error),
            error => Self::Failed {
                message: format!("{what}: {error}"),
                hint: hint(&error),
                request_id: error.request_id().map(str::to_owned),
                is_refusal: error.request_id().is_some() && error.is_certain(),
            },
        }
    }

    /// With what it is about in front, unless the text says so.
    pub(crate) fn about(self, what: &str) -> Self {
        let text = self.to_string();
        let named = |text: &str| format!("{what}: {text}");
        match self {
            _ if text.contains(what) => self,
            Self::Failed { hint, request_id, is_refusal, .. } => {
                Self::Failed { message: named(&text), hint, request_id, is_refusal }
            }
            Self::DeadlineExceeded(_) => Self::DeadlineExceeded(named(&text)),
            error => error,
        }
    }
}

/// What to do about a failed request.
pub(crate) fn hint(error: &ClientError) -> Option<String> {
    if let ClientError::Unreachable { url, .. } = error {
        return Some(format!(
            "No server answers at {url}. Start one with 'caddis serve', or name another with \
             --api-url or CADDIS_API_URL."
        ));
    }
    if error.is_unauthenticated() {
        return Some(
            "The server rejected this access token. Give another with --access-token or \
             CADDIS_API_TOKEN, or store one with 'caddis auth login'; the server's first token is \
             in the file root.token of its data directory."
                .to_owned(),
        );
    }
    let application_status = match error {
        ClientError::Api { application_status, .. } => application_status.as_deref(),
        _ => None,
    };
    match (application_status, error.code()) {
        (Some("insufficient_capacity"), _) if error.to_string().contains("machine") => {
            Some("Try choosing a different region for machine creation".to_owned())
        }
        (Some("name_taken"), _) => {
            Some("The name is already in use, choose another one.".to_owned())
        }
        (_, Some(ErrorCode::RateLimited)) => Some("Wait a moment, then try again.".to_owned()),
        _ => None,
    }
}
