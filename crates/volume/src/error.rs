//! Everything that can go wrong with a volume, and what to do.

use std::{
    io,
    path::{Path, PathBuf},
};

use caddis_api::ids::InvalidVolumeId;

use crate::{InvalidSize, SizeGib, VolumeId};

/// What there is to do about the lack of space, where deleted volumes have so many GiB of it.
fn what_frees(deleted: &u64) -> String {
    let raise = "raise the server's volume-gb";
    match deleted {
        0 => format!("delete volumes with --purge, or {raise}"),
        _ => format!(
            "deleted volumes have {deleted} GB of them for a day: destroy these with --purge, \
             wait, or {raise}"
        ),
    }
}

/// Why something could not be done. Unless a variant says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The text is no id of a volume.
    #[error(transparent)]
    InvalidId(#[from] InvalidVolumeId),
    /// Outside of the bounds of the reference.
    #[error(transparent)]
    InvalidSize(#[from] InvalidSize),
    /// QEMU takes names of files in UTF-8 only.
    #[error("the directory {0:?} of the volumes has a name that is not UTF-8: use another")]
    InvalidDirectory(PathBuf),
    /// Another process manages the volumes of this directory.
    #[error("the volumes in {0} are managed by another process: stop it first")]
    StoreInUse(PathBuf),
    /// There is, or is about to be, a volume with this id.
    #[error("volume {0} already exists: use another ID")]
    Exists(VolumeId),
    /// There is no such volume.
    #[error("volume {0} was not found: it may have been deleted for good")]
    NotFound(VolumeId),
    /// It is deleted, and not yet for good.
    #[error("volume {0} is deleted: undelete it first")]
    Deleted(VolumeId),
    /// It is not deleted.
    #[error("volume {0} is not deleted")]
    NotDeleted(VolumeId),
    /// What is on disk under its name can't be used. It is left as it is.
    #[error("volume {id} is damaged: {reason}; nothing of it was changed, see {path}")]
    Damaged {
        /// Name of its directory.
        id: String,
        /// What is wrong.
        reason: String,
        /// Where it is.
        path: PathBuf,
    },
    /// Somebody else uses it.
    #[error("volume {id} is in use by {holder}: stop that first")]
    InUse {
        /// Which.
        id: VolumeId,
        /// Whoever opened it last, or the operation in progress, and processes.
        holder: String,
    },
    /// It has not all of its contents yet.
    #[error("volume {0} is still being restored: wait until that is done")]
    Restoring(VolumeId),
    /// What it is being restored from can't be read. What was fetched stays.
    #[error("could not fetch the contents of volume {id}: {reason}")]
    Backing {
        /// Which.
        id: VolumeId,
        /// In the words of QEMU.
        reason: String,
    },
    /// Volumes only grow.
    #[error("volume {id} has {from} GB and cannot shrink to {to} GB: copy the files to a new one")]
    CannotShrink {
        /// Which.
        id: VolumeId,
        /// Its size.
        from: SizeGib,
        /// The size asked for.
        to: SizeGib,
    },
    /// The sizes of all volumes together would be more than the host has for volumes.
    #[error(
        "not enough space for {needed} GB: {declared} of {limit} GB for volumes are reserved; {}",
        what_frees(.deleted)
    )]
    LimitReached {
        /// What was asked for in addition, GiB.
        needed: u64,
        /// Declared sizes of all volumes, GiB.
        declared: u64,
        /// The part of them that is deleted but not for good, GiB.
        deleted: u64,
        /// For all volumes, GiB.
        limit: u64,
    },
    /// The host's disk is full.
    #[error("not enough disk space to {what}: {reason}; free some space and try again")]
    NoSpace {
        /// What was attempted.
        what: String,
        /// In the words of the system or program.
        reason: String,
    },
    /// The volume's key was wrapped with another installation key.
    #[error(
        "the key of volume {id} is encrypted with another installation key ({expected}) than \
         the server has ({found}): restore that one from a backup"
    )]
    OtherKey {
        /// Which volume.
        id: VolumeId,
        /// Id of the key that is needed.
        expected: String,
        /// Id of the key that is there.
        found: String,
    },
    /// The volume's wrapped key was changed, or is another volume's.
    #[error(
        "the encrypted key in the record of volume {0} is damaged or belongs to another volume: \
         restore the record from a backup"
    )]
    KeyDamaged(VolumeId),
    /// A program that is needed on the host is missing or failed.
    #[error("{program} failed to {what}: {reason}")]
    Program {
        /// Its name.
        program: String,
        /// What it was to do.
        what: String,
        /// Its words, or what to install.
        reason: String,
    },
    /// The server shuts down.
    #[error("could not {0} because the server is shutting down: try again")]
    Interrupted(String),
    /// The host's file system.
    #[error("could not {what}: {source}")]
    Io {
        /// The operation and the path.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

/// Why a volume could not be cloned by whoever has it open. Nothing is left of the clone.
#[derive(Debug, thiserror::Error)]
pub enum CloneError<E> {
    /// On the side of the files.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Whoever has it open could not clone it.
    #[error("{0}")]
    Clone(E),
}

impl VolumeError {
    /// An I/O error with what was attempted; a full disk gets its own kind.
    pub(crate) fn io(what: &str, path: &Path, source: io::Error) -> Self {
        let what = format!("{what} {}", path.display());
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::NoSpace { what, reason: source.to_string() };
        }
        Self::Io { what, source }
    }
}
