//! Images a worker holds, and what an import says while it goes on.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ApiError;

/// An image on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSummary {
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// Names of the image.
    pub names: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// RFC 3339.
    pub created_at: String,
    /// Machines that use it.
    pub machines: u64,
}

/// One line of an import's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportUpdate {
    /// Progress.
    Progress {
        /// `unpack`, `build`, …
        step: String,
        /// Bytes done of this step.
        bytes_done: u64,
        /// Total bytes of this step, 0 if unknown.
        bytes_total: u64,
    },
    /// Done.
    Done(ImageSummary),
    /// Failed.
    Failed(ApiError),
}
