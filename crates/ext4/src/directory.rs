//! Directories: one block of entries, or blocks of entries in the order of their hashes below an
//! index.
//!
//! ```text
//!  block 0      1 … n            the rest
//!  root ──────▶ leaves                          up to 507 leaves
//!  root ──────▶ nodes ─────────▶ leaves         beyond
//! ```

use crate::{
    BLOCK, Block,
    bytes::{get16, get32, put16, put32},
    checksum::Checksum,
    hash::{HALF_MD4, Hash, HashSeed},
};

/// Bytes of an entry before its name.
const ENTRY: usize = 8;
/// The last bytes of a block of entries: one that looks unused and holds a checksum.
const TAIL: usize = 12;
/// Where a root's index starts, behind `.`, `..` and what the index is like; where that of a node
/// does.
const ROOT_INDEX: usize = 32;
const NODE_INDEX: usize = 8;
/// Bytes of an entry of an index, and of the checksum behind the last one.
const INDEX_ENTRY: usize = 8;
const INDEX_TAIL: usize = 8;
/// Entries in the index of a root, and of a node.
const IN_ROOT: usize = (BLOCK - ROOT_INDEX - INDEX_TAIL) / INDEX_ENTRY;
const IN_NODE: usize = (BLOCK - NODE_INDEX - INDEX_TAIL) / INDEX_ENTRY;

/// A name in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// 1 to 255 bytes.
    pub(crate) name: Vec<u8>,
    pub(crate) inode: u32,
    /// The number that stands for the type of file.
    pub(crate) kind: u8,
}

/// The number of directories among types of file.
pub(crate) const DIRECTORY: u8 = 2;

/// A block of entries: those from `first` until the next leaf's, in the order of hashes.
#[derive(Debug)]
struct Leaf {
    first: usize,
    hash: u32,
}

/// How a directory is laid out in blocks.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    entries: &'a [Entry],
    own: Entry,
    parent: Entry,
    /// Entries in the order of their hashes; of an indexed directory.
    order: Vec<usize>,
    leaves: Vec<Leaf>,
    /// Nodes between root and leaves.
    nodes: usize,
}

impl<'a> Layout<'a> {
    /// `own` and `parent` are inodes. `None` when there are too many entries for an index of two
    /// levels.
    pub(crate) fn new(
        entries: &'a [Entry],
        own: u32,
        parent: u32,
        seed: &HashSeed,
    ) -> Option<Self> {
        let named = |name: &[u8], inode| Entry { name: name.to_vec(), inode, kind: DIRECTORY };
        let (own, parent) = (named(b".", own), named(b"..", parent));
        let mut layout =
            Self { entries, own, parent, order: Vec::new(), leaves: Vec::new(), nodes: 0 };
        let size: usize =
            entries.iter().chain([&layout.own, &layout.parent]).map(Entry::size).sum();
        if size <= BLOCK - TAIL {
            return Some(layout);
        }
        let mut hashed: Vec<(Hash, usize)> = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (seed.hash(&entry.name), index))
            .collect();
        hashed.sort_unstable();
        let mut room = 0;
        let mut before = None;
        for (place, ((hash, _), index)) in hashed.iter().enumerate() {
            let size = entries[*index].size();
            if size > room {
                // The lowest bit says that names with this hash begin in the leaf before.
                layout
                    .leaves
                    .push(Leaf { first: place, hash: hash | u32::from(before == Some(*hash)) });
                room = BLOCK - TAIL;
            }
            room -= size;
            before = Some(*hash);
        }
        layout.order = hashed.into_iter().map(|(_, index)| index).collect();
        if layout.leaves.len() > IN_ROOT {
            layout.nodes = layout.leaves.len().div_ceil(IN_NODE);
        }
        (layout.nodes <= IN_ROOT).then_some(layout)
    }

    pub(crate) fn is_indexed(&self) -> bool {
        !self.leaves.is_empty()
    }

    pub(crate) fn blocks(&self) -> usize {
        1 + self.nodes + self.leaves.len()
    }

    /// The content of a block. `checksum` is that of the directory's inode number.
    pub(crate) fn block(&self, number: usize, checksum: Checksum) -> Block {
        if !self.is_indexed() {
            return leaf([&self.own, &self.parent].into_iter().chain(self.entries), checksum);
        }
        let first_leaf = 1 + self.nodes;
        if number == 0 {
            return self.root(checksum);
        }
        if number < first_leaf {
            return self.node(number - 1, checksum);
        }
        let number = number - first_leaf;
        let end = self.leaves.get(number + 1).map_or(self.order.len(), |leaf| leaf.first);
        let places = &self.order[self.leaves[number].first..end];
        leaf(places.iter().map(|place| &self.entries[*place]), checksum)
    }

    fn root(&self, checksum: Checksum) -> Block {
        let mut block = [0; BLOCK];
        self.own.encode(&mut block, self.own.size());
        self.parent.encode(&mut block[self.own.size()..], BLOCK - self.own.size());
        // Behind the two names, in what looks like room of the second: the hash, the size of these
        // fields, and levels.
        block[28] = HALF_MD4;
        block[29] = 8;
        block[30] = u8::from(self.nodes > 0);
        let below: Vec<(u32, usize)> = match self.nodes {
            0 => self.leaves.iter().zip(1..).map(|(leaf, block)| (leaf.hash, block)).collect(),
            nodes => (0..nodes).map(|node| (self.leaves[node * IN_NODE].hash, 1 + node)).collect(),
        };
        index(&mut block, ROOT_INDEX, IN_ROOT, &below, checksum);
        block
    }

    fn node(&self, number: usize, checksum: Checksum) -> Block {
        let mut block = [0; BLOCK];
        // To those who know no index it is an unused entry.
        put16(&mut block, 4, BLOCK as u16);
        let leaves = self.leaves.iter().zip(1 + self.nodes..).skip(number * IN_NODE).take(IN_NODE);
        let below: Vec<(u32, usize)> = leaves.map(|(leaf, block)| (leaf.hash, block)).collect();
        index(&mut block, NODE_INDEX, IN_NODE, &below, checksum);
        block
    }
}

impl Entry {
    /// Bytes that it takes at least.
    fn size(&self) -> usize {
        (ENTRY + self.name.len()).next_multiple_of(4)
    }

    /// Writes it, with room behind it up to `size`, which is at most a block's.
    fn encode(&self, bytes: &mut [u8], size: usize) {
        put32(bytes, 0, self.inode);
        put16(bytes, 4, size as u16);
        bytes[6] = self.name.len() as u8;
        bytes[7] = self.kind;
        bytes[ENTRY..ENTRY + self.name.len()].copy_from_slice(&self.name);
    }
}

/// Inodes and names in a block of a directory; none in one of an index, which looks like one empty
/// entry.
pub(crate) fn names(block: &Block) -> impl Iterator<Item = (u32, &[u8])> {
    let mut left = block.as_slice();
    std::iter::from_fn(move || {
        while left.len() > ENTRY {
            let (entry, size) = (left, usize::from(get16(left, 4)));
            // Whatever is damaged ends it.
            left = left.get(size.max(ENTRY)..).unwrap_or_default();
            let (inode, length) = (get32(entry, 0), usize::from(entry[6]));
            if inode != 0
                && let Some(name) = entry.get(ENTRY..ENTRY + length)
            {
                return Some((inode, name));
            }
        }
        None
    })
}

fn leaf<'e>(entries: impl Iterator<Item = &'e Entry>, checksum: Checksum) -> Block {
    let mut block = [0; BLOCK];
    let (mut at, mut last) = (0, None);
    for entry in entries {
        entry.encode(&mut block[at..], entry.size());
        last = Some((at, entry));
        at += entry.size();
    }
    if let Some((at, entry)) = last {
        entry.encode(&mut block[at..], BLOCK - TAIL - at);
    }
    let tail = BLOCK - TAIL;
    let value = checksum.of(&block[..tail]).value();
    put16(&mut block, tail + 4, TAIL as u16);
    block[tail + 7] = 0xde;
    put32(&mut block, tail + 8, value);
    block
}

/// Writes an index: hashes and the blocks from them on. The first entry needs no hash and has the
/// counts there.
fn index(block: &mut Block, start: usize, most: usize, below: &[(u32, usize)], checksum: Checksum) {
    for (at, (hash, number)) in (start..).step_by(INDEX_ENTRY).zip(below) {
        put32(block, at, *hash);
        // Even a root full of nodes has fewer than 2^32 leaves.
        put32(block, at + 4, *number as u32);
    }
    put16(block, start, most as u16);
    put16(block, start + 2, below.len() as u16);
    let (used, tail) = (start + below.len() * INDEX_ENTRY, start + most * INDEX_ENTRY);
    let value = checksum.of(&block[..used]).of(&[0; INDEX_TAIL]).value();
    put32(block, tail + 4, value);
}
