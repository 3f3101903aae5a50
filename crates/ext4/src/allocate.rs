//! Gives out blocks and inodes, each in ascending order.

use std::collections::BTreeMap;

use crate::{BLOCK, Block, Error, group::Kind, volume::Volume};

/// Consecutive blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) length: u32,
}

/// One kind of bitmap: those that were looked at, and how far everything is used.
#[derive(Debug)]
struct Bitmaps {
    kind: Kind,
    loaded: BTreeMap<usize, Block>,
    group: usize,
    /// Within the group.
    position: u32,
}

/// What is used of a file system.
#[derive(Debug)]
pub(crate) struct Allocator {
    blocks: Bitmaps,
    inodes: Bitmaps,
}

impl Allocator {
    pub(crate) fn new() -> Self {
        let bitmaps = |kind| Bitmaps { kind, loaded: BTreeMap::new(), group: 0, position: 0 };
        Self { blocks: bitmaps(Kind::Blocks), inodes: bitmaps(Kind::Inodes) }
    }

    /// The next free blocks: at least one, at most so many.
    pub(crate) fn blocks(&mut self, volume: &mut Volume<'_>, wanted: u32) -> Result<Run, Error> {
        let (group, index, length) = self.blocks.take(volume, wanted)?.ok_or(Error::NoBlocks)?;
        let start = group as u64 * u64::from(volume.superblock.blocks_per_group) + u64::from(index);
        Ok(Run { start, length })
    }

    /// The next free inode.
    pub(crate) fn inode(&mut self, volume: &mut Volume<'_>, directory: bool) -> Result<u32, Error> {
        let (group, index, _) = self.inodes.take(volume, 1)?.ok_or(Error::NoInodes)?;
        let per_group = volume.superblock.inodes_per_group;
        let descriptor = &mut volume.groups[group];
        descriptor.use_inode(index, per_group);
        if directory {
            descriptor.set_directories(descriptor.directories() + 1);
        }
        // Inodes are counted with 32 bits, from 1.
        Ok(group as u32 * per_group + index + 1)
    }

    /// Takes blocks back that mke2fs used. Before any is given out.
    pub(crate) fn release_blocks(
        &mut self,
        volume: &mut Volume<'_>,
        run: Run,
    ) -> Result<(), Error> {
        let per_group = u64::from(volume.superblock.blocks_per_group);
        for block in run.start..run.start + u64::from(run.length) {
            self.blocks.release(
                volume,
                (block / per_group) as usize,
                (block % per_group) as u32,
            )?;
        }
        Ok(())
    }

    /// Takes the inode of a directory back that mke2fs made. Before any is given out.
    pub(crate) fn release_directory(
        &mut self,
        volume: &mut Volume<'_>,
        number: u32,
    ) -> Result<(), Error> {
        let per_group = volume.superblock.inodes_per_group;
        let group = ((number - 1) / per_group) as usize;
        self.inodes.release(volume, group, (number - 1) % per_group)?;
        let descriptor = &mut volume.groups[group];
        descriptor.set_directories(descriptor.directories().saturating_sub(1));
        Ok(())
    }

    /// Writes the bitmaps that changed and notes their checksums in the group descriptors.
    pub(crate) fn commit(&self, volume: &mut Volume<'_>) -> Result<(), Error> {
        self.blocks.commit(volume)?;
        self.inodes.commit(volume)
    }
}

impl Bitmaps {
    /// The next free bits in a row, now used: their group, the first, and how many.
    fn take(
        &mut self,
        volume: &mut Volume<'_>,
        wanted: u32,
    ) -> Result<Option<(usize, u32, u32)>, Error> {
        while self.group < volume.groups.len() {
            let (group, size) = (self.group, self.size(volume, self.group));
            if volume.groups[group].free(self.kind) > 0 {
                let mut position = self.position;
                let bitmap = self.load(volume, group)?;
                while position < size && is_set(bitmap, position) {
                    position +=
                        if bitmap[position as usize / 8] == 0xff { 8 - position % 8 } else { 1 };
                }
                let first = position;
                while position < size && position - first < wanted && !is_set(bitmap, position) {
                    bitmap[position as usize / 8] |= 1 << (position % 8);
                    position += 1;
                }
                if position > first {
                    self.position = position;
                    let descriptor = &mut volume.groups[group];
                    let free = descriptor.free(self.kind).saturating_sub(position - first);
                    descriptor.set_free(self.kind, free);
                    return Ok(Some((group, first, position - first)));
                }
            }
            self.group += 1;
            self.position = 0;
        }
        Ok(None)
    }

    fn release(&mut self, volume: &mut Volume<'_>, group: usize, index: u32) -> Result<(), Error> {
        let kind = self.kind;
        if group >= volume.groups.len() || index >= self.size(volume, group) {
            return Err(Error::Unknown(
                "it uses blocks or inodes that it does not have".to_owned(),
            ));
        }
        self.load(volume, group)?[index as usize / 8] &= !(1 << (index % 8));
        let descriptor = &mut volume.groups[group];
        descriptor.set_free(kind, descriptor.free(kind) + 1);
        Ok(())
    }

    fn load(&mut self, volume: &Volume<'_>, group: usize) -> Result<&mut Block, Error> {
        let (kind, size) = (self.kind, self.size(volume, group));
        let descriptor = &volume.groups[group];
        let entry = match self.loaded.entry(group) {
            std::collections::btree_map::Entry::Occupied(entry) => return Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => entry,
        };
        if !descriptor.is_implied(kind) {
            let bitmap = volume.read(descriptor.bitmap(kind))?;
            if checksum(volume, kind, &bitmap) != descriptor.bitmap_checksum(kind) {
                return Err(Error::Unknown(format!(
                    "a bitmap of group {group} does not match its checksum"
                )));
            }
            return Ok(entry.insert(bitmap));
        }
        let mut bitmap = [0; BLOCK];
        let used = match kind {
            Kind::Blocks => volume.implied_blocks(group),
            Kind::Inodes => Vec::new(),
        };
        // What lies behind the group's end counts as used.
        for index in used.into_iter().chain(size..BLOCK as u32 * 8) {
            bitmap[index as usize / 8] |= 1 << (index % 8);
        }
        Ok(entry.insert(bitmap))
    }

    fn size(&self, volume: &Volume<'_>, group: usize) -> u32 {
        match self.kind {
            Kind::Blocks => volume.blocks_in(group),
            Kind::Inodes => volume.superblock.inodes_per_group,
        }
    }

    fn commit(&self, volume: &mut Volume<'_>) -> Result<(), Error> {
        for (group, bitmap) in &self.loaded {
            volume.write(volume.groups[*group].bitmap(self.kind), bitmap)?;
            let checksum = checksum(volume, self.kind, bitmap);
            volume.groups[*group].set_bitmap(self.kind, checksum);
        }
        Ok(())
    }
}

fn is_set(bitmap: &Block, index: u32) -> bool {
    bitmap[index as usize / 8] & 1 << (index % 8) != 0
}

/// The checksum is of a whole group's bits, also in a last group that has fewer blocks.
fn checksum(volume: &Volume<'_>, kind: Kind, bitmap: &Block) -> u32 {
    let bits = match kind {
        Kind::Blocks => volume.superblock.blocks_per_group,
        Kind::Inodes => volume.superblock.inodes_per_group,
    };
    volume.superblock.seed.of(&bitmap[..bits as usize / 8]).value()
}
