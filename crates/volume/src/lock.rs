//! The lock that proves at most one writer: an exclusive `flock` on the volume's file.
//!
//! It belongs to the open file description, so it stays with whoever is handed a copy of the
//! descriptor, QEMU for instance, and ends with the last copy. QEMU's own locks on images are of
//! another kind (`F_OFD_SETLK` on bytes 100 and up) and neither see nor hinder it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// A lock that is given up when dropped, whatever copies of the descriptor there are: a process
/// that is being started has one of everything until it runs its program.
#[derive(Debug)]
pub(crate) struct FileLock(Option<File>);

impl FileLock {
    /// Takes the lock of a file, which has to be there; `None` when somebody has it.
    pub(crate) fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(Some(file)))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Another descriptor of the locked file, with which a process that is given it keeps it locked
    /// when this one is gone without having been dropped.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        let file = self.0.as_ref().ok_or_else(|| io::Error::other("it is not locked"))?;
        Ok(file.try_clone()?.into())
    }

    /// The locked file. The lock ends when its last copy is closed.
    pub(crate) fn into_file(mut self) -> Option<File> {
        self.0.take()
    }
}

impl From<File> for FileLock {
    /// Of a file that is locked.
    fn from(file: File) -> Self {
        Self(Some(file))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            // It can't fail on a file that is open and locked.
            let _ = flock(file, FlockOperation::Unlock);
        }
    }
}

/// The processes, other than this one, that have a file open.
pub(crate) fn holders(path: &Path) -> io::Result<Vec<u32>> {
    let file = fs::metadata(path)?;
    let has_open = |pid: &u32| {
        // It may end while we look: then it holds nothing.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors.flatten().any(|descriptor| {
            fs::metadata(descriptor.path())
                .is_ok_and(|found| found.dev() == file.dev() && found.ino() == file.ino())
        })
    };
    let processes = fs::read_dir("/proc")?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| *pid != std::process::id()).filter(has_open).collect())
}
