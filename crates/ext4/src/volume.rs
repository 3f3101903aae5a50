//! The image file as groups of blocks: where things are, and how they are read and written.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::{
    BLOCK, Block, Error,
    group::{self, Group, Kind},
    superblock::{self, Superblock},
};

/// Where the first superblock is in the file; copies are at the beginning of their group.
const SUPERBLOCK: u64 = 1024;

/// Bytes of an inode.
pub(crate) const INODE: usize = 256;

/// A file system in an image file.
#[derive(Debug)]
pub(crate) struct Volume<'a> {
    file: &'a File,
    pub(crate) superblock: Superblock,
    pub(crate) groups: Vec<Group>,
}

impl<'a> Volume<'a> {
    pub(crate) fn open(file: &'a File) -> Result<Self, Error> {
        let mut bytes = [0; superblock::SIZE];
        file.read_exact_at(&mut bytes, SUPERBLOCK).map_err(reading)?;
        let superblock = Superblock::parse(bytes)?;
        let length = file.metadata().map_err(reading)?.len();
        let wanted = superblock.blocks.saturating_mul(BLOCK as u64);
        if length < wanted {
            return Err(Error::Unknown(format!("it has {wanted} bytes, its file only {length}")));
        }
        let groups = usize::try_from(superblock.groups())
            .map_err(|_| Error::Unknown("too large".to_owned()))?;
        let mut descriptors = vec![0; groups * group::SIZE];
        file.read_exact_at(&mut descriptors, BLOCK as u64).map_err(reading)?;
        let groups = descriptors.chunks_exact(group::SIZE).map(Group::parse).collect();
        Ok(Self { file, superblock, groups })
    }

    pub(crate) fn read(&self, block: u64) -> Result<Block, Error> {
        let mut bytes = [0; BLOCK];
        self.file.read_exact_at(&mut bytes, block * BLOCK as u64).map_err(reading)?;
        Ok(bytes)
    }

    /// Writes whole blocks, one after the other.
    pub(crate) fn write(&self, block: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, block * BLOCK as u64).map_err(writing)
    }

    pub(crate) fn read_inode(&self, number: u32) -> Result<[u8; INODE], Error> {
        let mut bytes = [0; INODE];
        self.file.read_exact_at(&mut bytes, self.inode_place(number)).map_err(reading)?;
        Ok(bytes)
    }

    pub(crate) fn write_inode(&self, number: u32, bytes: &[u8; INODE]) -> Result<(), Error> {
        self.file.write_all_at(bytes, self.inode_place(number)).map_err(writing)
    }

    /// Where an inode is in the file. `number` is one of the file system's.
    pub(crate) fn inode_place(&self, number: u32) -> u64 {
        let per_group = self.superblock.inodes_per_group;
        let group = (number - 1) / per_group;
        let index = u64::from((number - 1) % per_group);
        self.groups[group as usize].inode_table() * BLOCK as u64 + index * INODE as u64
    }

    /// How many inodes there are.
    pub(crate) fn inodes(&self) -> u32 {
        self.superblock
            .inodes_per_group
            .saturating_mul(u32::try_from(self.groups.len()).unwrap_or(u32::MAX))
    }

    /// Blocks in a group: the last one may be shorter.
    pub(crate) fn blocks_in(&self, group: usize) -> u32 {
        let per_group = u64::from(self.superblock.blocks_per_group);
        let left = self.superblock.blocks - group as u64 * per_group;
        // At most as many as in a group.
        left.min(per_group) as u32
    }

    /// Blocks that are used in a group by what describes the file system, counted from the group's
    /// first: what a bitmap that was never written means.
    pub(crate) fn implied_blocks(&self, group: usize) -> Vec<u32> {
        let start = group as u64 * u64::from(self.superblock.blocks_per_group);
        let copy = if self.superblock.has_copy(group as u64) {
            1 + self.descriptor_blocks() + self.superblock.reserved_descriptor_blocks
        } else {
            0
        };
        let descriptor = &self.groups[group];
        let table = descriptor.inode_table();
        let table_blocks =
            (self.superblock.inodes_per_group as usize * INODE).div_ceil(BLOCK) as u64;
        (start..start + copy)
            .chain([descriptor.bitmap(Kind::Blocks), descriptor.bitmap(Kind::Inodes)])
            .chain(table..table + table_blocks)
            .filter_map(|block| u32::try_from(block.checked_sub(start)?).ok())
            .filter(|index| *index < self.blocks_in(group))
            .collect()
    }

    fn descriptor_blocks(&self) -> u64 {
        (self.groups.len() * group::SIZE).div_ceil(BLOCK) as u64
    }

    /// Writes superblock and group descriptors, and their copies.
    pub(crate) fn commit(&self) -> Result<(), Error> {
        let free =
            |kind| self.groups.iter().map(move |group| u64::from(group.free(kind))).sum::<u64>();
        let free_inodes = u32::try_from(free(Kind::Inodes)).unwrap_or(u32::MAX);
        let mut descriptors = Vec::with_capacity(self.groups.len() * group::SIZE);
        for (number, group) in (0..).zip(&self.groups) {
            descriptors.extend(group.encode(number, self.superblock.seed));
        }
        for group in
            (0..self.groups.len() as u64).rev().filter(|group| self.superblock.has_copy(*group))
        {
            let start = group * u64::from(self.superblock.blocks_per_group);
            self.file.write_all_at(&descriptors, (start + 1) * BLOCK as u64).map_err(writing)?;
            let superblock = self.superblock.encode(group, free(Kind::Blocks), free_inodes);
            let place = if group == 0 { SUPERBLOCK } else { start * BLOCK as u64 };
            self.file.write_all_at(&superblock, place).map_err(writing)?;
        }
        Ok(())
    }
}

fn reading(source: io::Error) -> Error {
    Error::Image { what: "read", source }
}

fn writing(source: io::Error) -> Error {
    Error::Image { what: "write", source }
}
