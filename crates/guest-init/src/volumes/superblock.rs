//! The superblock of ext4, as far as it matters before it is mounted (ext4 data structures, "Super
//! Block").

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

/// Where it is, bytes, and what is read of it.
const AT: u64 = 1024;
const LENGTH: usize = 1024;
const MAGIC: u32 = 0xef53;
/// Numbers of blocks have 64 bits.
const INCOMPAT_64BIT: u32 = 0x80;
/// The kernel has found errors.
const ERRORS: u32 = 2;
/// Largest block is 64 KiB, 1024 << 6.
const LARGEST_SHIFT: u32 = 6;

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Blocks of the file system.
    pub blocks: u64,
    /// Size of each, bytes.
    pub block_size: u64,
    /// It is to be checked.
    pub had_errors: bool,
}

impl Superblock {
    /// Reads that of a disk. The error is for the user.
    pub fn read(disk: &Path) -> Result<Self, String> {
        let mut bytes = [0; LENGTH];
        File::open(disk)
            .and_then(|disk| disk.read_exact_at(&mut bytes, AT))
            .map_err(|error| format!("can't read it: {error}"))?;
        Self::parse(&bytes).ok_or_else(|| "there is no ext4 file system on it".to_owned())
    }

    fn parse(bytes: &[u8; LENGTH]) -> Option<Self> {
        let number = |at: usize, length: usize| {
            bytes[at..at + length].iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte))
        };
        let shift = number(0x18, 4);
        if number(0x38, 2) != MAGIC || shift > LARGEST_SHIFT {
            return None;
        }
        let high = if number(0x60, 4) & INCOMPAT_64BIT == 0 { 0 } else { number(0x150, 4) };
        Some(Self {
            blocks: u64::from(high) << 32 | u64::from(number(0x4, 4)),
            block_size: 1024 << shift,
            had_errors: number(0x3a, 2) & ERRORS != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0x4..0x8].copy_from_slice(&0x1234_u32.to_le_bytes());
        bytes[0x18] = 2;
        bytes[0x38..0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
        bytes[0x3a] = 1;
        bytes[0x150] = 3;
        bytes
    }

    #[test]
    fn sizes_and_errors_are_read_and_what_is_no_ext4_is_none() {
        let mut bytes = superblock();
        let small = Superblock { blocks: 0x1234, block_size: 4096, had_errors: false };
        assert_eq!(Superblock::parse(&bytes), Some(small));
        bytes[0x60] = 0xc2;
        bytes[0x3a] = 3;
        let large = Superblock { blocks: 0x3_0000_1234, had_errors: true, ..small };
        assert_eq!(Superblock::parse(&bytes), Some(large));
        bytes[0x18] = 7;
        assert_eq!(Superblock::parse(&bytes), None, "no such block");
        assert_eq!(Superblock::parse(&[0; LENGTH]), None);
    }
}
