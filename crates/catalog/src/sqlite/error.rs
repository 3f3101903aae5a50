//! Why a catalog file can't be used.

use std::path::{Path, PathBuf};

use caddis_disk::is_full;

use crate::StoreError;

/// Why a catalog file can't be opened or copied.
#[derive(Debug, thiserror::Error)]
pub enum SqliteError {
    /// The file can't be opened or made.
    #[error("can't open the catalog {path}: {reason}")]
    Open {
        /// Path of the database file.
        path: PathBuf,
        /// What SQLite or the file system says.
        reason: String,
    },
    /// The file is damaged. It is left as it is.
    #[error(
        "the catalog {path} is damaged ({reason}); restore it from a backup, it will not be \
         overwritten"
    )]
    Corrupt {
        /// Path of the database file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file is a database of something else.
    #[error(
        "{path} is an SQLite database, but not a catalog; move it away or use another data \
         directory"
    )]
    Foreign {
        /// Path of the database file.
        path: PathBuf,
    },
    /// A newer version of the program has changed the file.
    #[error(
        "the catalog {path} has schema {found}, this version supports up to {known}; run the newer \
         version again"
    )]
    Newer {
        /// Path of the database file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The copy can't be made.
    #[error("can't back up the catalog to {path}: {reason}")]
    Backup {
        /// The copy.
        path: PathBuf,
        /// What SQLite or the file system says.
        reason: String,
    },
}

/// What failed, in the catalog's words.
pub(super) fn failed(attempt: &'static str, error: &rusqlite::Error, path: &Path) -> StoreError {
    StoreError::Failed { attempt, disk_full: is_full(error, path), reason: error.to_string() }
}
