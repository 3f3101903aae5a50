//! NBD (the protocol document of the NetworkBlockDevice project, doc/proto.md), as far as QEMU
//! needs it, over unix sockets.

use std::path::Path;

use async_trait::async_trait;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::{Extent, Reader, SnapshotError, Source};

/// Reads an export of QEMU.
pub struct Client {}

#[allow(clippy::todo, clippy::unused_async, missing_docs)]
impl Client {
    /// Connects. `changed` is the name of a dirty bitmap that the export offers
    /// (`qemu:dirty-bitmap:NAME`): what it does not name is unchanged.
    ///
    /// # Errors
    /// When there is no such export.
    pub async fn connect(
        _socket: &Path,
        _export: &str,
        _changed: Option<&str>,
    ) -> Result<Self, SnapshotError> {
        todo!()
    }
}

#[allow(clippy::todo)]
#[async_trait]
impl Source for Client {
    fn size(&self) -> u64 {
        todo!()
    }

    async fn extents(&mut self, _offset: u64, _length: u64) -> Result<Vec<Extent>, SnapshotError> {
        todo!()
    }

    async fn read(&mut self, _offset: u64, _buffer: &mut [u8]) -> Result<(), SnapshotError> {
        todo!()
    }
}

/// Serves a snapshot, read-only and under any name, to all who connect, until it is cancelled.
/// A read that fails for want of the store is tried again for as long as the client waits; one of
/// a damaged chunk is an error for the client, and told to `damaged`.
#[allow(clippy::todo, clippy::unused_async)]
pub async fn serve(
    _listener: UnixListener,
    _reader: Reader,
    _damaged: impl Fn(SnapshotError) + Send + Sync + 'static,
    _ending: CancellationToken,
) {
    todo!()
}
