//! The superblock: what mke2fs decided, and the counters that change.

use crate::{
    Error,
    bytes::{get16, get32, high32, low32, put16, put32},
    checksum::Checksum,
    hash::HashSeed,
};

/// Bytes of a superblock.
pub(crate) const SIZE: usize = 1024;

const MAGIC: u16 = 0xef53;

/// Features, by the word they are in: those that must be there, since all that is written relies on
/// them, and those that may.
const COMPATIBLE: Features =
    Features { at: 0x5c, needed: EXT_ATTR | DIR_INDEX, allowed: RESIZE_INODE };
const INCOMPATIBLE: Features =
    Features { at: 0x60, needed: FILETYPE | EXTENTS | WIDE, allowed: FLEX_BG | CHECKSUM_SEED };
const READ_ONLY_COMPATIBLE: Features = Features {
    at: 0x64,
    needed: SPARSE_SUPER | LARGE_FILE | HUGE_FILE | DIR_NLINK | EXTRA_ISIZE | METADATA_CSUM,
    allowed: 0,
};

const EXT_ATTR: u32 = 0x8;
const RESIZE_INODE: u32 = 0x10;
const DIR_INDEX: u32 = 0x20;

const FILETYPE: u32 = 0x2;
const EXTENTS: u32 = 0x40;
const WIDE: u32 = 0x80;
const FLEX_BG: u32 = 0x200;
const CHECKSUM_SEED: u32 = 0x2000;

const SPARSE_SUPER: u32 = 0x1;
const LARGE_FILE: u32 = 0x2;
const HUGE_FILE: u32 = 0x8;
const DIR_NLINK: u32 = 0x20;
const EXTRA_ISIZE: u32 = 0x40;
const METADATA_CSUM: u32 = 0x400;

struct Features {
    at: usize,
    needed: u32,
    allowed: u32,
}

impl Features {
    fn check(&self, bytes: &[u8]) -> Result<(), Error> {
        let present = get32(bytes, self.at);
        if present & self.needed != self.needed || present & !(self.needed | self.allowed) != 0 {
            let Self { at, needed, allowed } = self;
            return Err(Error::Unknown(format!(
                "the features {present:#x} at {at:#x} are not {needed:#x}, or {allowed:#x} beyond \
                 them"
            )));
        }
        Ok(())
    }
}

/// The superblock, and what follows from it.
#[derive(Debug, Clone)]
pub(crate) struct Superblock {
    bytes: [u8; SIZE],
    pub(crate) blocks: u64,
    pub(crate) blocks_per_group: u32,
    pub(crate) inodes_per_group: u32,
    /// The first inode that is not reserved.
    pub(crate) first_inode: u32,
    /// Blocks after the group descriptors, kept for those of a file system that has grown.
    pub(crate) reserved_descriptor_blocks: u64,
    /// What all checksums but those of superblocks start from.
    pub(crate) seed: Checksum,
    pub(crate) hash_seed: HashSeed,
}

impl Superblock {
    pub(crate) fn parse(bytes: [u8; SIZE]) -> Result<Self, Error> {
        let expect = |what: &str, found: u32, expected: u32| {
            if found == expected {
                return Ok(());
            }
            Err(Error::Unknown(format!("{what} is {found:#x}, not {expected:#x}")))
        };
        expect("the magic number", get16(&bytes, 0x38).into(), MAGIC.into())?;
        expect("the state", get16(&bytes, 0x3a).into(), 1)?;
        expect("the revision", get32(&bytes, 0x4c), 1)?;
        for features in [COMPATIBLE, INCOMPATIBLE, READ_ONLY_COMPATIBLE] {
            features.check(&bytes)?;
        }
        expect("the binary logarithm of KiB in a block", get32(&bytes, 0x18), 2)?;
        expect("the first block with data", get32(&bytes, 0x14), 0)?;
        expect("the size of inodes", get16(&bytes, 0x58).into(), 256)?;
        expect("the space for further fields of inodes", get16(&bytes, 0x15e).into(), 32)?;
        expect("the size of group descriptors", get16(&bytes, 0xfe).into(), 64)?;
        expect("the kind of checksums", bytes[0x175].into(), 1)?;
        expect(
            "the kind of directory hashes",
            bytes[0xfc].into(),
            u32::from(crate::hash::HALF_MD4),
        )?;
        let seed = match get32(&bytes, INCOMPATIBLE.at) & CHECKSUM_SEED {
            0 => Checksum::START.of(&bytes[0x68..0x78]),
            _ => Checksum::seeded(get32(&bytes, 0x270)),
        };
        let words = [0xec, 0xf0, 0xf4, 0xf8].map(|at| get32(&bytes, at));
        let unsigned = get32(&bytes, 0x160) & 2 != 0;
        let superblock = Self {
            bytes,
            blocks: u64::from(get32(&bytes, 0x4)) | u64::from(get32(&bytes, 0x150)) << 32,
            blocks_per_group: get32(&bytes, 0x20),
            inodes_per_group: get32(&bytes, 0x28),
            first_inode: get32(&bytes, 0x54),
            reserved_descriptor_blocks: get16(&bytes, 0xce).into(),
            seed,
            hash_seed: HashSeed::new(words, !unsigned),
        };
        expect(
            "the checksum of the superblock",
            get32(&superblock.bytes, CHECKSUM_AT),
            superblock.checksum(),
        )?;
        let bits = crate::BLOCK as u32 * 8;
        if !(1..=bits).contains(&superblock.blocks_per_group)
            || !(16..=bits).contains(&superblock.inodes_per_group)
        {
            return Err(Error::Unknown("a group has no inodes or blocks, or too many".to_owned()));
        }
        Ok(superblock)
    }

    /// Number of groups.
    pub(crate) fn groups(&self) -> u64 {
        self.blocks.div_ceil(self.blocks_per_group.into())
    }

    /// Whether a copy of superblock and group descriptors is at the beginning of this group.
    pub(crate) fn has_copy(&self, group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        group <= 1 || is_power(3) || is_power(5) || is_power(7)
    }

    /// The bytes of the superblock, or of its copy in a group, with these counters.
    pub(crate) fn encode(&self, group: u64, free_blocks: u64, free_inodes: u32) -> [u8; SIZE] {
        let mut copy = self.clone();
        put32(&mut copy.bytes, 0xc, low32(free_blocks));
        put32(&mut copy.bytes, 0x158, high32(free_blocks));
        put32(&mut copy.bytes, 0x10, free_inodes);
        // Copies are in groups 3^n and so on; this field is only a hint.
        put16(&mut copy.bytes, 0x5a, u16::try_from(group).unwrap_or(u16::MAX));
        let checksum = copy.checksum();
        put32(&mut copy.bytes, CHECKSUM_AT, checksum);
        copy.bytes
    }

    fn checksum(&self) -> u32 {
        Checksum::START.of(&self.bytes[..CHECKSUM_AT]).value()
    }
}

const CHECKSUM_AT: usize = 0x3fc;
