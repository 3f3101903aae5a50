//! Bounded capture of what a VM process writes: its standard error, and the guest's console.
//!
//! A guest can print for ever and the server may not be there to read, so neither a file nor a pipe
//! will do. The text goes to memory of a fixed, sealed size: the first bytes are kept, and writes
//! past the end fail without harm.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::VmmError;

/// What is kept; a kernel's boot messages with a panic at their end take about 40 KiB when not
/// quiet.
const SIZE: u32 = 64 * 1024;

/// What is reported of it.
const TAIL: usize = 4 * 1024;

/// The reader's side.
#[derive(Debug)]
pub(crate) struct Capture {
    memory: File,
}

impl Capture {
    /// An empty capture, and the descriptor to write to.
    pub(crate) fn new(name: &str) -> Result<(Self, OwnedFd), VmmError> {
        Self::create(name).map_err(VmmError::io(format!("make memory to capture the {name}")))
    }

    fn create(name: &str) -> io::Result<(Self, OwnedFd)> {
        let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memory, u64::from(SIZE))?;
        fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let writer = OpenOptions::new().write(true).open(path)?;
        Ok((Self { memory: memory.into() }, writer.into()))
    }

    /// The capture behind a descriptor of a running process.
    pub(crate) fn adopt(pid: u32, descriptor: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/fd/{descriptor}")).map(|memory| Self { memory })
    }

    /// What was written, at most its last 4 KiB, whole lines, without what a terminal would not
    /// show.
    pub(crate) fn tail(&self) -> String {
        let mut bytes = vec![0; SIZE as usize];
        let length = self.memory.read_at(&mut bytes, 0).unwrap_or(0);
        let bytes = bytes.get(..length).unwrap_or_default();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let written = bytes.get(..end).unwrap_or_default();
        let start = end.saturating_sub(TAIL);
        let cut = if start == 0 {
            0
        } else {
            written
                .iter()
                .skip(start)
                .position(|byte| *byte == b'\n')
                .map_or(start, |line| start + line + 1)
        };
        let text = String::from_utf8_lossy(written.get(cut..).unwrap_or_default());
        text.chars()
            .filter(|char| *char == '\n' || !char.is_control())
            .collect::<String>()
            .trim()
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_flood_is_bounded_and_its_beginning_kept() {
        let (capture, writer) = Capture::new("test").unwrap();
        let mut writer = File::from(writer);
        let line = b"twenty-four bytes a line\n";
        let mut written = 0;
        while writer.write_all(line).is_ok() {
            written += line.len();
        }
        assert!(written > SIZE as usize - 2 * line.len() && written <= SIZE as usize);
        assert!(writer.write(line).is_err(), "memory does not grow");
        assert!(capture.tail().len() <= TAIL);
        assert!(capture.tail().starts_with("twenty"), "cut at the beginning of a line");
    }

    #[test]
    fn a_terminal_sees_no_control_characters() {
        let (capture, writer) = Capture::new("test").unwrap();
        File::from(writer).write_all(b"\x1b[2J panic\r\nat\0 once\n").unwrap();
        assert_eq!(capture.tail(), "[2J panic\nat once");
    }

    #[test]
    fn nothing_written_is_nothing_read() {
        assert_eq!(Capture::new("test").unwrap().0.tail(), "");
    }
}
