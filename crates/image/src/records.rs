//! What is known about each image that has a root disk: a small file per image, all of them also in
//! memory.
//!
//! A record without a disk, or a disk without a record, is what a crash between the two writes
//! leaves; both are removed when the store opens.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::SystemTime,
};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::{
    Digest, ImageError, ImageSummary, ResolvedImage,
    blobs::touch,
    session::{make_directory, remove},
};

/// Format of the files.
const VERSION: u32 = 1;

/// One image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// As of the first time; `requested` is no matter.
    pub(crate) image: ResolvedImage,
    /// References that were pulled, canonical.
    pub(crate) names: Vec<String>,
    /// Names given at import: they resolve to this image without a registry.
    pub(crate) local_names: Vec<String>,
    /// It came from an archive: it can't be fetched again, so it is never collected.
    pub(crate) imported: bool,
    pub(crate) created_at: Timestamp,
    /// Bytes that the root disk takes.
    pub(crate) disk_bytes: u64,
    /// Digests of manifest, config and layers.
    pub(crate) blobs: Vec<Digest>,
}

impl Record {
    pub(crate) fn new(
        image: ResolvedImage,
        disk_bytes: u64,
        blobs: Vec<Digest>,
        imported: bool,
    ) -> Self {
        let created_at = Timestamp::now();
        let (names, local_names) = (Vec::new(), Vec::new());
        Self {
            version: VERSION,
            image,
            names,
            local_names,
            imported,
            created_at,
            disk_bytes,
            blobs,
        }
    }
}

/// All records.
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
    by_digest: Mutex<BTreeMap<Digest, Record>>,
}

impl Records {
    /// Reads them all; those for which `has_disk` says no are removed.
    pub(crate) fn open(
        directory: PathBuf,
        has_disk: impl Fn(&Digest) -> bool,
    ) -> Result<Self, ImageError> {
        make_directory(&directory)?;
        let failed = |error| ImageError::io("list", &directory, error);
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let record = fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            let found = record
                .filter(|record| record.version == VERSION)
                .and_then(|record| Some((record.image.reference.digest.clone()?, record)))
                .filter(|(digest, _)| has_disk(digest));
            match found {
                Some((digest, record)) => drop(records.insert(digest, record)),
                None => remove(&path),
            }
        }
        Ok(Self { directory, by_digest: Mutex::new(records) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Record>> {
        self.by_digest.lock()
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{}.json", digest.hex()))
    }

    fn write(&self, digest: &Digest, record: &Record, scratch: &Path) -> Result<(), ImageError> {
        let path = self.path(digest);
        let failed = |error| ImageError::io("write", &path, error);
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        let mut file = tempfile::NamedTempFile::new_in(scratch).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(failed)
    }

    /// Adds or replaces one.
    pub(crate) fn insert(
        &self,
        digest: Digest,
        record: Record,
        scratch: &Path,
    ) -> Result<(), ImageError> {
        let mut records = self.lock();
        self.write(&digest, &record, scratch)?;
        records.insert(digest, record);
        Ok(())
    }

    pub(crate) fn get(&self, digest: &Digest) -> Option<Record> {
        self.lock().get(digest).cloned()
    }

    pub(crate) fn all(&self) -> Vec<(Digest, Record)> {
        self.lock().iter().map(|(digest, record)| (digest.clone(), record.clone())).collect()
    }

    /// The image that a name given at import means.
    pub(crate) fn local(&self, name: &str) -> Option<Record> {
        self.lock()
            .values()
            .find(|record| record.local_names.iter().any(|known| known == name))
            .cloned()
    }

    /// The image that has this name, wherever from.
    pub(crate) fn named(&self, name: &str) -> Option<Digest> {
        let is_known = |record: &Record| {
            record.names.iter().chain(&record.local_names).any(|known| known == name)
        };
        let records = self.lock();
        records.iter().find(|(_, record)| is_known(record)).map(|(digest, _)| digest.clone())
    }

    /// Whether an image is known by its digest only.
    pub(crate) fn is_nameless(&self, digest: &Digest) -> bool {
        self.lock()
            .get(digest)
            .is_none_or(|record| record.names.is_empty() && record.local_names.is_empty())
    }

    /// Gives an image a name, taking it from whichever had it before.
    pub(crate) fn set_name(
        &self,
        digest: &Digest,
        name: &str,
        local: bool,
        scratch: &Path,
    ) -> Result<(), ImageError> {
        let mut records = self.lock();
        for (its_digest, record) in records.iter_mut() {
            let names = if local { &mut record.local_names } else { &mut record.names };
            let position = names.iter().position(|known| known == name);
            match position {
                Some(position) if its_digest != digest => drop(names.remove(position)),
                None if its_digest == digest => names.push(name.to_owned()),
                _ => continue,
            }
            self.write(its_digest, record, scratch)?;
        }
        Ok(())
    }

    /// Notes that an image can't be fetched again for sure, and must be kept.
    pub(crate) fn mark_imported(&self, digest: &Digest, scratch: &Path) -> Result<(), ImageError> {
        let mut records = self.lock();
        match records.get_mut(digest) {
            Some(record) if !record.imported => {
                record.imported = true;
                self.write(digest, record, scratch)
            }
            _ => Ok(()),
        }
    }

    /// Takes a name from an image that has others; `false` when it is the last.
    pub(crate) fn drop_name(
        &self,
        digest: &Digest,
        name: &str,
        scratch: &Path,
    ) -> Result<bool, ImageError> {
        let mut records = self.lock();
        let Some(record) = records.get_mut(digest) else { return Ok(true) };
        if record.names.len() + record.local_names.len() <= 1 {
            return Ok(false);
        }
        record.names.retain(|known| known != name);
        record.local_names.retain(|known| known != name);
        self.write(digest, record, scratch)?;
        Ok(true)
    }

    pub(crate) fn remove(&self, digest: &Digest) {
        let mut records = self.lock();
        records.remove(digest);
        remove(&self.path(digest));
    }

    /// Notes that an image was used now.
    pub(crate) fn touch(&self, digest: &Digest) {
        touch(&self.path(digest));
    }

    pub(crate) fn last_used(&self, digest: &Digest, record: &Record) -> Timestamp {
        let modified = fs::metadata(self.path(digest)).and_then(|metadata| metadata.modified());
        Timestamp::try_from(modified.unwrap_or(SystemTime::UNIX_EPOCH)).unwrap_or(record.created_at)
    }

    pub(crate) fn summary(&self, digest: &Digest, record: &Record) -> ImageSummary {
        ImageSummary {
            digest: digest.clone(),
            names: record.names.iter().chain(&record.local_names).cloned().collect(),
            size: record.disk_bytes,
            created_at: record.created_at,
            last_used: self.last_used(digest, record),
        }
    }
}
