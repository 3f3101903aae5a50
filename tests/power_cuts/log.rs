//! Logs of writes, as QEMU's blklogwrites has them (dm-log-writes of the kernel's documentation):
//! a superblock, then entries, each in whole sectors, with what was written behind it.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Result, ensure};

const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One entry.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Where its data is in the log, and where the entry ends.
    data: u64,
    pub end: u64,
}

impl Entry {
    /// All before it is durable.
    pub fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// It is durable by itself.
    pub fn is_durable(&self) -> bool {
        self.flags & FUA != 0
    }
}

/// A log that nobody writes to any more.
pub struct Log {
    file: File,
    pub entries: Vec<Entry>,
}

impl Log {
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let number = |at: u64| -> Result<u64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_le_bytes(bytes))
        };
        ensure!(number(0)? == MAGIC, "no log of writes: {:x}", number(0)?);
        let (mut entries, mut at) = (Vec::new(), SECTOR);
        while at < length {
            let (sector, sectors, flags) = (number(at)?, number(at + 8)?, number(at + 16)?);
            if sectors == 0 && flags == 0 {
                // Its VM was killed over it.
                break;
            }
            let data = at + SECTOR;
            let has_data = flags & DISCARD == 0;
            let end = data + if has_data { sectors * SECTOR } else { 0 };
            if end > length {
                break;
            }
            entries.push(Entry { sector, sectors, flags, data, end });
            at = end;
        }
        Ok(Self { file, entries })
    }

    /// Does to a disk what an entry says.
    pub fn apply(&self, entry: &Entry, disk: &File) -> Result<()> {
        let length = usize::try_from(entry.sectors * SECTOR)?;
        let mut bytes = vec![0; length];
        if entry.flags & DISCARD == 0 {
            self.file.read_exact_at(&mut bytes, entry.data)?;
        }
        Ok(disk.write_all_at(&bytes, entry.sector * SECTOR)?)
    }
}
