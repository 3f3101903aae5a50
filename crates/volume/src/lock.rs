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
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// How often, and how long after the last time, a lock is tried that no process is seen to hold.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(1);
/// How often a process is seen until the lock is its own.
const SEEN: usize = 10;

/// A lock that is given up when dropped, whatever copies of the descriptor there are: a process
/// that is being started has one of everything until it runs its program.
#[derive(Debug)]
pub(crate) struct FileLock(Option<File>);

impl FileLock {
    /// Takes the lock of a file, which has to be there; `None` when somebody has it.
    ///
    /// The lock of a process that was killed outlives it for as long as another process looks at
    /// its descriptors (`/proc/PID/fd`, as `lsof` and [`holders`] do), so where nobody has the file
    /// open the lock is waited for. A program that it was about to start has them, too, until it
    /// runs: so one look that finds somebody does not count.
    pub(crate) fn take(path: &Path) -> io::Result<Option<Self>> {
        let mut seen = 0;
        for _ in 0..ATTEMPTS {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self(Some(file)))),
                Err(Errno::WOULDBLOCK) => drop(file),
                Err(error) => return Err(error.into()),
            }
            if !open_in(path)?.is_empty() {
                seen += 1;
            }
            if seen == SEEN {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(None)
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
    Ok(open_in(path)?.into_iter().filter(|pid| *pid != std::process::id()).collect())
}

/// The processes that have a file open.
fn open_in(path: &Path) -> io::Result<Vec<u32>> {
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
    Ok(pids.filter(has_open).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::{
        io::IoSlice,
        mem::MaybeUninit,
        os::{fd::AsFd as _, unix::net::UnixStream},
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[test]
    fn a_lock_that_no_process_is_seen_to_hold_is_a_lock_and_is_free_once_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let file = File::create(&path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(FileLock::take(&path).unwrap().is_none(), "this process holds it");

        // A descriptor on its way is nobody's, as that of a process that has ended while another
        // looked at it.
        let (sender, receiver) = UnixStream::pair().unwrap();
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [file.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&sender, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
        drop(file);
        assert_eq!(open_in(&path).unwrap(), Vec::<u32>::new());
        assert!(FileLock::take(&path).unwrap().is_none(), "it is locked still");
        drop((sender, receiver));
        assert!(FileLock::take(&path).unwrap().is_some());
    }
}
