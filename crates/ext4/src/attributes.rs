//! Extended attributes: in the inode as far as they fit, the others in one block.

use crate::{
    BLOCK, Block, acl,
    bytes::{get32, put16, put32},
    checksum::Checksum,
    inode::ATTRIBUTE_SPACE,
};

const MAGIC: u32 = 0xea02_0000;
/// Bytes before the first entry of a block.
const BLOCK_HEADER: usize = 32;
/// Bytes before the first entry in an inode.
const INODE_HEADER: usize = 4;
/// Bytes of an entry before its name.
const ENTRY: usize = 16;
/// Four zero bytes end the entries.
const END: usize = 4;

/// Namespaces have numbers; those with their whole name in the number come first.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// An attribute in the form of the disk. They are kept in the order of their fields.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute {
    namespace: u8,
    name_length: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    /// `Ok(None)` when ext4 has no such namespace: what another file system keeps there means
    /// nothing to it.
    fn new(name: &[u8], value: Vec<u8>) -> Result<Option<Self>, String> {
        let known = NAMESPACES
            .iter()
            .find_map(|(prefix, number)| Some((name.strip_prefix(*prefix)?, *number)));
        let Some((short, namespace)) = known else { return Ok(None) };
        let bad = |what: &str| format!("its extended attribute `{}` {what}", name.escape_ascii());
        let is_list = namespace == 2 || namespace == 3;
        if is_list != short.is_empty() {
            return if is_list { Ok(None) } else { Err(bad("has no name")) };
        }
        let value = if is_list {
            acl::stored(&value).ok_or_else(|| bad("is no access control list"))?
        } else {
            value
        };
        let name_length = u8::try_from(short.len()).map_err(|_| bad("has too long a name"))?;
        Ok(Some(Self { namespace, name_length, name: short.to_vec(), value }))
    }

    /// Bytes that it takes, entry and value.
    fn size(&self) -> usize {
        ENTRY + padded(self.name.len()) + padded(self.value.len())
    }

    /// Of name and value.
    fn hash(&self) -> u32 {
        let of_name =
            self.name.iter().fold(0_u32, |hash, byte| hash << 5 ^ hash >> 27 ^ u32::from(*byte));
        let mut value = self.value.clone();
        value.resize(padded(value.len()), 0);
        value.chunks_exact(4).fold(of_name, |hash, word| hash << 16 ^ hash >> 16 ^ get32(word, 0))
    }
}

/// The attributes of an inode.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    /// What the inode has: [`ATTRIBUTE_SPACE`] bytes, or none.
    pub(crate) inside: Vec<u8>,
    /// What a block has, which lacks its checksum.
    pub(crate) block: Option<Box<Block>>,
}

impl Attributes {
    /// Attributes as programs see them. The error is the reason why they can't be stored.
    pub(crate) fn new(seen: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Self, String> {
        let mut attributes = Vec::new();
        for (name, value) in seen {
            attributes.extend(Attribute::new(&name, value)?);
        }
        // In a block they are looked up in this order.
        attributes.sort();
        let mut room = ATTRIBUTE_SPACE - INODE_HEADER - END;
        let (inside, outside): (Vec<_>, Vec<_>) = attributes.into_iter().partition(|attribute| {
            let left = room.checked_sub(attribute.size());
            room = left.unwrap_or(room);
            left.is_some()
        });
        let mut encoded = Self::default();
        if !inside.is_empty() {
            encoded.inside = vec![0; ATTRIBUTE_SPACE];
            put32(&mut encoded.inside, 0, MAGIC);
            // Values are found from the first entry.
            encode(&mut encoded.inside[INODE_HEADER..], 0, &inside, |_| 0);
        }
        if !outside.is_empty() {
            if outside.iter().map(Attribute::size).sum::<usize>() > BLOCK - BLOCK_HEADER - END {
                return Err(format!(
                    "its extended attributes take more than the {BLOCK} bytes of a block"
                ));
            }
            encoded.block = Some(Box::new(encode_block(&outside)));
        }
        Ok(encoded)
    }
}

/// Completes a block of attributes, which has its checksum with where it is.
pub(crate) fn set_checksum(block: &mut Block, number: u64, seed: Checksum) {
    let checksum = seed.of(&number.to_le_bytes()).of(block).value();
    put32(block, 16, checksum);
}

fn encode_block(attributes: &[Attribute]) -> Block {
    let mut block = [0; BLOCK];
    put32(&mut block, 0, MAGIC);
    // Used by one inode, one block long.
    put32(&mut block, 4, 1);
    put32(&mut block, 8, 1);
    let hashes = attributes.iter().map(Attribute::hash);
    // With an entry that has no hash the block has none either, and is not shared.
    let hash = match hashes.clone().all(|hash| hash != 0) {
        true => hashes.fold(0_u32, |sum, hash| sum << 16 ^ sum >> 16 ^ hash),
        false => 0,
    };
    put32(&mut block, 12, hash);
    // Values are found from the block's beginning.
    encode(&mut block, BLOCK_HEADER, attributes, Attribute::hash);
    block
}

/// Entries grow from `start`, values from the end down.
fn encode(
    space: &mut [u8],
    start: usize,
    attributes: &[Attribute],
    hash: impl Fn(&Attribute) -> u32,
) {
    let (mut at, mut end) = (start, space.len());
    for attribute in attributes {
        let Attribute { namespace, name_length, name, value } = attribute;
        end -= padded(value.len());
        space[end..end + value.len()].copy_from_slice(value);
        space[at] = *name_length;
        space[at + 1] = *namespace;
        // All of it is within a block.
        put16(space, at + 2, if value.is_empty() { 0 } else { end as u16 });
        put32(space, at + 8, value.len() as u32);
        put32(space, at + 12, hash(attribute));
        space[at + ENTRY..at + ENTRY + name.len()].copy_from_slice(name);
        at += ENTRY + padded(name.len());
    }
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, length: usize) -> (Vec<u8>, Vec<u8>) {
        (format!("user.{name}").into_bytes(), vec![7; length])
    }

    #[test]
    fn what_fits_is_in_the_inode_and_the_rest_in_a_block() {
        let none = Attributes::new(Vec::new()).unwrap();
        assert!(none.inside.is_empty() && none.block.is_none());
        let small = Attributes::new(vec![user("a", 4)]).unwrap();
        assert!(small.inside.len() == ATTRIBUTE_SPACE && small.block.is_none());
        let just = Attributes::new(vec![user("a", ATTRIBUTE_SPACE - 8 - ENTRY - 4)]).unwrap();
        assert!(!just.inside.is_empty() && just.block.is_none());
        let large = Attributes::new(vec![user("a", ATTRIBUTE_SPACE - 8 - ENTRY - 3)]).unwrap();
        assert!(large.inside.is_empty() && large.block.is_some());
        let both = Attributes::new(vec![user("a", 1000), user("b", 8)]).unwrap();
        assert!(!both.inside.is_empty() && both.block.is_some());
    }

    #[test]
    fn a_block_is_the_bound() {
        let most = BLOCK - BLOCK_HEADER - END - ENTRY - 4;
        assert!(Attributes::new(vec![user("a", most)]).is_ok());
        assert!(Attributes::new(vec![user("a", most + 1)]).unwrap_err().contains("4096"));
        assert!(
            Attributes::new(vec![(b"user.".to_vec(), Vec::new())]).unwrap_err().contains("no name")
        );
    }

    #[test]
    fn namespaces_of_other_file_systems_are_left_out() {
        for name in
            ["btrfs.compression", "system.nfs4_acl", "system.posix_acl_access_too", "user", ""]
        {
            let attributes = Attributes::new(vec![(name.as_bytes().to_vec(), vec![1])]).unwrap();
            assert!(attributes.inside.is_empty() && attributes.block.is_none(), "{name}");
        }
    }
}
