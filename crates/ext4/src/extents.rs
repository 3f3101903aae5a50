//! From the blocks of a file's content to the tree of extents in its inode.

use crate::{
    BLOCK, Block, Error,
    allocate::Run,
    bytes::{high32, low16, low32, put16, put32},
    checksum::Checksum,
    inode::Map,
};

const MAGIC: u16 = 0xf30a;
/// Header, extent and index entry have this size.
const ENTRY: usize = 12;
/// Entries in an inode.
const IN_INODE: usize = 4;
/// Entries in a block, whose last four bytes are a checksum.
const IN_BLOCK: usize = (BLOCK - ENTRY - 4) / ENTRY;
/// Most blocks of an extent that is written, not only reserved.
const LONGEST: u32 = 32_768;
/// Bytes that a file can have: its blocks are counted with 32 bits, and the last one is not used.
pub(crate) const MOST_BYTES: u64 = (u32::MAX as u64) * BLOCK as u64;

/// Blocks of a file, consecutive in it and on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    logical: u32,
    run: Run,
}

/// Where the content of a file is.
#[derive(Debug, Default)]
pub(crate) struct Mapping(Vec<Extent>);

/// A tree of extents.
pub(crate) struct Tree {
    /// The root.
    pub(crate) map: Map,
    /// Blocks that the tree itself takes.
    pub(crate) blocks: u64,
}

impl Mapping {
    /// Adds blocks behind those there are.
    pub(crate) fn push(&mut self, logical: u32, run: Run) {
        if let Some(Extent { logical: last, run: known }) = self.0.last_mut()
            && *last + known.length == logical
            && known.start + u64::from(known.length) == run.start
            && known.length + run.length <= LONGEST
        {
            known.length += run.length;
            return;
        }
        self.0.push(Extent { logical, run });
    }

    /// Blocks of content.
    pub(crate) fn blocks(&self) -> u64 {
        self.0.iter().map(|extent| u64::from(extent.run.length)).sum()
    }

    /// Makes the tree; `store` finds a place for each of its blocks. `checksum` is that of the
    /// inode's number.
    pub(crate) fn tree(
        &self,
        checksum: Checksum,
        mut store: impl FnMut(&Block) -> Result<u64, Error>,
    ) -> Result<Tree, Error> {
        let mut blocks = 0;
        let mut depth = 0;
        let mut level: Vec<(u32, [u8; ENTRY])> =
            self.0.iter().map(|extent| (extent.logical, encode_extent(extent))).collect();
        while level.len() > IN_INODE {
            let mut above = Vec::with_capacity(level.len().div_ceil(IN_BLOCK));
            for entries in level.chunks(IN_BLOCK) {
                let mut block = [0; BLOCK];
                encode_node(&mut block, entries, IN_BLOCK, depth);
                let value = checksum.of(&block[..BLOCK - 4]).value();
                put32(&mut block, BLOCK - 4, value);
                above.push((entries[0].0, encode_index(entries[0].0, store(&block)?)));
            }
            blocks += above.len() as u64;
            depth += 1;
            level = above;
        }
        let mut map = [0; 60];
        encode_node(&mut map, &level, IN_INODE, depth);
        Ok(Tree { map, blocks })
    }
}

fn encode_node(bytes: &mut [u8], entries: &[(u32, [u8; ENTRY])], most: usize, depth: u16) {
    put16(bytes, 0, MAGIC);
    // At most IN_BLOCK.
    put16(bytes, 2, entries.len() as u16);
    put16(bytes, 4, most as u16);
    put16(bytes, 6, depth);
    for (place, (_, entry)) in bytes[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
        place.copy_from_slice(entry);
    }
}

fn encode_extent(extent: &Extent) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    put32(&mut bytes, 0, extent.logical);
    put16(&mut bytes, 4, low16(extent.run.length));
    put16(&mut bytes, 6, low16(high32(extent.run.start)));
    put32(&mut bytes, 8, low32(extent.run.start));
    bytes
}

fn encode_index(logical: u32, block: u64) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    put32(&mut bytes, 0, logical);
    put32(&mut bytes, 4, low32(block));
    put16(&mut bytes, 8, low16(high32(block)));
    bytes
}

/// The blocks of a small file that mke2fs made, or `None` when they are not all in the inode.
pub(crate) fn in_inode(map: &[u8]) -> Option<Vec<Run>> {
    use crate::bytes::{get16, get32};
    let count = usize::from(get16(map, 2));
    if get16(map, 0) != MAGIC || get16(map, 6) != 0 || count > IN_INODE {
        return None;
    }
    let run = |entry: &[u8]| Run {
        start: u64::from(get32(entry, 8)) | u64::from(get16(entry, 6)) << 32,
        length: get16(entry, 4).into(),
    };
    Some(map[ENTRY..].chunks_exact(ENTRY).take(count).map(run).collect())
}
