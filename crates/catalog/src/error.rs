//! Why a catalog call failed, and what clients are told about it.

use std::path::PathBuf;

use caddis_api::{ApiError, ErrorCode, MachineId};

/// Why a catalog call failed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file can't be opened or made.
    #[error("can't open the catalog {path}: {reason}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file is damaged. It is left as it is.
    #[error("the catalog {path} is damaged ({reason}); restore it from a backup, it will not be made anew over this")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file is a database of something else.
    #[error("{path} is an SQLite database, but no catalog; move it away or name another data directory")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer version of the program has changed the file.
    #[error("the catalog {path} has schema {found}, this program knows up to {known}; run the newer version again")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A call that worked on the file failed.
    #[error("can't {attempt} in the catalog: {source}")]
    Storage {
        /// What was attempted.
        attempt: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The copy can't be made.
    #[error("can't back up the catalog to {path}: {reason}")]
    Backup {
        /// The copy.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The catalog's thread has ended.
    #[error("the catalog is closed")]
    Closed,
    /// No organisation has this slug.
    #[error("Could not find Organization '{0}'")]
    OrganizationNotFound(String),
    /// No app has this name.
    #[error("Could not find App \"{0}\"")]
    AppNotFound(String),
    /// Another app has this name.
    #[error("Validation failed: Name has already been taken")]
    AppNameTaken,
    /// The app is on its way out.
    #[error("failed_precondition: app \"{0}\" is being deleted")]
    AppInDeletion(String),
    /// The key was used for an app of another name.
    #[error("Validation failed: idempotency_key was used before with another name")]
    IdempotencyMismatch,
    /// Another machine of the app has this name.
    #[error("already_exists: unique machine name violation, machine ID {holder} already exists with name \"{name}\"")]
    MachineNameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: MachineId,
    },
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        let code = match &error {
            CatalogError::OrganizationNotFound(_) | CatalogError::AppNotFound(_) => ErrorCode::NotFound,
            CatalogError::AppNameTaken => ErrorCode::NameTaken,
            CatalogError::AppInDeletion(_) => ErrorCode::FailedPrecondition,
            CatalogError::IdempotencyMismatch => ErrorCode::Unprocessable,
            CatalogError::MachineNameTaken { .. } => ErrorCode::AlreadyExists,
            CatalogError::Storage { source, .. }
                if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) =>
            {
                return Self::disk_full();
            }
            _ => return Self::internal(error),
        };
        Self::new(code, error.to_string())
    }
}
