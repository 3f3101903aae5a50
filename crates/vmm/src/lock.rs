//! The lock that proves at most one VM per machine: an exclusive `flock` on `lock` in the machine's directory, held by
//! a descriptor that the VM process inherits and nobody else keeps.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{FlockOperation, flock};

use crate::VmmError;

const FILE: &str = "lock";

/// A process that is being started holds copies of all our descriptors between its fork and its exec, locks included.
/// So no lock is taken or tested while another thread is there.
static FORKING: Mutex<()> = Mutex::new(());

/// Waits until nobody of this process forks or tests a lock. For blocking code only, and not for long.
pub(crate) fn no_fork() -> MutexGuard<'static, ()> {
    FORKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the machine's lock; `None` when a process holds it.
pub(crate) fn try_lock(directory: &Path) -> Result<Option<File>, VmmError> {
    let path = directory.join(FILE);
    let attempted = || format!("lock {}", path.display());
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(VmmError::io(attempted()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(VmmError::io(attempted())(error.into())),
    }
}

/// The processes, other than this one, that have the lock's file open.
pub(crate) fn holders(directory: &Path) -> io::Result<Vec<u32>> {
    let lock = std::fs::metadata(directory.join(FILE))?;
    let mut holders = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid != std::process::id() && has_open(pid, &lock) {
            holders.push(pid);
        }
    }
    Ok(holders)
}

/// Whether a process has the machine's lock open.
pub(crate) fn is_held_by(directory: &Path, pid: u32) -> bool {
    std::fs::metadata(directory.join(FILE)).is_ok_and(|lock| has_open(pid, &lock))
}

fn has_open(pid: u32, lock: &std::fs::Metadata) -> bool {
    // It may end while we look: then it holds nothing.
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        std::fs::metadata(descriptor.path()).is_ok_and(|file| file.dev() == lock.dev() && file.ino() == lock.ino())
    })
}
