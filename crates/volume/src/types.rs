//! Ids and sizes, and what callers see of a volume.

use std::fmt;

use caddis_api::{VolumeId, volume::Filesystem};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A size outside of the reference's bounds, GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid volume size {0} GB: it is {min} to {max} GB",
    min = SizeGib::MIN.get(),
    max = SizeGib::MAX.get()
)]
pub struct InvalidSize(pub u32);

/// How long a deleted volume can be undeleted.
pub const KEPT_AFTER_DELETE: SignedDuration = SignedDuration::from_hours(24);

/// Size of a volume in GiB, within the reference's bounds (which it calls GB).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SizeGib(u32);

impl SizeGib {
    /// The smallest, GiB.
    pub const MIN: Self = Self(1);
    /// The largest, GiB.
    pub const MAX: Self = Self(500);

    /// A size of so many GiB.
    ///
    /// # Errors
    /// [`InvalidSize`] outside of [`Self::MIN`] to [`Self::MAX`].
    pub fn new(gib: u32) -> Result<Self, InvalidSize> {
        let size = Self(gib);
        if (Self::MIN..=Self::MAX).contains(&size) { Ok(size) } else { Err(InvalidSize(gib)) }
    }

    /// GiB.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 30
    }
}

impl TryFrom<u32> for SizeGib {
    type Error = InvalidSize;

    fn try_from(gib: u32) -> Result<Self, InvalidSize> {
        Self::new(gib)
    }
}

impl From<SizeGib> for u32 {
    fn from(size: SizeGib) -> Self {
        size.0
    }
}

impl fmt::Display for SizeGib {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// What to create.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Not yet in use, also not by a deleted volume.
    pub id: VolumeId,
    /// Declared, reserved and virtual size.
    pub size: SizeGib,
    /// What is on it.
    pub filesystem: Filesystem,
    /// Whether it is encrypted, with a key of its own.
    pub encrypted: bool,
    /// Now.
    pub created_at: Timestamp,
}

/// What to copy a volume to. File system and encryption are the source's.
#[derive(Debug, Clone)]
pub struct NewCopy {
    /// Not yet in use, also not by a deleted volume.
    pub id: VolumeId,
    /// At least the source's; the same when not given.
    pub size: Option<SizeGib>,
    /// Now.
    pub created_at: Timestamp,
}

/// A volume, as its record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Declared and reserved size. The file may be smaller while a growth is in progress.
    pub size: SizeGib,
    /// What it was made with.
    pub filesystem: Filesystem,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Rises each time the volume is opened for a writer or grown. A memory snapshot taken at one
    /// generation must not be resumed at another.
    pub generation: u64,
    /// Who opened it last, in the words of that caller. Whether it is still open, the lock says.
    pub last_writer: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was deleted; it is there until [`KEPT_AFTER_DELETE`] later.
    pub deleted_at: Option<Timestamp>,
    /// The volume it was copied from.
    pub copied_from: Option<VolumeId>,
    /// It has not all of its contents yet, and must be opened with its backing.
    pub restoring: bool,
}

/// A copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The new volume.
    pub volume: Volume,
    /// Whether it shares its blocks with the source (`FICLONE`), and the key with it.
    pub is_clone: bool,
}

/// What there is below the directory of the volumes that can't be used. It is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Name of the directory: the volume's id, if it is one.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}

/// Space that is reserved for volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// For all volumes, GiB; none: not limited.
    pub limit: Option<u64>,
    /// Declared sizes of all volumes, those being made, deleted and damaged ones too, GiB.
    pub declared: u64,
    /// The part of them that is deleted but not for good, GiB.
    pub deleted: u64,
}

/// What a volume takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What a guest sees, bytes.
    pub virtual_bytes: u64,
    /// What its file takes on the host, bytes.
    pub allocated_bytes: u64,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes copied.
    pub done: u64,
    /// Bytes to copy: what the source has allocated.
    pub total: u64,
}

/// How a growth ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Growth {
    /// The file has the new size.
    Done,
    /// The volume is open: the new size is reserved and recorded, and its VM has to be told, by
    /// QMP `block_resize`. If that does not happen, the next one that opens the volume gets it.
    Resize {
        /// The new size, bytes.
        bytes: u64,
    },
}

/// What `qemu-img check` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// Places where the file contradicts itself: its data is not to be trusted.
    #[serde(default)]
    pub corruptions: u64,
    /// Clusters that nothing uses: lost space, as a VM that was killed may leave behind.
    #[serde(default)]
    pub leaks: u64,
    /// Places that could not be checked.
    #[serde(default)]
    pub check_errors: u64,
}

impl Check {
    /// Whether its data can be trusted.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.corruptions == 0 && self.check_errors == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_within_the_bounds_of_the_reference() {
        assert_eq!(SizeGib::new(1).unwrap().bytes(), 1 << 30);
        assert_eq!(SizeGib::new(500).unwrap().get(), 500);
        for gib in [0, 501, u32::MAX] {
            let error = SizeGib::new(gib).unwrap_err().to_string();
            assert_eq!(error, format!("invalid volume size {gib} GB: it is 1 to 500 GB"));
        }
        assert!(serde_json::from_str::<SizeGib>("0").is_err());
    }
}
