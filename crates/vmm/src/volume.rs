//! Volumes of a VM: disks whose files are handed to the driver open.

use std::{fmt, os::fd::OwnedFd, sync::Arc};

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
}

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
