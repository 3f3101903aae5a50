//! Errors as clients see them: the field's `error` and `status`, plus a stable `code`, `retryable`
//! and the request id.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Stable, machine-readable reason. Its HTTP status follows from it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// A parameter, body or config is wrong.
    InvalidArgument,
    /// A value is well-formed but not acceptable (taken or illegal names, limits).
    Unprocessable,
    /// The name is in use.
    NameTaken,
    /// No or no valid token.
    Unauthenticated,
    /// The token does not allow this.
    PermissionDenied,
    /// No such thing.
    NotFound,
    /// Timed out before the condition held.
    DeadlineExceeded,
    /// Someone else holds the lease, or changed the machine at the same time.
    Aborted,
    /// It already exists.
    AlreadyExists,
    /// The state does not allow it.
    FailedPrecondition,
    /// Body too large.
    TooLarge,
    /// Too many requests.
    RateLimited,
    /// No host has enough free capacity.
    InsufficientCapacity,
    /// The host of a volume has no room for a machine with it.
    VolumePlacementCapacity,
    /// The image does not exist or may not be pulled.
    ImageUnavailable,
    /// Something the server depends on does not answer; retry later.
    Unavailable,
    /// The host's disk is full; requests that free space still work.
    DiskFull,
    /// Server error.
    Internal,
}

impl ErrorCode {
    /// HTTP status code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::DeadlineExceeded => 408,
            Self::Aborted | Self::AlreadyExists => 409,
            Self::FailedPrecondition | Self::VolumePlacementCapacity => 412,
            Self::TooLarge => 413,
            Self::Unprocessable
            | Self::NameTaken
            | Self::InsufficientCapacity
            | Self::ImageUnavailable => 422,
            Self::RateLimited => 429,
            Self::Internal => 500,
            // Not 502 or 503: the usual client sends those again by itself, also for creates.
            Self::Unavailable => 504,
            Self::DiskFull => 507,
        }
    }

    /// The application status of the field's error bodies, for the codes that have one.
    pub fn application_status(self) -> Option<&'static str> {
        match self {
            Self::NameTaken => Some("name_taken"),
            Self::InsufficientCapacity => Some("insufficient_capacity"),
            Self::VolumePlacementCapacity => Some("volume_placement_capacity"),
            _ => None,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::DeadlineExceeded
                | Self::Aborted
                | Self::RateLimited
                | Self::InsufficientCapacity
                | Self::VolumePlacementCapacity
                | Self::Unavailable
                | Self::DiskFull
        )
    }
}

/// An error on its way to a client. Also what workers answer over the bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Reason.
    pub code: ErrorCode,
    /// Text for people; clients match on some of these, see the reference's list.
    pub message: String,
    /// Nothing was done, though the code alone leaves that open. For the server itself: clients
    /// aren't told.
    #[serde(skip)]
    pub nothing_done: bool,
}

impl ApiError {
    /// An error with this text.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), nothing_done: false }
    }

    /// 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// 404 with the text that clients look for.
    pub fn machine_not_found() -> Self {
        Self::new(ErrorCode::NotFound, "machine not found")
    }

    /// 404.
    pub fn volume_not_found() -> Self {
        Self::new(ErrorCode::NotFound, "volume not found")
    }

    /// 404.
    pub fn snapshot_not_found() -> Self {
        Self::new(ErrorCode::NotFound, "snapshot not found")
    }

    /// 412 `failed_precondition: …`.
    pub fn precondition(message: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::FailedPrecondition, format!("failed_precondition: {message}"))
    }

    /// 409 `aborted: …`.
    pub fn aborted(message: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Aborted, format!("aborted: {message}"))
    }

    /// 507: a change that could not be recorded, so that nothing has changed.
    pub fn disk_full() -> Self {
        let text = "disk_full: the disk of the host is full, nothing was changed; free space on \
                    it, or stop or destroy machines, which still works";
        Self::new(ErrorCode::DiskFull, text)
    }

    /// 500. The text says what was attempted; it must hold no secret.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, format!("internal: {message}"))
    }

    /// The body that goes over the wire.
    pub fn body(&self, request_id: Option<String>) -> ErrorBody {
        ErrorBody {
            error: self.message.clone(),
            status: self.code.application_status().map(str::to_owned),
            code: Some(self.code),
            retryable: Some(self.code.is_retryable()),
            request_id,
        }
    }
}

/// An error body. Only `error` is certain to be there in an answer of another server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Human-readable text.
    pub error: String,
    /// Application status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Stable reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Whether the same request may succeed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// Same as the response header `fly-request-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}
