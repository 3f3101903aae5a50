//! The server: what accepts connections.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{self, Served},
    contents::Contents,
    handshake::negotiate,
};
use crate::SnapshotError;

/// QEMU makes one; the old one may not be gone when it makes the next.
const MOST_CONNECTIONS: usize = 16;

/// Who connects and does not say what it wants does not keep a place for longer.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(30);

/// For replies that can't be sent in parts, MiB, of all connections.
const MEMORY: usize = 64;

/// Before accepting is tried again: it fails when the process has no more descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// Serves a snapshot, read-only and under any name, to all who connect, until it is cancelled.
/// A read that fails for want of the store is tried again for as long as the client waits; one of
/// a damaged chunk is an error for the client, and told to `damaged`.
pub async fn serve<C: Contents>(
    listener: UnixListener,
    contents: C,
    damaged: impl Fn(SnapshotError) + Send + Sync + 'static,
    ending: CancellationToken,
) {
    let memory = Arc::new(Semaphore::new(MEMORY));
    let served = Arc::new(Served { contents, damaged: Box::new(damaged), memory });
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "can't accept an NBD connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let served = Arc::clone(&served);
            connections.spawn(async move {
                if let Err(error) = converse(served, stream).await {
                    tracing::debug!(%error, "an NBD connection ended");
                }
                drop(place);
            });
            while connections.try_join_next().is_some() {}
        }
    };
    let _ = ending.run_until_cancelled(accepting).await;
    connections.shutdown().await;
}

async fn converse<C: Contents>(served: Arc<Served<C>>, stream: UnixStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let size = served.contents.size();
    let negotiation = negotiate(&mut reader, &mut writer, size);
    match tokio::time::timeout(NEGOTIATION_TIMEOUT, negotiation).await?? {
        Some(agreed) => connection::run(served, reader, writer, agreed).await,
        None => Ok(()),
    }
}
