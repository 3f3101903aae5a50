//! Little-endian numbers at fixed places.

pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The lower half of a number.
pub(crate) fn low16(value: u32) -> u16 {
    (value & 0xffff) as u16
}

/// The upper half of a number.
pub(crate) fn high16(value: u32) -> u16 {
    (value >> 16) as u16
}

/// The lower half of a number.
pub(crate) fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The upper half of a number.
pub(crate) fn high32(value: u64) -> u32 {
    (value >> 32) as u32
}
