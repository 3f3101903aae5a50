//! What can go wrong with a request, and what to do about it.

use caddis_api::{
    ErrorCode,
    error::{ApiError, ErrorBody},
};

/// Why a request failed. Never holds the token.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with an error.
    #[error("{message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// The server's text, or what little can be said when its body is not the API's.
        message: String,
        /// Stable reason; absent when something other than our server answered.
        code: Option<ErrorCode>,
        /// Application status, e.g. `name_taken`.
        application_status: Option<String>,
        /// The server's id of the request, to find it in its log.
        request_id: Option<String>,
    },
    /// No connection.
    #[error("could not connect to {url}: {reason}")]
    Unreachable {
        /// The server.
        url: String,
        /// What the system says.
        reason: String,
    },
    /// The connection broke after the request was sent: it may or may not have been carried out.
    #[error(
        "{request} broke off: {reason}; check whether it was carried out before sending it again"
    )]
    Interrupted {
        /// Method and path.
        request: String,
        /// What the system says.
        reason: String,
    },
    /// No answer within the request's time.
    #[error(
        "{request} got no answer in time; check whether it was carried out before sending it again"
    )]
    TimedOut {
        /// Method and path.
        request: String,
    },
    /// The answer is not what the API promises.
    #[error(
        "{request} got an unreadable answer: {reason}; is it a Caddis server, and of this version?"
    )]
    Unreadable {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The base URL can't be used.
    #[error("invalid server address '{url}': {reason}; use for example http://127.0.0.1:4280")]
    InvalidUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token can't be sent.
    #[error("the access token contains characters that can't be sent in a header; copy it again")]
    InvalidToken,
    /// The HTTP client could not be set up.
    #[error(
        "could not set up the HTTP client: {0}; are CA certificates installed (package \
         ca-certificates)?"
    )]
    Setup(String),
}

impl ClientError {
    /// HTTP status, when the server answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The server's id of the request.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Api { request_id, .. } => request_id.as_deref(),
            _ => None,
        }
    }

    /// The server's stable reason.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api { code, .. } => *code,
            _ => None,
        }
    }

    /// Whether the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether the server has refused the token.
    pub fn is_unauthenticated(&self) -> bool {
        self.status() == Some(401)
    }

    /// Whether the same request may succeed when sent again a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Api { status, code, .. } => {
                code.is_some_and(ErrorCode::is_retryable) || *status == 429 || *status >= 500
            }
            Self::Unreachable { .. } | Self::Interrupted { .. } | Self::TimedOut { .. } => true,
            _ => false,
        }
    }

    /// Whether it is certain what became of the request: it was answered, or never sent.
    pub fn is_certain(&self) -> bool {
        match self {
            // A proxy in between that gave up knows nothing of it, and words of its own.
            Self::Api { status, code, .. } => *status < 500 || code.is_some(),
            Self::Unreachable { .. } => true,
            Self::InvalidUrl { .. } | Self::InvalidToken | Self::Setup(_) => true,
            Self::Interrupted { .. } | Self::TimedOut { .. } | Self::Unreadable { .. } => false,
        }
    }

    /// An error reply of the server.
    pub(crate) fn from_reply(status: u16, header_request_id: Option<String>, body: &[u8]) -> Self {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => Self::Api {
                status,
                message: body.error,
                code: body.code,
                application_status: body.status,
                request_id: header_request_id.or(body.request_id),
            },
            Err(_) => {
                let text = String::from_utf8_lossy(&body[..body.len().min(512)]);
                Self::Api {
                    status,
                    message: format!("request returned non-2xx status: {status}: {}", text.trim()),
                    code: None,
                    application_status: None,
                    request_id: header_request_id,
                }
            }
        }
    }

    /// An error that arrived inside a stream.
    pub(crate) fn from_api_error(error: ApiError) -> Self {
        Self::Api {
            status: error.code.http_status(),
            application_status: error.code.application_status().map(str::to_owned),
            message: error.message,
            code: Some(error.code),
            request_id: None,
        }
    }
}

/// The innermost cause, which is the one that tells people something ("connection refused").
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
