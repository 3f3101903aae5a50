//! A reserve of room on the host's disk. A disk may be filled by anyone; what frees room again
//! (stop, destroy) and the server's start have to be recorded first, and a database can't be
//! written without room.
//!
//! The reserve is a file beside the databases. A write that must not fail and finds the disk full
//! has it give back a part, and is tried again; when there is room again it is made whole
//! ([`Reserve::keep_whole`]). Parts are small, since whoever has filled the disk may take some of
//! what is given back.
#![forbid(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{errno::Errno, fcntl::posix_fallocate, sys::statvfs::statvfs};
use parking_lot::Mutex;
use rusqlite::ErrorCode;
use tokio::sync::watch;

/// Size of a whole reserve, bytes: a stop or destroy records a few KiB.
pub const SIZE: u64 = 16 << 20;
/// What is given back at once, bytes.
const PART: u64 = 1 << 20;
/// What a server's start needs, generously, bytes: the databases' shared memory and logs, and some
/// small files.
const START: u64 = 4 << 20;
/// Room that must be left to others before a reserve takes what it lacks, bytes.
const LEFT: u64 = 16 << 20;
/// How often it is looked whether there is room again, while there is not.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// A file system with less room than this counts as full, bytes.
const FULL: u64 = 256 << 10;

/// Bytes free, for everyone, on the file system of a path.
///
/// # Errors
/// When there is no such path.
pub fn free(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks_available() * found.fragment_size())
}

/// Whether SQLite failed for want of room. It says so for most writes, but not where it makes a
/// file or maps memory; `database` tells which file system to look at then.
pub fn is_full(error: &rusqlite::Error, database: &Path) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => true,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
            free(database.parent().unwrap_or(database)).is_ok_and(|free| free < FULL)
        }
        _ => false,
    }
}

/// See the crate's text.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    size: u64,
    /// What it holds, bytes.
    held: watch::Sender<u64>,
    /// The file, unless it could not be made.
    file: Mutex<Option<File>>,
}

impl Reserve {
    /// None, as tests have it: it never gives anything back.
    pub fn none() -> Self {
        Self { path: PathBuf::new(), size: 0, held: watch::Sender::new(0), file: Mutex::default() }
    }

    /// Takes over the reserve at `path`, or makes it where there is room. On a disk that is full it
    /// gives back what the server's start needs; [`Self::settle`] takes back what is left of that.
    pub fn open(path: &Path, size: u64) -> Self {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let file = opened.inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "no reserve on the disk: stops may fail \
                when it is full");
        });
        let held =
            file.as_ref().ok().and_then(|file| file.metadata().ok()).map_or(0, |file| file.len());
        let reserve = Self {
            path: path.to_owned(),
            size,
            held: watch::Sender::new(held),
            file: Mutex::new(file.ok()),
        };
        reserve.make_room();
        reserve
    }

    /// Gives back what a start lacks, and no more: it may fail and be tried again and again, and
    /// somebody takes it each time. Where nothing is lacking the reserve is made whole.
    fn make_room(&self) {
        let lacking = START.saturating_sub(free(&self.path).unwrap_or(START));
        if lacking == 0 {
            self.grow(LEFT);
        } else if self.shrink(lacking) {
            tracing::warn!(path = %self.path.display(), "the disk is full: starting with its \
                reserve");
        }
    }

    /// What it holds now, bytes.
    pub fn held(&self) -> u64 {
        *self.held.borrow()
    }

    /// The server has started, or failed to: what was given back for that and is still there is
    /// taken back.
    pub fn settle(&self) {
        self.grow(0);
    }

    /// Gives back a part. False when nothing is left.
    pub fn give(&self) -> bool {
        let given = self.shrink(PART);
        if given {
            tracing::warn!(left = self.held(), "the disk is full: released part of the reserve");
        }
        given
    }

    /// Tries something with the database at `database` that must not fail for want of room, again
    /// with each part that is given back for it.
    ///
    /// # Errors
    /// What `attempt` fails with, for want of room only when nothing is left of the reserve.
    pub fn with<T>(
        &self,
        database: &Path,
        mut attempt: impl FnMut() -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        loop {
            match attempt() {
                Err(error) if is_full(&error, database) && self.give() => {}
                outcome => return outcome,
            }
        }
    }

    /// Makes it whole again whenever parts of it were given back and there is room; never ends.
    pub async fn keep_whole(&self) {
        let mut held = self.held.subscribe();
        loop {
            if held.wait_for(|held| *held < self.size).await.is_err() {
                return;
            }
            while self.held() < self.size {
                tokio::time::sleep(LOOK_INTERVAL).await;
                if self.grow(LEFT) {
                    tracing::info!("the disk has free space again: reserve restored");
                }
            }
        }
    }

    fn shrink(&self, by: u64) -> bool {
        let file = self.file.lock();
        let held = self.held();
        let Some(file) = file.as_ref().filter(|_| held > 0) else { return false };
        let left = held.saturating_sub(by);
        match file.set_len(left) {
            Ok(()) => {
                self.held.send_replace(left);
                true
            }
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "can't release the reserve");
                false
            }
        }
    }

    /// Takes what it lacks, where so much is left to others. True when it is whole then and was
    /// not.
    fn grow(&self, left: u64) -> bool {
        let file = self.file.lock();
        let (Some(file), held) = (file.as_ref(), self.held()) else { return false };
        if held >= self.size {
            return false;
        }
        let free = free(&self.path).unwrap_or(0);
        // What is to be left may be nothing, but never less than databases need for a while.
        let to = if left > 0 { self.size } else { self.size.min(held + free.saturating_sub(FULL)) };
        if to <= held || free < to - held + left {
            return false;
        }
        if let Err(error) = allocate(file, to) {
            tracing::warn!(path = %self.path.display(), %error, "can't restore the reserve");
            // What it got is given up again, so that its length says what it holds.
            if file.set_len(held).is_err() {
                tracing::error!(path = %self.path.display(), "can't release part of the reserve");
            }
            return false;
        }
        self.held.send_replace(to);
        to == self.size
    }
}

/// Has a file hold so many bytes of the disk.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    let length = i64::try_from(size).map_err(io::Error::other)?;
    loop {
        return match posix_fallocate(file, 0, length) {
            Err(Errno::EINTR) => continue,
            outcome => outcome.map_err(io::Error::from),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that a file takes, bytes.
    fn taken(path: &Path) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        path.metadata().unwrap().blocks() * 512
    }

    fn full() -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None)
    }

    #[test]
    fn it_takes_room_gives_it_back_in_parts_and_takes_it_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reserve");
        let size = 3 * PART;
        let reserve = Reserve::open(&path, size);
        assert_eq!(reserve.held(), size);
        assert!(taken(&path) >= size, "{}", taken(&path));
        assert!(reserve.give());
        assert!(taken(&path) <= size - PART + 4096, "{}", taken(&path));
        drop(reserve);

        let reserve = Reserve::open(&path, size);
        assert_eq!(reserve.held(), size, "made whole by the next server");
        for left in [2, 1, 0] {
            assert!(reserve.give());
            assert_eq!(reserve.held(), left * PART);
        }
        assert!(!reserve.give(), "nothing is left");
        assert!(reserve.grow(LEFT));
        assert!(taken(&path) >= size);
    }

    #[test]
    fn what_must_not_fail_is_tried_with_all_there_is_and_other_errors_cost_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reserve");
        let reserve = Reserve::open(&path, 3 * PART);
        let mut tries = 0;
        let done = reserve.with(&path, || {
            tries += 1;
            if tries < 3 { Err(full()) } else { Ok(tries) }
        });
        assert_eq!((done.unwrap(), reserve.held()), (3, PART));
        let other = reserve.with(&path, || Err::<(), _>(rusqlite::Error::InvalidQuery));
        assert!(matches!(other, Err(rusqlite::Error::InvalidQuery)));
        assert_eq!(reserve.held(), PART);
        assert!(
            is_full(&reserve.with(&path, || Err::<(), _>(full())).unwrap_err(), &path),
            "all of it was not enough"
        );
        assert_eq!(reserve.held(), 0);
        assert!(Reserve::none().with(&path, || Err::<(), _>(full())).is_err());
    }

    /// Runs a test with a file system of that size, which nobody else sees. Needs root.
    fn on_a_disk(size: u64, test: impl FnOnce(&Path) + Send + 'static) {
        use nix::{
            mount::{MsFlags, mount},
            sched::{CloneFlags, unshare},
        };
        let body = move || {
            let directory = tempfile::tempdir().unwrap();
            unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root: sudo make test");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let options = format!("size={size}");
            let path = directory.path();
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
                .unwrap();
            test(path);
            nix::mount::umount(path).unwrap();
        };
        if let Err(panic) = std::thread::spawn(body).join() {
            std::panic::resume_unwind(panic);
        }
    }

    #[test]
    fn starts_that_fail_on_a_full_disk_cost_what_others_take_meanwhile_and_no_more() {
        on_a_disk(SIZE + LEFT + START, |directory| {
            let path = directory.join("reserve");
            let filler = File::create(directory.join("filler")).unwrap();
            drop(Reserve::open(&path, SIZE));
            // Takes all but so much.
            let fill = |left: u64| {
                let size = filler.metadata().unwrap().len() + free(directory).unwrap();
                allocate(&filler, size - left).unwrap();
                assert_eq!(free(directory).unwrap(), left);
            };
            assert!(free(directory).unwrap() > START);
            fill(1 << 20);
            for _ in 0..10 {
                let reserve = Reserve::open(&path, SIZE);
                assert_eq!(
                    (free(directory).unwrap(), reserve.held()),
                    (START, SIZE - START + (1 << 20))
                );
                reserve.settle();
                assert_eq!((free(directory).unwrap(), reserve.held()), (1 << 20, SIZE));
            }
            // One that is killed takes nothing back, and the next one lacks nothing.
            for _ in 0..10 {
                assert_eq!(Reserve::open(&path, SIZE).held(), SIZE - START + (1 << 20));
            }
            // What somebody took is all that is lost.
            fill(3 << 20);
            let reserve = Reserve::open(&path, SIZE);
            assert_eq!((free(directory).unwrap(), reserve.held()), (START, SIZE - START));
            while reserve.give() {
                fill(0);
            }
            drop(reserve);
            let empty = Reserve::open(&path, SIZE);
            assert_eq!(
                (free(directory).unwrap(), empty.held()),
                (0, 0),
                "there is nothing to give"
            );
            empty.settle();
            assert_eq!(empty.held(), 0);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_back_is_taken_again_when_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(&directory.path().join("reserve"), 2 * PART);
        let mut held = reserve.held.subscribe();
        assert!(reserve.give());
        tokio::select! {
            () = reserve.keep_whole() => {}
            whole = held.wait_for(|held| *held == 2 * PART) => drop(whole.unwrap()),
        }
    }
}
