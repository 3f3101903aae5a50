//! The lock that proves at most one VM per machine: an exclusive `flock` on `lock` in the machine's
//! directory, held by a descriptor that the VM process inherits and nobody else keeps.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{FlockOperation, flock};

use crate::VmmError;

const FILE: &str = "lock";

/// A process that is being started holds copies of all our descriptors between its fork and its
/// exec, locks included. So no lock is taken or tested while another thread is there.
static FORKING: Mutex<()> = Mutex::new(());

/// Waits until nobody of this process forks or tests a lock. For blocking code only, and not for
/// long.
pub(crate) fn no_fork() -> MutexGuard<'static, ()> {
    FORKING.lock()
}

/// Takes the machine's lock; `None` when a process holds it.
pub(crate) fn try_lock(directory: &Path) -> Result<Option<File>, VmmError> {
    let path = directory.join(FILE);
    let attempted = || format!("lock {}", path.display());
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    loop {
        let file = options.open(&path).map_err(VmmError::io(attempted()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Another's lock may have taken its place between opening and locking.
            Ok(()) if !is_at(&file, &path) => {}
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(VmmError::io(attempted())(error.into())),
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(opened), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    opened.dev() == there.dev() && opened.ino() == there.ino()
}

/// Makes the lock of one directory, with the process that holds it, that of another, whose own the
/// caller holds.
pub(crate) fn pass_on(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from.join(FILE), to.join(FILE))
}

/// The processes, other than this one, that have the lock's file open.
pub(crate) fn holders(directory: &Path) -> io::Result<Vec<u32>> {
    let lock = std::fs::metadata(directory.join(FILE))?;
    let mut holders = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
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
        std::fs::metadata(descriptor.path())
            .is_ok_and(|file| file.dev() == lock.dev() && file.ino() == lock.ino())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_passed_on_is_held_where_it_goes_and_whoever_held_the_old_one_holds_nothing() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let process = try_lock(from.path()).unwrap().unwrap();
        let caller = try_lock(to.path()).unwrap().unwrap();
        pass_on(from.path(), to.path()).unwrap();
        drop(caller);
        assert!(try_lock(to.path()).unwrap().is_none(), "the process holds it");
        assert!(try_lock(from.path()).unwrap().is_some(), "nobody is there any more");
        drop(process);
        assert!(try_lock(to.path()).unwrap().is_some());
    }
}
