//! Inodes.

use crate::{
    BLOCK,
    bytes::{get16, high16, high32, low16, low32, put16, put32},
    checksum::Checksum,
    volume::INODE,
};

/// Bytes after the first 128 that further fields take: all that the format knows.
const EXTRA: u16 = 32;

/// Bytes of an inode that are left for extended attributes.
pub(crate) const ATTRIBUTE_SPACE: usize = INODE - 128 - EXTRA as usize;

/// Most links of a file; a directory with more of them has 1, which means unknown.
pub(crate) const MOST_LINKS: u32 = 65_000;

/// What an inode maps its content with: extents, the target of a short symbolic link, or a device's
/// number.
pub(crate) type Map = [u8; 60];

/// Flags of inodes.
pub(crate) const INDEXED: u32 = 0x1000;
pub(crate) const EXTENTS: u32 = 0x8_0000;

const LINKS: usize = 0x1a;
const CHECKSUM_LOW: usize = 0x7c;
const CHECKSUM_HIGH: usize = 0x82;

/// A point in time, in seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    /// 0 to 999 999 999.
    pub(crate) nanoseconds: u32,
}

impl Time {
    /// Seconds that can't be told, from 1901 to 2446, become the nearest that can.
    const SECONDS: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;

    /// The seconds' low 32 bits, and a word of nanoseconds with the bits that the seconds lack.
    fn encode(self) -> (u32, u32) {
        let seconds = self.seconds.clamp(*Self::SECONDS.start(), *Self::SECONDS.end());
        let nanoseconds = if seconds == self.seconds { self.nanoseconds } else { 0 };
        let low = seconds as u32;
        // The low bits are read as a signed number.
        let epoch = ((seconds - i64::from(low as i32)) >> 32) as u32 & 3;
        (low, nanoseconds << 2 | epoch)
    }
}

/// What an inode says.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) size: u64,
    pub(crate) links: u32,
    /// Blocks that are its own: content, extents, attributes.
    pub(crate) blocks: u64,
    pub(crate) flags: u32,
    pub(crate) map: Map,
    /// The block with attributes that the inode has no room for, or 0.
    pub(crate) attribute_block: u64,
    /// Attributes in the inode: [`ATTRIBUTE_SPACE`] bytes, or none.
    pub(crate) attributes: Vec<u8>,
    /// Of the last change. It stands for the other times too, so that the same tree gives the same
    /// file system.
    pub(crate) time: Time,
}

impl Inode {
    /// `checksum` is that of the inode's number and generation.
    pub(crate) fn encode(&self, checksum: Checksum) -> [u8; INODE] {
        let mut bytes = [0; INODE];
        let sectors = self.blocks * (BLOCK as u64 / 512);
        put16(&mut bytes, 0x0, self.mode);
        put16(&mut bytes, 0x2, low16(self.user));
        put32(&mut bytes, 0x4, low32(self.size));
        put16(&mut bytes, 0x18, low16(self.group));
        put32(&mut bytes, 0x1c, low32(sectors));
        put32(&mut bytes, 0x20, self.flags);
        bytes[0x28..0x64].copy_from_slice(&self.map);
        put32(&mut bytes, 0x68, low32(self.attribute_block));
        put32(&mut bytes, 0x6c, high32(self.size));
        put16(&mut bytes, 0x74, low16(high32(sectors)));
        put16(&mut bytes, 0x76, low16(high32(self.attribute_block)));
        put16(&mut bytes, 0x78, high16(self.user));
        put16(&mut bytes, 0x7a, high16(self.group));
        put16(&mut bytes, 0x80, EXTRA);
        set_times(&mut bytes, self.time);
        let attributes_at = INODE - ATTRIBUTE_SPACE;
        bytes[attributes_at..attributes_at + self.attributes.len()]
            .copy_from_slice(&self.attributes);
        set_links(&mut bytes, self.links, checksum);
        bytes
    }
}

/// Changes the number of links.
pub(crate) fn set_links(bytes: &mut [u8; INODE], links: u32, checksum: Checksum) {
    // More than MOST_LINKS only directories may have.
    put16(bytes, LINKS, if links > MOST_LINKS { 1 } else { low16(links) });
    put16(bytes, CHECKSUM_LOW, 0);
    put16(bytes, CHECKSUM_HIGH, 0);
    let checksum = checksum.of(bytes).value();
    put16(bytes, CHECKSUM_LOW, low16(checksum));
    put16(bytes, CHECKSUM_HIGH, high16(checksum));
}

/// Changes size and times of a file that keeps its blocks.
pub(crate) fn set_content(bytes: &mut [u8; INODE], size: u64, time: Time, checksum: Checksum) {
    put32(bytes, 0x4, low32(size));
    put32(bytes, 0x6c, high32(size));
    set_times(bytes, time);
    set_links(bytes, links(bytes), checksum);
}

/// Access, change, modification and birth, each with its further bits.
fn set_times(bytes: &mut [u8; INODE], time: Time) {
    let (seconds, extra) = time.encode();
    for (at, extra_at) in [(0x8, 0x8c), (0xc, 0x84), (0x10, 0x88), (0x90, 0x94)] {
        put32(bytes, at, seconds);
        put32(bytes, extra_at, extra);
    }
}

/// Links of a file.
pub(crate) fn links(bytes: &[u8; INODE]) -> u32 {
    get16(bytes, LINKS).into()
}

/// Type and permissions of an inode.
pub(crate) fn mode(bytes: &[u8; INODE]) -> u16 {
    get16(bytes, 0)
}

/// User and group of an inode.
pub(crate) fn owner(bytes: &[u8; INODE]) -> (u32, u32) {
    let whole = |low, high| u32::from(get16(bytes, low)) | u32::from(get16(bytes, high)) << 16;
    (whole(0x2, 0x78), whole(0x18, 0x7a))
}

/// What an inode maps its content with.
pub(crate) fn map(bytes: &[u8; INODE]) -> &[u8] {
    &bytes[0x28..0x64]
}

/// How an inode names a device: short numbers in the first word, others in the second.
pub(crate) fn device(major: u32, minor: u32) -> Map {
    let mut map = [0; 60];
    if major < 256 && minor < 256 {
        put32(&mut map, 0, major << 8 | minor);
    } else {
        put32(&mut map, 4, minor & 0xff | major << 8 | (minor & !0xff) << 12);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_signed_low_bits_and_two_more() {
        for (seconds, low, epoch) in [
            (0, 0, 0),
            (-1, 0xffff_ffff, 0),
            (-0x8000_0000, 0x8000_0000, 0),
            (0x7fff_ffff, 0x7fff_ffff, 0),
            (0x8000_0000, 0x8000_0000, 1),
            (0xffff_ffff, 0xffff_ffff, 1),
            (0x1_7fff_ffff, 0x7fff_ffff, 1),
            (0x1_8000_0000, 0x8000_0000, 2),
            (0x3_7fff_ffff, 0x7fff_ffff, 3),
        ] {
            assert_eq!(
                Time { seconds, nanoseconds: 5 }.encode(),
                (low, 5 << 2 | epoch),
                "{seconds}"
            );
        }
        for (seconds, low, extra) in [(i64::MIN, 0x8000_0000, 0), (i64::MAX, 0x7fff_ffff, 3)] {
            assert_eq!(
                Time { seconds, nanoseconds: 5 }.encode(),
                (low, extra),
                "the nearest, and no fraction"
            );
        }
    }
}
