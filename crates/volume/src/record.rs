//! What is known of a volume, in a file of JSON beside its disk.

use std::{fs, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Filesystem, SizeGib, Volume, VolumeError, VolumeId, files, key::WrappedKey};

/// Name of the file.
pub(crate) const FILE: &str = "volume.json";

/// Of the format below. A change that an older server would lose or misread raises it.
const VERSION: u32 = 1;
/// The same with `restoring`, which an older server would take for a whole volume.
const RESTORING: u32 = 2;

/// A record is a few hundred bytes; what is longer is none.
const LARGEST: u64 = 64 << 10;

/// See [`Volume`] for the meaning of most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) id: VolumeId,
    pub(crate) size_gib: SizeGib,
    pub(crate) filesystem: Filesystem,
    /// There is one when the volume is encrypted.
    pub(crate) key: Option<WrappedKey>,
    pub(crate) generation: u64,
    pub(crate) last_writer: Option<String>,
    pub(crate) created_at: Timestamp,
    /// Says in which directory the volume belongs.
    pub(crate) deleted_at: Option<Timestamp>,
    pub(crate) copied_from: Option<VolumeId>,
    /// See [`Self::set_restoring`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    restoring: bool,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Record {
    pub(crate) fn new(
        id: VolumeId,
        size_gib: SizeGib,
        filesystem: Filesystem,
        key: Option<WrappedKey>,
        created_at: Timestamp,
    ) -> Self {
        Self {
            version: VERSION,
            id,
            size_gib,
            filesystem,
            key,
            generation: 1,
            last_writer: None,
            created_at,
            deleted_at: None,
            copied_from: None,
            restoring: false,
        }
    }

    /// Whether it has less than it should without its backing. Older servers refuse it then.
    pub(crate) fn set_restoring(&mut self, restoring: bool) {
        self.restoring = restoring;
        self.version = if restoring { RESTORING } else { VERSION };
    }

    pub(crate) fn is_restoring(&self) -> bool {
        self.restoring
    }

    /// # Errors
    /// When it is being restored.
    pub(crate) fn expect_whole(&self) -> Result<(), VolumeError> {
        if self.restoring { Err(VolumeError::Restoring(self.id.clone())) } else { Ok(()) }
    }

    /// Reads the record of a volume's directory; an error in words if there is none that can be
    /// used.
    pub(crate) fn read(directory: &Path) -> Result<Self, String> {
        let path = directory.join(FILE);
        let unreadable = |error: std::io::Error| format!("{FILE} cannot be read: {error}");
        let metadata = fs::metadata(&path).map_err(unreadable)?;
        if !metadata.is_file() || metadata.len() > LARGEST {
            return Err(format!("{FILE} is no record of a volume"));
        }
        let bytes = fs::read(&path).map_err(unreadable)?;
        let invalid = |error: serde_json::Error| format!("{FILE} is invalid: {error}");
        let Version { version } = serde_json::from_slice(&bytes).map_err(invalid)?;
        if !(VERSION..=RESTORING).contains(&version) {
            return Err(format!(
                "{FILE} has format {version} and this server knows {RESTORING}: use the server \
                 that wrote it, or a newer one"
            ));
        }
        serde_json::from_slice(&bytes).map_err(invalid)
    }

    /// Writes it to a volume's directory, durably.
    pub(crate) fn write(&self, directory: &Path, scratch: &Path) -> Result<(), VolumeError> {
        let path = directory.join(FILE);
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| VolumeError::io("write", &path, error.into()))?;
        bytes.push(b'\n');
        files::write(&path, &bytes, scratch)
    }

    pub(crate) fn volume(&self) -> Volume {
        Volume {
            id: self.id.clone(),
            size: self.size_gib,
            filesystem: self.filesystem,
            encrypted: self.key.is_some(),
            generation: self.generation,
            last_writer: self.last_writer.clone(),
            created_at: self.created_at,
            deleted_at: self.deleted_at,
            copied_from: self.copied_from.clone(),
            restoring: self.restoring,
        }
    }
}
