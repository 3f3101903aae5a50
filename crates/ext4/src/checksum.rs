//! Checksums of metadata: CRC-32C, seeded, without the inversion at its end.

/// A checksum so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checksum(u32);

impl Checksum {
    /// Of nothing.
    pub(crate) const START: Self = Self(!0);

    /// Goes on from a value that the superblock keeps.
    pub(crate) fn seeded(seed: u32) -> Self {
        Self(seed)
    }

    /// With these bytes, too.
    #[must_use]
    pub(crate) fn of(self, bytes: &[u8]) -> Self {
        Self(!crc32c::crc32c_append(!self.0, bytes))
    }

    /// What all that belongs to an inode starts from. Its generation, which counts for NFS only, is
    /// always 0 here.
    #[must_use]
    pub(crate) fn of_inode(self, number: u32) -> Self {
        self.of(&number.to_le_bytes()).of(&[0; 4])
    }

    pub(crate) fn value(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_castagnoli_s_polynomial_without_the_last_inversion() {
        assert_eq!(!Checksum::START.of(b"1234").of(b"56789").value(), 0xe306_9283);
    }
}
