//! The directories of volumes, and whether there ever was one.

use std::{fs, io, path::Path};

use super::{Inner, VolumeStore};
use crate::{VolumeError, VolumeId, files, record::Record};

/// Names of the directories of volumes, and of deleted ones.
pub(super) const NAMES: [&str; 2] = ["volumes", "trash"];

/// The encrypted volumes below the directory of a store, deleted ones too, without opening it; in
/// the order of their ids. Those whose record can't be read are left out. Blocking.
///
/// # Errors
/// When the directory can't be read.
pub fn encrypted_volumes(directory: &Path) -> Result<Vec<VolumeId>, VolumeError> {
    let mut found = Vec::new();
    for name in NAMES {
        let path = directory.join(name);
        let failed = |error| VolumeError::io("list", &path, error);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let record = Record::read(&entry.map_err(failed)?.path());
            found.extend(record.ok().filter(|record| record.key.is_some()).map(|record| record.id));
        }
    }
    found.sort();
    Ok(found)
}

impl VolumeStore {
    /// Whether a volume was ever made here, whatever has become of it. Blocking.
    #[must_use]
    pub fn was_used(&self) -> bool {
        self.inner.has_places()
    }

    /// Where the volumes are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.inner.config.directory
    }
}

impl Inner {
    pub(super) fn has_places(&self) -> bool {
        NAMES.iter().any(|name| self.config.directory.join(name).exists())
    }

    /// Makes the directories of volumes, unless they are there.
    pub(super) fn make_places(&self) -> Result<(), VolumeError> {
        let missing = NAMES.map(|name| self.config.directory.join(name));
        let missing: Vec<_> = missing.into_iter().filter(|path| !path.exists()).collect();
        missing.iter().try_for_each(|path| files::make_directory(path))?;
        if missing.is_empty() { Ok(()) } else { files::sync_directory(&self.config.directory) }
    }
}
