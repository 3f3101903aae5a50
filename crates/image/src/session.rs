//! Where half-made things live, and how those of a crashed process are told from those of a living
//! one.
//!
//! Each opened store has a directory of its own below `tmp/`, held by a lock that ends with the
//! process. Whatever directory there is not locked belongs to nobody and is removed at the next
//! start.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tempfile::TempDir;

use crate::ImageError;

/// A locked directory for half-made things, removed with all in it when dropped.
#[derive(Debug)]
pub(crate) struct Session {
    directory: TempDir,
    /// Kept for its lock.
    _lock: Flock<File>,
}

impl Session {
    /// Removes what crashed processes left below `parent` and makes a new directory there.
    pub(crate) fn start(parent: &Path) -> Result<Self, ImageError> {
        let failed = |error| ImageError::io("prepare the directory", parent, error);
        make_directory(parent)?;
        // Made first and locked at once: a directory that another store has just made and not yet
        // locked could look abandoned, so making and locking happen under the lock of the parent.
        let _parent_lock = lock(parent, FlockArg::LockExclusive).map_err(failed)?;
        for entry in fs::read_dir(parent).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if lock(&path, FlockArg::LockExclusiveNonblock)
                .is_err_and(|error| error.raw_os_error() == IN_USE)
            {
                continue;
            }
            tracing::info!(path = %path.display(), "removing leftovers of an earlier run");
            remove(&path);
        }
        let directory = private("store-", parent).map_err(failed)?;
        let lock = lock(directory.path(), FlockArg::LockExclusive).map_err(failed)?;
        Ok(Self { directory, _lock: lock })
    }

    /// The directory, mode 0700.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A new, empty directory for one piece of work, mode 0700. The caller removes it.
    pub(crate) fn work_directory(&self) -> Result<PathBuf, ImageError> {
        let made = private("work-", self.path());
        made.map(TempDir::keep)
            .map_err(|error| ImageError::io("make a directory in", self.path(), error))
    }
}

/// Somebody else has the lock.
const IN_USE: Option<i32> = Some(Errno::EWOULDBLOCK as i32);

fn lock(path: &Path, how: FlockArg) -> std::io::Result<Flock<File>> {
    Flock::lock(File::open(path)?, how).map_err(|(_, error)| error.into())
}

fn private(prefix: &str, parent: &Path) -> std::io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
}

/// Makes a directory with mode 0700, unless it is there.
pub(crate) fn make_directory(path: &Path) -> Result<(), ImageError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| ImageError::io("make the directory", path, error))
}

/// Removes a file or a directory with all in it; says so in the log when that fails, since nothing
/// else can be done.
pub(crate) fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "could not remove what is no longer needed");
    }
}
