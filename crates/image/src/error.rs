//! Everything that can go wrong with an image, and whose fault it is.

use std::{io, path::Path, sync::Arc};

use crate::Digest;

/// Why an image could not be had. Cheap to clone: all who wait for one build get the same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The reference is not one.
    #[error("invalid image reference `{reference}`: {reason}")]
    InvalidReference {
        /// As given.
        reference: String,
        /// What is wrong with it and what to write instead.
        reason: String,
    },
    /// The registry, or the store, has no such thing.
    #[error("image `{what}` was not found: {hint}")]
    NotFound {
        /// Reference, name or digest.
        what: String,
        /// What to check.
        hint: String,
    },
    /// The registry wants other credentials, or none would do.
    #[error("registry {registry} denied access to `{repository}`: {reason}")]
    Unauthorized {
        /// Host and port.
        registry: String,
        /// What was asked for.
        repository: String,
        /// What to do.
        reason: String,
    },
    /// The registry may not be spoken to under the configuration, or sends us where we must not go.
    #[error("refused to contact {target}: {reason}")]
    Refused {
        /// Host and port.
        target: String,
        /// Which rule, and how to open it.
        reason: String,
    },
    /// The registry did not answer, or not with anything useful. Trying later may help.
    #[error(
        "registry {registry} is unavailable for {what}: {reason}; check the network and try again"
    )]
    Unreachable {
        /// Host and port.
        registry: String,
        /// What was being fetched.
        what: String,
        /// What happened.
        reason: String,
    },
    /// The registry was asked too often, and wants to be left alone for longer than is waited.
    #[error("registry {registry} refused {what}, its rate limit is reached: {reason}")]
    RateLimited {
        /// Host and port.
        registry: String,
        /// What was being fetched.
        what: String,
        /// Its words, and when it may be asked again.
        reason: String,
    },
    /// Beyond a limit of the configuration.
    #[error("{what} is too large: {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// Which limit, and how to raise it.
        limit: String,
    },
    /// What came is not what was promised, or makes no sense. Nothing of it was kept.
    #[error("{what} is corrupt: {reason}; nothing was kept, push or save the image again")]
    Corrupt {
        /// Which blob, file or entry.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A platform, media type or feature that can't be run here.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What.
        what: String,
        /// What is.
        reason: String,
    },
    /// The image is in use by a machine.
    #[error("image {digest} is in use by a machine: destroy the machine first")]
    InUse {
        /// Of its manifest.
        digest: Digest,
    },
    /// No room for it.
    #[error(
        "not enough disk space {what}: {reason}; free some space or remove images that are not \
         needed"
    )]
    NoSpace {
        /// For what.
        what: String,
        /// Numbers.
        reason: String,
    },
    /// A program that is needed on the host is missing or failed.
    #[error("{program} failed {what}: {reason}")]
    Program {
        /// Its name.
        program: String,
        /// While doing what.
        what: String,
        /// Its words, or what to install.
        reason: String,
    },
    /// The store was closed while this was going on.
    #[error("{what} was interrupted because the image store closed; try again")]
    Interrupted {
        /// What.
        what: String,
    },
    /// The host's file system.
    #[error("could not {what}: {source}")]
    Io {
        /// The operation and the path.
        what: String,
        /// The cause.
        source: Arc<io::Error>,
    },
}

impl ImageError {
    /// Whether another reference, image or set of credentials would have worked: a 4xx, not a 5xx.
    #[must_use]
    pub fn is_client_fault(&self) -> bool {
        match self {
            Self::InvalidReference { .. }
            | Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::Corrupt { .. }
            | Self::Unsupported { .. }
            | Self::InUse { .. } => true,
            Self::Unreachable { .. }
            | Self::RateLimited { .. }
            | Self::NoSpace { .. }
            | Self::Program { .. }
            | Self::Interrupted { .. }
            | Self::Io { .. } => false,
        }
    }

    /// Whether the same request may work later without anyone changing anything about the image.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::RateLimited { .. }
                | Self::NoSpace { .. }
                | Self::Interrupted { .. }
        )
    }

    pub(crate) fn corrupt(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), reason: reason.into() }
    }

    pub(crate) fn too_large(what: impl Into<String>, limit: impl Into<String>) -> Self {
        Self::TooLarge { what: what.into(), limit: limit.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), reason: reason.into() }
    }

    /// An I/O error with what was attempted; a full disk gets its own kind.
    pub(crate) fn io(what: &str, path: &Path, source: io::Error) -> Self {
        let what = format!("{what} {}", path.display());
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::NoSpace { what: format!("to {what}"), reason: source.to_string() };
        }
        Self::Io { what, source: Arc::new(source) }
    }
}
