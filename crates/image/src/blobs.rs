//! Content-addressed blobs: manifests and configs, and layers as they came from registries.
//!
//! Layers are kept after the root disk is built, because images share them; they are the first to
//! go when space is short. A blob is renamed into place only after its digest was checked, without
//! an fsync: whoever reads one checks its digest again, which costs less and finds decay too.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use parking_lot::Mutex;

use crate::{
    Digest, ImageError,
    session::{make_directory, remove},
};

/// The blobs of a store.
#[derive(Debug)]
pub(crate) struct Blobs {
    directory: PathBuf,
    /// How many builds want each: not to be collected.
    pinned: Mutex<HashMap<Digest, usize>>,
}

/// Keeps blobs from being collected until dropped.
#[derive(Debug)]
pub(crate) struct Pins<'a> {
    blobs: &'a Blobs,
    digests: Vec<Digest>,
}

/// A blob that may be removed.
#[derive(Debug)]
pub(crate) struct Idle {
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    pub(crate) used: SystemTime,
}

impl Blobs {
    pub(crate) fn open(directory: PathBuf) -> Result<Self, ImageError> {
        make_directory(&directory)?;
        Ok(Self { directory, pinned: Mutex::default() })
    }

    /// Where a blob is, or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// Whether it is there in full; also marks it as used now.
    pub(crate) fn has(&self, digest: &Digest, size: u64) -> bool {
        let path = self.path(digest);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size) {
            touch(&path);
            return true;
        }
        false
    }

    /// A small blob, if it is there and unharmed.
    pub(crate) fn read(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
        let path = self.path(digest);
        let mut bytes = Vec::new();
        let file = File::open(&path).ok()?;
        if file.metadata().ok()?.len() > limit {
            // Somebody else's layer, which is whole.
            return None;
        }
        file.take(limit).read_to_end(&mut bytes).ok()?;
        if Digest::of(&bytes) != *digest {
            tracing::warn!(%digest, "a stored blob is damaged and is fetched again");
            remove(&path);
            return None;
        }
        touch(&path);
        Some(bytes)
    }

    /// Stores a small blob whose digest was checked.
    pub(crate) fn write(
        &self,
        digest: &Digest,
        bytes: &[u8],
        scratch: &Path,
    ) -> Result<(), ImageError> {
        let path = self.path(digest);
        let failed = |error| ImageError::io("write", &path, error);
        let mut file = tempfile::NamedTempFile::new_in(scratch).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Removes a blob that turned out to be damaged or is not wanted.
    pub(crate) fn remove(&self, digest: &Digest) {
        remove(&self.path(digest));
    }

    /// Keeps these from being collected.
    pub(crate) fn pin(&self, digests: Vec<Digest>) -> Pins<'_> {
        let mut pinned = self.pinned.lock();
        for digest in &digests {
            *pinned.entry(digest.clone()).or_default() += 1;
        }
        Pins { blobs: self, digests }
    }

    /// All that no build wants; longest unused first.
    pub(crate) fn idle(&self) -> Result<Vec<Idle>, ImageError> {
        let failed = |error| ImageError::io("list", &self.directory, error);
        let pinned: HashSet<PathBuf> =
            self.pinned.lock().keys().map(|digest| self.path(digest)).collect();
        let mut idle = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            if !pinned.contains(&path) {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                idle.push(Idle { path, size: metadata.len(), used });
            }
        }
        idle.sort_by_key(|blob| blob.used);
        Ok(idle)
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        let mut pinned = self.blobs.pinned.lock();
        for digest in &self.digests {
            if let Some(count) = pinned.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    pinned.remove(digest);
                }
            }
        }
    }
}

/// Sets a file's time to now: what was used last is collected last. Best effort.
pub(crate) fn touch(path: &Path) {
    if let Ok(file) = File::options().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}
