//! A template on disk: its memory, without what is zero, and its device state, under one digest.
//!
//! ```text
//! magic ▸ memory size ▸ { offset, length, bytes }* ▸ { END, length, device state }
//!       ▸ SHA-256 of all before
//! ```
//! All numbers are 64 bits, little endian. Which VM it is of is in the file's name, and in the
//! digest with it: a file under another's name is damaged. Nothing of it is used before all of it
//! was read and its digest compared.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use rustix::fs::{
    MemfdFlags, SealFlags, SeekFrom as Seek, fcntl_add_seals, ftruncate, memfd_create, seek,
};
use sha2::{Digest as _, Sha256};

const MAGIC: &[u8; 16] = b"caddis-template1";
/// Stands where an offset would: the device state follows.
const END: u64 = u64::MAX;
/// Read and written at a time.
const CHUNK: usize = 1 << 20;
/// Granularity in which zeroes are left out.
const PAGE: usize = 4096;
static ZERO_PAGE: [u8; PAGE] = [0; PAGE];
/// Device state is some tens of kilobytes.
const LARGEST_STATE: u64 = 16 << 20;

/// Memory that can be changed by nobody any more, and device state likewise.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) memory: OwnedFd,
    pub(crate) state: OwnedFd,
}

/// Anonymous memory of that size, which can be sealed.
pub(crate) fn memory(name: &str, size: u64) -> io::Result<OwnedFd> {
    let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, size)?;
    Ok(memory)
}

/// Makes memory unchangeable. Fails while anyone has it mapped for writing.
pub(crate) fn seal(memory: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_add_seals(
        memory,
        SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL,
    )?)
}

/// The same memory, opened anew and for reading only: with a position of its own.
pub(crate) fn reopen(memory: &OwnedFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))
}

/// Writes through to the file and digests on the way.
struct Digesting<T> {
    inner: T,
    digest: Sha256,
}

impl<T: Write> Digesting<T> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Digesting<T> {
    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.digest.update(bytes);
        Ok(())
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.take(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

fn begin(key: &str) -> Sha256 {
    Sha256::new_with_prefix(key)
}

/// Writes a template, whole or not at all.
pub(crate) fn write(path: &Path, key: &str, sealed: &Sealed) -> io::Result<()> {
    let new = path.with_extension("new");
    let attempt = || {
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        let mut out = Digesting { inner: BufWriter::new(file), digest: begin(key) };
        out.put(MAGIC)?;
        let memory = reopen(&sealed.memory)?;
        let size = memory.metadata()?.len();
        out.put(&size.to_le_bytes())?;
        write_memory(&memory, size, &mut out)?;
        let mut state = Vec::new();
        reopen(&sealed.state)?.read_to_end(&mut state)?;
        out.put(&END.to_le_bytes())?;
        out.put(&(state.len() as u64).to_le_bytes())?;
        out.put(&state)?;
        let digest = out.digest.finalize();
        out.inner.write_all(&digest)?;
        let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    attempt().inspect_err(|_| {
        // Half a file is of no use to anyone.
        let _ = fs::remove_file(&new);
    })
}

fn write_memory(memory: &File, size: u64, out: &mut Digesting<impl Write>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    // Holes were never touched.
    while let Ok(data) = seek(memory, Seek::Data(at)) {
        let hole = seek(memory, Seek::Hole(data))?.min(size);
        let mut offset = data;
        while offset < hole {
            let length = usize::try_from(hole - offset).unwrap_or(CHUNK).min(CHUNK);
            let chunk = &mut buffer[..length];
            memory.read_exact_at(chunk, offset)?;
            for (start, run) in nonzero(chunk) {
                out.put(&(offset + start as u64).to_le_bytes())?;
                out.put(&(run.len() as u64).to_le_bytes())?;
                out.put(run)?;
            }
            offset += length as u64;
        }
        at = hole;
    }
    Ok(())
}

/// Runs of pages that are not all zero, with where they begin.
pub(crate) fn nonzero(chunk: &[u8]) -> Vec<(usize, &[u8])> {
    let mut runs = Vec::new();
    let mut begun = None;
    for start in (0..chunk.len()).step_by(PAGE) {
        let page = &chunk[start..chunk.len().min(start + PAGE)];
        match (*page == ZERO_PAGE[..page.len()], begun) {
            (false, None) => begun = Some(start),
            (true, Some(first)) => {
                runs.push((first, &chunk[first..start]));
                begun = None;
            }
            _ => {}
        }
    }
    runs.extend(begun.map(|first| (first, &chunk[first..])));
    runs
}

/// Reads a template into sealed memory; an error when anything about it is not as it was written.
pub(crate) fn read(path: &Path, key: &str, expected_size: u64) -> io::Result<Sealed> {
    let damaged =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("it is damaged: {what}"));
    let mut from =
        Digesting { inner: BufReader::with_capacity(CHUNK, File::open(path)?), digest: begin(key) };
    let mut magic = [0; 16];
    from.take(&mut magic)?;
    if &magic != MAGIC || from.number()? != expected_size {
        return Err(damaged("it does not begin as a template of this size does"));
    }
    let memory = self::memory("caddis-template", expected_size)?;
    let mut target = File::from(memory.try_clone()?);
    let mut buffer = vec![0; CHUNK];
    let state = loop {
        let (offset, length) = (from.number()?, from.number()?);
        if offset == END {
            if length > LARGEST_STATE {
                return Err(damaged("its device state is too large"));
            }
            let mut state = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            from.take(&mut state)?;
            break state;
        }
        let inside = offset.checked_add(length).is_some_and(|end| end <= expected_size);
        let chunk = usize::try_from(length).ok().and_then(|length| buffer.get_mut(..length));
        let Some(chunk) = chunk.filter(|_| inside) else {
            return Err(damaged("it reaches beyond its size"));
        };
        from.take(chunk)?;
        target.write_all_at(chunk, offset)?;
    };
    let digest = from.digest.finalize();
    let mut recorded = [0; 32];
    from.inner.read_exact(&mut recorded)?;
    if digest.as_slice() != recorded || from.inner.read(&mut [0])? != 0 {
        return Err(damaged("its digest is another"));
    }
    target.seek(SeekFrom::Start(0))?;
    drop(target);
    let state_memory = self::memory("caddis-template-state", 0)?;
    File::from(state_memory.try_clone()?).write_all(&state)?;
    seal(&memory)?;
    seal(&state_memory)?;
    Ok(Sealed { memory, state: state_memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4 << 20;

    fn sample() -> Sealed {
        let (memory, state) = (memory("test", SIZE).unwrap(), memory("test", 0).unwrap());
        let file = File::from(memory.try_clone().unwrap());
        file.write_all_at(&[1; 5000], 8192).unwrap();
        file.write_all_at(&[2; 10], SIZE - 10).unwrap();
        File::from(state.try_clone().unwrap()).write_all(b"device state").unwrap();
        seal(&memory).unwrap();
        seal(&state).unwrap();
        Sealed { memory, state }
    }

    fn contents(memory: &OwnedFd) -> Vec<u8> {
        let mut bytes = Vec::new();
        reopen(memory).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_template_is_read_as_it_was_written_and_leaves_out_zeroes() {
        let directory = tempfile::tempdir().unwrap();
        let (path, sample) = (directory.path().join("a"), sample());
        write(&path, "key", &sample).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 20_000);
        let read = read(&path, "key", SIZE).unwrap();
        assert_eq!(contents(&read.memory), contents(&sample.memory));
        assert_eq!(contents(&read.state), b"device state");
        assert!(
            File::from(read.memory).write_all_at(b"x", 0).is_err(),
            "nobody can write to it any more"
        );
    }

    #[test]
    fn whatever_is_changed_in_it_is_found_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write(&path, "key", &sample()).unwrap();
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(97).chain(good.len() - 40..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&path, bad).unwrap();
            assert!(read(&path, "key", SIZE).is_err(), "byte {at}");
        }
        for length in [0, 15, 16, 24, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..length]).unwrap();
            assert!(read(&path, "key", SIZE).is_err(), "cut to {length} bytes");
        }
        fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert!(read(&path, "key", SIZE).is_err(), "longer");
        fs::write(&path, &good).unwrap();
        assert!(read(&path, "other", SIZE).is_err(), "under another's name");
        assert!(read(&path, "key", SIZE * 2).is_err(), "of another size");
        assert!(read(&path, "key", SIZE).is_ok());
    }
}
