//! What the server serves.

use async_trait::async_trait;

use crate::{Reader, SnapshotError};

/// Something of a fixed size that can be read anywhere, and does not change.
#[async_trait]
pub trait Contents: Send + Sync + 'static {
    /// Bytes.
    fn size(&self) -> u64;

    /// Fills a buffer with what is at an offset.
    ///
    /// # Errors
    /// `Store` when trying again may help.
    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError>;

    /// Whether the bytes from `offset` on are zeroes, as far as that is known without reading them,
    /// and how many of them this is true of: 1 to `length`.
    ///
    /// # Errors
    /// As [`Self::read`].
    async fn zeroes(&self, offset: u64, length: u64) -> Result<(bool, u64), SnapshotError>;
}

#[async_trait]
impl Contents for Reader {
    fn size(&self) -> u64 {
        self.snapshot().volume_size
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        self.read(offset, buffer).await
    }

    async fn zeroes(&self, offset: u64, length: u64) -> Result<(bool, u64), SnapshotError> {
        self.zeroes(offset, length).await
    }
}
