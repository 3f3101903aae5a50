//! Files that are there in full or not at all, also after a power cut.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use crate::VolumeError;

/// Makes a directory with mode 0700, unless it is there.
pub(crate) fn make_directory(path: &Path) -> Result<(), VolumeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| VolumeError::io("make the directory", path, error))
}

/// Makes durable which files a directory has.
pub(crate) fn sync_directory(path: &Path) -> Result<(), VolumeError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| VolumeError::io("sync", path, error))
}

/// Writes a file, mode 0600, in place of what is there, by way of `scratch`, a directory on the
/// same file system.
pub(crate) fn write(path: &Path, bytes: &[u8], scratch: &Path) -> Result<(), VolumeError> {
    let failed = |error| VolumeError::io("write", path, error);
    let file = written(bytes, scratch).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    path.parent().map_or(Ok(()), sync_directory)
}

fn written(bytes: &[u8], scratch: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new_in(scratch)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Moves a directory, durably on both sides.
pub(crate) fn move_directory(from: &Path, to: &Path) -> Result<(), VolumeError> {
    fs::rename(from, to).map_err(|error| VolumeError::io("move to", to, error))?;
    [to, from].iter().filter_map(|path| path.parent()).try_for_each(sync_directory)
}

/// Removes a file or a directory with all in it; says so in the log when that fails, since the next
/// start tries again.
pub(crate) fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "could not remove what is not needed");
    }
}
