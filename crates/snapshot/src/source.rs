//! Where a snapshot's contents come from.

use async_trait::async_trait;

use crate::SnapshotError;

/// A part of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, bytes.
    pub offset: u64,
    /// How long it is, bytes; never 0.
    pub length: u64,
    /// Whether it reads as zeroes, as far as that is known without reading it.
    pub is_zero: bool,
    /// Whether it is as it was in the previous snapshot, as far as that is known.
    pub is_unchanged: bool,
}

/// What a volume holds at one instant, for as long as it is open.
#[async_trait]
pub trait Source: Send {
    /// Bytes.
    fn size(&self) -> u64;

    /// The parts from `offset` on, in order and without gaps: at least one, and no further than
    /// `length`.
    ///
    /// # Errors
    /// When the source is gone.
    async fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>, SnapshotError>;

    /// Fills a buffer with what is at an offset.
    ///
    /// # Errors
    /// When it can't be read, or the source is gone.
    async fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError>;
}
