//! Group descriptors.

use crate::{
    bytes::{get16, get32, high16, low16, put16},
    checksum::Checksum,
};

/// Bytes of a descriptor.
pub(crate) const SIZE: usize = 64;

const FLAGS: usize = 0x12;
const CHECKSUM: usize = 0x1e;
const INODE_UNINIT: u16 = 0x1;
const BLOCK_UNINIT: u16 = 0x2;

/// A number that is in two halves: that of a small file system, and what a large one adds.
#[derive(Debug, Clone, Copy)]
struct Field {
    low: usize,
    high: usize,
}

const BLOCK_BITMAP: Field = Field { low: 0x0, high: 0x20 };
const INODE_BITMAP: Field = Field { low: 0x4, high: 0x24 };
const INODE_TABLE: Field = Field { low: 0x8, high: 0x28 };
const FREE_BLOCKS: Field = Field { low: 0xc, high: 0x2c };
const FREE_INODES: Field = Field { low: 0xe, high: 0x2e };
const DIRECTORIES: Field = Field { low: 0x10, high: 0x30 };
const BLOCK_BITMAP_CHECKSUM: Field = Field { low: 0x18, high: 0x38 };
const INODE_BITMAP_CHECKSUM: Field = Field { low: 0x1a, high: 0x3a };
/// Inodes at the end of the table that were never used.
const UNUSED_INODES: Field = Field { low: 0x1c, high: 0x32 };

/// The two bitmaps of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Blocks,
    Inodes,
}

/// The descriptor of a group.
#[derive(Debug, Clone)]
pub(crate) struct Group([u8; SIZE]);

impl Group {
    /// `bytes` are [`SIZE`] bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut group = Self([0; SIZE]);
        group.0.copy_from_slice(bytes);
        group
    }

    /// The block that a bitmap is in.
    pub(crate) fn bitmap(&self, kind: Kind) -> u64 {
        self.block(match kind {
            Kind::Blocks => BLOCK_BITMAP,
            Kind::Inodes => INODE_BITMAP,
        })
    }

    /// The first block of the table of inodes.
    pub(crate) fn inode_table(&self) -> u64 {
        self.block(INODE_TABLE)
    }

    /// Whether a bitmap was never written, since it follows from the layout.
    pub(crate) fn is_implied(&self, kind: Kind) -> bool {
        get16(&self.0, FLAGS) & implied(kind) != 0
    }

    /// The checksum of a bitmap that was written.
    pub(crate) fn bitmap_checksum(&self, kind: Kind) -> u32 {
        self.count(bitmap_checksum(kind))
    }

    /// Notes that a bitmap is written, and its checksum.
    pub(crate) fn set_bitmap(&mut self, kind: Kind, checksum: u32) {
        let flags = get16(&self.0, FLAGS) & !implied(kind);
        put16(&mut self.0, FLAGS, flags);
        self.set_count(bitmap_checksum(kind), checksum);
    }

    pub(crate) fn free(&self, kind: Kind) -> u32 {
        self.count(free(kind))
    }

    pub(crate) fn set_free(&mut self, kind: Kind, count: u32) {
        self.set_count(free(kind), count);
    }

    pub(crate) fn directories(&self) -> u32 {
        self.count(DIRECTORIES)
    }

    pub(crate) fn set_directories(&mut self, count: u32) {
        self.set_count(DIRECTORIES, count);
    }

    /// Notes that this inode, counted from the group's first, is used: so many at the table's end
    /// never were.
    pub(crate) fn use_inode(&mut self, index: u32, inodes_per_group: u32) {
        let unused = inodes_per_group - index - 1;
        self.set_count(UNUSED_INODES, self.count(UNUSED_INODES).min(unused));
    }

    /// The descriptor of group `number`, with its checksum.
    pub(crate) fn encode(&self, number: u32, seed: Checksum) -> [u8; SIZE] {
        let mut bytes = self.0;
        put16(&mut bytes, CHECKSUM, 0);
        let checksum = seed.of(&number.to_le_bytes()).of(&bytes).value();
        put16(&mut bytes, CHECKSUM, low16(checksum));
        bytes
    }

    fn block(&self, field: Field) -> u64 {
        u64::from(get32(&self.0, field.low)) | u64::from(get32(&self.0, field.high)) << 32
    }

    fn count(&self, field: Field) -> u32 {
        u32::from(get16(&self.0, field.low)) | u32::from(get16(&self.0, field.high)) << 16
    }

    fn set_count(&mut self, field: Field, count: u32) {
        put16(&mut self.0, field.low, low16(count));
        put16(&mut self.0, field.high, high16(count));
    }
}

fn implied(kind: Kind) -> u16 {
    match kind {
        Kind::Blocks => BLOCK_UNINIT,
        Kind::Inodes => INODE_UNINIT,
    }
}

fn free(kind: Kind) -> Field {
    match kind {
        Kind::Blocks => FREE_BLOCKS,
        Kind::Inodes => FREE_INODES,
    }
}

fn bitmap_checksum(kind: Kind) -> Field {
    match kind {
        Kind::Blocks => BLOCK_BITMAP_CHECKSUM,
        Kind::Inodes => INODE_BITMAP_CHECKSUM,
    }
}
