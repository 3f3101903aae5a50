//! Volumes of fake VMs: their descriptors are held, and their locks with them.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::Path,
};

use super::{FakeHost, FakeVm};
use crate::{Passphrase, VmmError, VolumeDisk};

/// Begins a file that says which passphrase opens it.
const ENCRYPTED: &str = "fake encrypted volume ";
/// What is read of it, bytes.
const LONGEST: usize = 1024;

/// Makes a file that the fake driver takes for a volume which only this passphrase opens. Any other
/// file is one that each launch can open.
///
/// # Errors
/// What the file system says.
pub fn create_volume(path: &Path, passphrase: &Passphrase) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(format!("{ENCRYPTED}{}", passphrase.reveal()).as_bytes())
}

impl FakeHost {
    /// What QEMU does with volumes at a launch.
    pub(super) fn open_volumes(&self, volumes: &[VolumeDisk]) -> Result<(), VmmError> {
        let Some(first) = volumes.first() else { return Ok(()) };
        let refused = |volume: &VolumeDisk, reason: &str| VmmError::InvalidDisk {
            name: volume.role().name(),
            reason: reason.to_owned(),
        };
        {
            let mut faults = self.faults.lock();
            if faults.failing_volumes > 0 {
                faults.failing_volumes -= 1;
                return Err(refused(first, "told to fail"));
            }
        }
        for volume in volumes {
            let file = volume.file.try_clone().map_err(VmmError::io("open a volume"))?;
            let begin = beginning(file).map_err(VmmError::io("read a volume"))?;
            let wanted = begin.strip_prefix(ENCRYPTED);
            let given = volume.passphrase.as_ref().map(Passphrase::reveal);
            if wanted.is_some_and(|wanted| given != Some(wanted)) {
                return Err(refused(volume, "invalid passphrase"));
            }
        }
        Ok(())
    }
}

fn beginning(file: OwnedFd) -> io::Result<String> {
    let mut bytes = [0; LONGEST];
    let count = File::from(file).read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

impl FakeVm {
    pub(super) fn resize(&self, index: u8, bytes: u64) -> Result<(), VmmError> {
        let mut volumes = self.volumes.lock();
        let volume = volumes.iter_mut().find(|volume| volume.index == index);
        let name = crate::DiskRole::Volume(index).name();
        let refused =
            |reason: &str| VmmError::InvalidDisk { name: name.clone(), reason: reason.to_owned() };
        let volume = volume.ok_or_else(|| refused("the VM has no such volume"))?;
        if volume.size > bytes {
            return Err(refused("it is larger, and is not made smaller"));
        }
        {
            let mut faults = self.host.faults.lock();
            if faults.failing_resizes > 0 {
                faults.failing_resizes -= 1;
                return Err(VmmError::io("resize a volume")(io::Error::other("told to fail")));
            }
        }
        volume.size = bytes;
        self.host.resizes.lock().push((self.machine_id.clone(), index, bytes));
        Ok(())
    }
}
