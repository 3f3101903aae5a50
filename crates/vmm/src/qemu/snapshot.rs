//! What a VM was saved to: its memory as it is, so that the next VM maps it and reads what it needs
//! when it needs it, and behind that the state of its devices and a checksum for each chunk of
//! memory.
//!
//! ```text
//! memory ▸ device state ▸ checksum of each chunk
//!        ▸ magic, key, length of the memory, length of the state, checksum
//! ```
//! Numbers are little endian, checksums have 32 bits. One covers the key, how many chunks came
//! before, and the bytes: a chunk in another's place, or of another snapshot, is damaged too. The
//! last covers all that is not memory. The key names all that the snapshot depends on. Pages that
//! are zero are not written.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rustix::fs::{SeekFrom, seek};

use crate::qemu::template::file::nonzero;

const MAGIC: &[u8; 16] = b"caddis-snapshot2";
/// Bytes that have a checksum.
const CHUNK: usize = 1 << 20;
/// Length of a key.
const KEY: usize = 32;
/// Length of what comes last.
const FOOTER: usize = MAGIC.len() + KEY + 8 + 8 + 4;
/// Device state is some tens of kilobytes.
pub(crate) const LARGEST_STATE: u64 = 16 << 20;
/// Threads that copy or check: more would only wait for memory.
const THREADS: usize = 4;
/// Between two turns of having the disk write: one with nothing to do ends at once, and would only
/// take a processor.
const BACKOFF: Duration = Duration::from_millis(3);

static ZEROES: [u8; CHUNK] = [0; CHUNK];

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot is damaged: {what}"))
}

fn begin(key: &str, number: usize) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(&(number as u64).to_le_bytes());
    hasher
}

/// Checksum of all that is not memory.
fn checksum(key: &str, state: &[u8], table: &[u8], size: u64) -> u32 {
    let mut hasher = begin(key, usize::MAX);
    hasher.update(&size.to_le_bytes());
    hasher.update(state);
    hasher.update(table);
    hasher.finalize()
}

fn chunks(size: u64) -> io::Result<usize> {
    usize::try_from(size.div_ceil(CHUNK as u64)).map_err(io::Error::other)
}

/// Where a chunk is.
fn span(number: usize, size: u64) -> (u64, u64) {
    let start = number as u64 * CHUNK as u64;
    (start, (start + CHUNK as u64).min(size))
}

/// Does something with each chunk's number, on as many threads as are of use.
fn for_each(
    chunks: usize,
    work: impl Fn(usize, &mut [u8]) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let turns = || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= chunks {
                return Ok(());
            }
            work(number, &mut buffer).inspect_err(|_| next.store(chunks, Ordering::Relaxed))?;
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(turns)).collect();
        let panicked = |_| Err(io::Error::other("a thread panicked"));
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(panicked))
    })
}

/// What is to be saved.
pub(crate) struct Content<'a> {
    /// Length of the memory, bytes.
    pub(crate) size: u64,
    /// Reads memory.
    pub(crate) memory: &'a (dyn Fn(u64, &mut [u8]) -> io::Result<()> + Sync),
    /// Reads device state, once all memory was.
    pub(crate) state: &'a mut dyn FnMut() -> io::Result<Vec<u8>>,
}

/// Writes `content`, durably, to `path` with another ending; [`keep`] gives it its name. Ends with
/// an error soon after `cancelled` is set.
pub(crate) fn write(
    path: &Path,
    key: &str,
    content: Content<'_>,
    cancelled: &AtomicBool,
) -> io::Result<()> {
    let new = path.with_extension("new");
    let attempt = || {
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.set_len(content.size)?;
        let written = AtomicBool::new(false);
        thread::scope(|scope| {
            // The disk works while there is still more to come (for 140 MB: 115 ms in all instead
            // of 205).
            scope.spawn(|| {
                while !written.load(Ordering::Relaxed) {
                    // The last one, below, tells.
                    let _ = file.sync_data();
                    thread::sleep(BACKOFF);
                }
            });
            let outcome = copy(&file, key, content, cancelled);
            written.store(true, Ordering::Relaxed);
            outcome
        })?;
        file.sync_data()
    };
    attempt().inspect_err(|_| remove_new(path))
}

fn copy(file: &File, key: &str, content: Content<'_>, cancelled: &AtomicBool) -> io::Result<()> {
    let Content { size, memory, state } = content;
    let table: Vec<_> = (0..chunks(size)?).map(|_| AtomicU32::new(0)).collect();
    for_each(table.len(), |number, buffer| {
        if cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("it was cancelled"));
        }
        let (start, end) = span(number, size);
        // At most CHUNK.
        let chunk = &mut buffer[..(end - start) as usize];
        memory(start, chunk)?;
        let mut hasher = begin(key, number);
        hasher.update(chunk);
        table[number].store(hasher.finalize(), Ordering::Relaxed);
        nonzero(chunk)
            .into_iter()
            .try_for_each(|(at, run)| file.write_all_at(run, start + at as u64))
    })?;
    let state = state()?;
    let table: Vec<_> =
        table.into_iter().flat_map(|checksum| checksum.into_inner().to_le_bytes()).collect();
    let mut rest = [&state[..], &table, MAGIC, key.as_bytes()].concat();
    rest.extend_from_slice(&size.to_le_bytes());
    rest.extend_from_slice(&(state.len() as u64).to_le_bytes());
    rest.extend_from_slice(&checksum(key, &state, &table, size).to_le_bytes());
    file.write_all_at(&rest, size)
}

/// Where the snapshot of a machine that is saved in this directory is.
pub(crate) fn file(directory: &Path) -> PathBuf {
    directory.join("memory.snapshot")
}

/// Removes the snapshot in a directory, finished or not.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    let file = file(directory);
    for path in [&file, &file.with_extension("new")] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Gives what was written its name, durably.
pub(crate) fn keep(path: &Path) -> io::Result<()> {
    fs::rename(path.with_extension("new"), path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes what was written and not kept.
pub(crate) fn remove_new(path: &Path) {
    // Half a snapshot is of no use to anyone; what can't be removed is written over by the next.
    let _ = fs::remove_file(path.with_extension("new"));
}

/// A snapshot whose device state was checked, and its memory not yet.
pub(crate) struct Snapshot {
    file: File,
    key: String,
    size: u64,
    table: Vec<u8>,
    /// State of all devices.
    pub(crate) state: Vec<u8>,
}

impl AsFd for Snapshot {
    /// The file. It begins with the memory.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Snapshot {
    /// Opens one of `size` bytes of memory.
    ///
    /// # Errors
    /// `NotFound` when it is not there, `InvalidData` when it can't be used; all others are the
    /// host's.
    pub(crate) fn open(path: &Path, key: &str, size: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let missing = || damaged("its end is missing");
        let footer_at = length.checked_sub(FOOTER as u64).ok_or_else(missing)?;
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, footer_at)?;
        let (magic, rest) = footer.split_at(MAGIC.len());
        let (recorded, rest) = rest.split_at(KEY);
        let number = |at: usize| {
            let bytes = rest.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_le_bytes).unwrap_or_default()
        };
        if magic != MAGIC {
            return Err(missing());
        }
        if recorded != key.as_bytes() || number(0) != size {
            let text = "the snapshot was made with another QEMU, CPU, kernel, init or size";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let (state_length, table_length) = (number(8), 4 * chunks(size)? as u64);
        if state_length > LARGEST_STATE || size + state_length + table_length != footer_at {
            return Err(damaged("its parts do not fit together"));
        }
        // Small, as was just seen.
        let mut state = vec![0; (state_length + table_length) as usize];
        file.read_exact_at(&mut state, size)?;
        let table = state.split_off(state_length as usize);
        if rest[16..] != checksum(key, &state, &table, size).to_le_bytes() {
            return Err(damaged("device state"));
        }
        Ok(Self { file, key: key.to_owned(), size, table, state })
    }

    /// Compares all memory with its checksums. What was never written is not read.
    pub(crate) fn verify(&self) -> io::Result<()> {
        for_each(chunks(self.size)?, |number, buffer| {
            let mut hasher = begin(&self.key, number);
            let (mut at, end) = span(number, self.size);
            while at < end {
                // Behind the memory there is more.
                let data = seek(&self.file, SeekFrom::Data(at))?.min(end);
                // At most CHUNK, both.
                hasher.update(&ZEROES[..(data - at) as usize]);
                let hole = seek(&self.file, SeekFrom::Hole(data))?.min(end);
                let part = &mut buffer[..(hole - data) as usize];
                self.file.read_exact_at(part, data)?;
                hasher.update(part);
                at = hole;
            }
            let good = self.table.get(4 * number..4 * number + 4)
                == Some(&hasher.finalize().to_le_bytes());
            if good { Ok(()) } else { Err(damaged(&format!("chunk {number}"))) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "0123456789abcdef0123456789abcdee";
    const PAGE: usize = 4096;
    const SIZE: usize = 2 * CHUNK + 16 * PAGE;
    const STATE: &[u8] = b"devices";

    /// Every other page is zero, and the second chunk is.
    fn memory() -> Vec<u8> {
        let byte = |at: usize| {
            if (at / PAGE).is_multiple_of(2) || at / CHUNK == 1 { 0 } else { (at % 251) as u8 }
        };
        (0..SIZE).map(byte).collect()
    }

    fn write_with(path: &Path, cancelled: bool) -> io::Result<()> {
        let memory = memory();
        let read = |offset: u64, buffer: &mut [u8]| {
            buffer.copy_from_slice(&memory[offset as usize..offset as usize + buffer.len()]);
            Ok(())
        };
        let mut state = || Ok(STATE.to_vec());
        let content = Content { size: SIZE as u64, memory: &read, state: &mut state };
        write(path, ONE, content, &AtomicBool::new(cancelled))
    }

    fn written(path: &Path) {
        write_with(path, false).unwrap();
        assert!(!path.exists(), "not before it is whole");
        keep(path).unwrap();
    }

    fn check(path: &Path, key: &str) -> io::Result<Vec<u8>> {
        let snapshot = Snapshot::open(path, key, SIZE as u64)?;
        snapshot.verify().map(|()| snapshot.state)
    }

    #[test]
    fn a_snapshot_is_as_it_was_written_and_only_under_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.snapshot");
        written(&path);
        assert_eq!(check(&path, ONE).unwrap(), STATE);
        assert!(fs::read(&path).unwrap()[..SIZE] == memory()[..], "it begins with the memory");
        assert!(check(&path, OTHER).unwrap_err().to_string().contains("another QEMU"));
        let other_size = Snapshot::open(&path, ONE, SIZE as u64 + 1).err().unwrap();
        assert!(other_size.to_string().contains("another QEMU"));
    }

    #[test]
    fn damage_is_found_wherever_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.snapshot");
        written(&path);
        let good = fs::read(&path).unwrap();
        let last = good.len() - 1;
        // Among them pages that are zero, the device state, the table and the footer.
        for at in [
            0,
            PAGE,
            PAGE + 1,
            CHUNK,
            CHUNK + 5000,
            SIZE - 1,
            SIZE,
            SIZE + 8,
            last - FOOTER,
            last - 60,
            last - 9,
            last,
        ] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            assert!(check(&path, ONE).is_err(), "byte {at}");
        }
        for length in [0, 20, FOOTER, CHUNK, SIZE, SIZE + 3, last - 8, last] {
            fs::write(&path, &good[..length]).unwrap();
            assert!(check(&path, ONE).is_err(), "cut to {length} bytes");
        }
        // A chunk in the place of another.
        let mut bad = good.clone();
        bad.copy_within(CHUNK..2 * CHUNK, 0);
        fs::write(&path, bad).unwrap();
        assert!(check(&path, ONE).is_err());
        fs::write(&path, good).unwrap();
        assert_eq!(check(&path, ONE).unwrap(), STATE);
    }

    #[test]
    fn a_failure_of_the_host_is_told_from_a_snapshot_that_is_no_good() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.snapshot");
        let open = |key| Snapshot::open(&path, key, SIZE as u64).err().unwrap().kind();
        assert_eq!(open(ONE), io::ErrorKind::NotFound);
        written(&path);
        assert_eq!(open(OTHER), io::ErrorKind::InvalidData);
        fs::write(&path, "half").unwrap();
        assert_eq!(open(ONE), io::ErrorKind::InvalidData);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(![io::ErrorKind::NotFound, io::ErrorKind::InvalidData].contains(&open(ONE)));
    }

    #[test]
    fn what_is_called_off_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.snapshot");
        assert!(write_with(&path, true).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
