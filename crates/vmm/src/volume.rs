//! Volumes of a VM: disks whose files are handed to the driver open.

use std::{any::Any, fmt, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use zeroize::Zeroizing;

use crate::{DiskRole, VmmError};

/// A volume that a VM is given.
#[derive(Debug, Clone)]
pub struct VolumeDisk {
    /// Its slot: `DiskRole::Volume(index)`.
    pub index: u8,
    /// The qcow2, open for reading and writing, with the lock of its one writer. The lock (flock)
    /// belongs to the open file description, so the VM process gets this very one, never the path.
    /// The driver keeps no copy beyond the launch: where the caller keeps none either, the lock
    /// ends with the VM.
    pub file: Arc<OwnedFd>,
    /// What opens its LUKS layer, if it is encrypted.
    pub passphrase: Option<Passphrase>,
    /// What the guest sees of it, bytes.
    pub size: u64,
    /// What is read where the file has nothing yet, while it is being restored. Not for a qcow2
    /// with extended L2 entries, which QEMU 7.2 can't restore while a guest uses it.
    pub backing: Option<Backing>,
}

/// What a guest may read and write of all its volumes together. Bursts of a tenth of a second are
/// possible, since QEMU counts so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimits {
    /// Requests per second.
    pub iops: u32,
    /// Bytes per second.
    pub bytes_per_second: u64,
}

/// What a volume that is being restored is read from: an NBD server of the caller, any export name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Its unix socket, in a directory that has nothing else in it: the VM process gets the
    /// directory open, since it can't reach the path, and connects anew through it when the server
    /// was away. It runs as a user of its own, which has to be let search the directory (0711) and
    /// connect to the socket (0666); what is above the directory does not matter to it. The name
    /// of the export that it asks for is that of the volume's role (`volume0`). A request that the
    /// server can't answer within seconds it has to answer with an error, upon which the VM is
    /// paused: as long as one is not answered the VM process may not do anything else.
    pub socket: PathBuf,
}

/// An instant of a volume, to be read from outside while the VM goes on.
#[derive(Debug)]
pub struct PointInTime {
    /// Id of the snapshot.
    pub id: String,
    /// Id of the last snapshot that was taken of it: what has changed since is known when this VM
    /// process took it.
    pub previous: Option<String>,
    /// An empty qcow2 of the volume's size, where what the guest overwrites meanwhile is kept.
    pub fleecing: OwnedFd,
    /// What opens its LUKS layer, if it is encrypted.
    pub passphrase: Option<Passphrase>,
}

/// A snapshot for which everything is there but its instant. As long as this is there the VM can't
/// be told anything else: whoever wants to waits.
#[derive(Debug)]
pub struct PreparedSnapshot {
    /// Its id.
    pub(crate) id: String,
    /// Id of the one before.
    pub(crate) previous: Option<String>,
    /// Dirty bitmaps that are to record no more once the instant has come.
    pub(crate) bitmaps: Vec<String>,
    /// The driver's own: the connection over which the VM is told the instant.
    pub(crate) line: Option<Box<dyn Any + Send>>,
}

/// A snapshot whose instant has come, and which can't be read yet. The VM can't be told anything
/// else either.
#[derive(Debug)]
pub struct BegunSnapshot(pub(crate) PreparedSnapshot);

/// Where an instant of a volume can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeExport {
    /// Unix socket of an NBD server in the VM process.
    pub socket: PathBuf,
    /// Name of the export.
    pub name: String,
    /// NAME of the dirty bitmap that says what has changed since the previous snapshot, if that is
    /// known; its context is `qemu:dirty-bitmap:NAME`.
    pub changed: Option<String>,
}

/// How far a volume is with having all of its backing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hydration {
    /// So many bytes, of so many.
    Running {
        /// Done.
        done: u64,
        /// To do in all.
        total: u64,
    },
    /// It stood still because its backing can't be read; it is tried again with this call.
    Stalled {
        /// Why.
        reason: String,
    },
    /// It needs no backing any more.
    Done,
}

/// Why something is refused of a volume that a VM does not have.
pub(crate) const MISSING: &str = "the VM has no such volume";
/// Why something is refused of a volume of which a snapshot is open.
pub(crate) const SNAPSHOT_OPEN: &str = "a snapshot of it is being taken";
/// Why something is refused of a volume that still has a backing.
pub(crate) const RESTORING: &str = "it is still being restored";

impl VolumeDisk {
    /// Its role.
    pub fn role(&self) -> DiskRole {
        DiskRole::Volume(self.index)
    }
}

/// What opens an encrypted volume. Zeroed when it is dropped, and not shown.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// This one.
    pub fn new(passphrase: String) -> Self {
        Self(Zeroizing::new(passphrase))
    }

    /// For who opens the volume.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Whether a machine can have these volumes.
///
/// # Errors
/// [`VmmError::InvalidDisk`] for one beyond [`DiskRole::VOLUMES`], and for a second one of a slot.
pub(crate) fn check(volumes: &[VolumeDisk]) -> Result<(), VmmError> {
    for (at, volume) in volumes.iter().enumerate() {
        let invalid = |reason| VmmError::InvalidDisk { name: volume.role().name(), reason };
        if volume.index >= DiskRole::VOLUMES {
            let most = DiskRole::VOLUMES;
            return Err(invalid(format!("a machine has at most {most} volumes, counted from 0")));
        }
        if volumes[..at].iter().any(|other| other.index == volume.index) {
            return Err(invalid("the machine has another volume in this slot".to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_not_shown() {
        let passphrase = Passphrase::new("secret words".to_owned());
        assert_eq!(passphrase.reveal(), "secret words");
        assert_eq!(format!("{passphrase:?}"), "Passphrase(..)");
    }
}
