//! The memory of a guest that stands still, read from outside of its VM process.

use std::{
    fs::{self, File},
    io::{self, IoSliceMut},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
};

use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};
use rustix::fs::{SeekFrom, seek};

use crate::process::Process;

/// Granularity of what a process has mapped.
const PAGE: usize = 4096;
/// Bytes of an entry of `/proc/PID/pagemap`.
const ENTRY: usize = 8;
/// The page is in memory or swapped out (proc_pid_pagemap(5)).
const THERE: u64 = 0b11 << 62;

/// Where it is.
pub(crate) struct GuestMemory {
    pid: Pid,
    /// Where the process has it.
    address: usize,
    /// What is behind it. A page that is mapped privately and not there is as it is in this file.
    file: File,
    shared: bool,
    pages: File,
}

impl GuestMemory {
    /// That of a process which has mapped so many bytes from its descriptor of this number.
    ///
    /// # Errors
    /// When the process is gone or has no such memory.
    pub(crate) fn of(process: &Process, descriptor: i32, size: u64) -> io::Result<Self> {
        Self::find(process.id.pid, process.descriptor(descriptor)?, size)
    }

    fn find(pid: u32, file: OwnedFd, size: u64) -> io::Result<Self> {
        let file = File::from(file);
        let inode = file.metadata()?.ino();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let parts: Vec<_> =
            maps.lines().filter_map(parse).filter(|part| part.inode == inode).collect();
        let unexpected =
            || io::Error::other(format!("the memory of process {pid} is not where it should be"));
        let first = parts.first().filter(|part| part.offset == 0).ok_or_else(unexpected)?;
        // The kernel may have split it, but there is one after the other.
        let mapped = parts.iter().try_fold(0, |size, part| {
            let follows = part.offset == size
                && part.start == first.start + size
                && part.shared == first.shared;
            follows.then_some(part.end - first.start)
        });
        if mapped != Some(size) {
            return Err(unexpected());
        }
        Ok(Self {
            pid: Pid::from_raw(pid.cast_signed()),
            address: usize::try_from(first.start).map_err(|_| unexpected())?,
            shared: first.shared,
            pages: File::open(format!("/proc/{pid}/pagemap"))?,
            file,
        })
    }

    /// Reads from `offset` on; both that and the length are multiples of the page size. Touches
    /// nothing that the guest has not touched: neither it nor the file takes more memory
    /// afterwards.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.shared {
            return self.read_file(offset, buffer);
        }
        let mut entries = vec![0; buffer.len() / PAGE * ENTRY];
        self.pages.read_exact_at(
            &mut entries,
            (self.address as u64 + offset) / PAGE as u64 * ENTRY as u64,
        )?;
        let there: Vec<_> = entries.chunks_exact(ENTRY).map(is_there).collect();
        let mut at = 0;
        for run in there.chunk_by(|one, other| one == other) {
            let length = run.len() * PAGE;
            let part = &mut buffer[at..at + length];
            let from = offset + at as u64;
            if run[0] {
                self.read_process(from, part)?
            } else {
                self.read_file(from, part)?
            }
            at += length;
        }
        Ok(())
    }

    fn read_process(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // It is within the process's address space.
        let base = self.address + offset as usize;
        let len = buffer.len();
        let remote = [RemoteIoVec { base, len }];
        let read = process_vm_readv(self.pid, &mut [IoSliceMut::new(buffer)], &remote)?;
        if read == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn read_file(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        // What was never written takes no memory for being read.
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data < end => self.file.read_exact_at(buffer, offset),
            Ok(_) | Err(rustix::io::Errno::NXIO) => {
                buffer.fill(0);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn is_there(entry: &[u8]) -> bool {
    entry.try_into().is_ok_and(|bytes| u64::from_le_bytes(bytes) & THERE != 0)
}

/// A line of `/proc/PID/maps`.
struct Part {
    start: u64,
    end: u64,
    shared: bool,
    offset: u64,
    inode: u64,
}

fn parse(line: &str) -> Option<Part> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let shared = fields.next()?.ends_with('s');
    let offset = hex(fields.next()?)?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Part { start: hex(start)?, end: hex(end)?, shared, offset, inode })
}

#[cfg(test)]
mod tests {
    #![expect(unsafe_code, reason = "memory is mapped as a VM process does it")]

    use std::{os::fd::AsRawFd as _, ptr};

    use libc::{MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};

    use super::*;
    use crate::qemu::template::file;

    const SIZE: usize = 64 * PAGE;

    /// Memory of 64 pages over a file in which page 1 is full of ones; then page 2 is filled with
    /// twos.
    fn mapped(flags: i32) -> GuestMemory {
        let memory = file::memory("test", SIZE as u64).unwrap();
        let file = File::from(memory.try_clone().unwrap());
        file.write_all_at(&[1; PAGE], PAGE as u64).unwrap();
        // SAFETY: it is never unmapped, and nobody but this test knows of it.
        unsafe {
            let start = libc::mmap(
                ptr::null_mut(),
                SIZE,
                PROT_READ | PROT_WRITE,
                flags,
                memory.as_raw_fd(),
                0,
            );
            assert_ne!(start, libc::MAP_FAILED);
            start.cast::<u8>().add(2 * PAGE).write_bytes(2, PAGE);
        }
        GuestMemory::find(std::process::id(), memory, SIZE as u64).unwrap()
    }

    fn blocks(memory: &GuestMemory) -> u64 {
        memory.file.metadata().unwrap().blocks()
    }

    #[test]
    fn what_was_written_is_read_whether_it_is_mapped_privately_or_shared() {
        for flags in [MAP_PRIVATE, MAP_SHARED] {
            let memory = mapped(flags);
            assert_eq!(memory.shared, flags == MAP_SHARED);
            let file = memory.file.try_clone().unwrap().into();
            assert!(
                GuestMemory::find(std::process::id(), file, 2 * SIZE as u64).is_err(),
                "of another size"
            );
            let before = blocks(&memory);
            let mut buffer = vec![9; SIZE];
            memory.read(0, &mut buffer).unwrap();
            let pages: Vec<_> = buffer.chunks(PAGE).map(|page| (page[0], page[PAGE - 1])).collect();
            assert_eq!(pages[..4], [(0, 0), (1, 1), (2, 2), (0, 0)], "{flags:?}");
            assert_eq!(blocks(&memory), before, "reading takes no memory");
            memory.read(2 * PAGE as u64, &mut buffer[..PAGE]).unwrap();
            assert_eq!(buffer[..PAGE], [2; PAGE]);
        }
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let other = file::memory("test", SIZE as u64).unwrap();
        assert!(GuestMemory::find(std::process::id(), other, SIZE as u64).is_err());
        let process = Process::open(std::process::id()).unwrap();
        assert!(GuestMemory::of(&process, 9999, SIZE as u64).is_err());
    }
}
