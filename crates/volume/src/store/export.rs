//! What is on a volume that nobody uses, over NBD.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::{
    Busy, Inner, VolumeStore,
    daemon::{Daemon, VOLUME},
    ending::EndsWhenDropped,
};
use crate::{VolumeError, VolumeId, record::Record};

/// The contents of a volume that nobody uses, over NBD, with `base:allocation`; several may
/// connect. The volume is locked until this is dropped, and free a moment after.
#[derive(Debug)]
pub struct Export {
    /// Unix socket; its directory is for root alone.
    pub socket: PathBuf,
    /// Name of the export.
    pub name: String,
    // In the order in which they are dropped.
    _daemon: EndsWhenDropped,
    _directory: TempDir,
}

impl VolumeStore {
    /// Has a `qemu-storage-daemon` serve a volume that nobody uses, read-only, for a snapshot.
    ///
    /// # Errors
    /// When it is in use, deleted or being restored, its key can't be had, or the daemon fails.
    pub async fn export(&self, id: &VolumeId) -> Result<Export, VolumeError> {
        let inner = &self.inner;
        inner.settled(id).await;
        let (busy, record) = inner.take(id, "a snapshot of it")?;
        record.expect_whole()?;
        let scratch = inner.scratch();
        let directory = tempfile::Builder::new()
            .prefix("export-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&scratch);
        let directory = directory.map_err(|error| VolumeError::io("write to", &scratch, error))?;
        let (daemon, told) = EndsWhenDropped::new(&busy);
        let (serves, served) = oneshot::channel();
        let socket = directory.path().join("nbd");
        let name = directory.path().file_name().unwrap_or_default().to_owned();
        // From the directory of the store, in which the daemon runs: a path may be too long for an
        // address.
        let relative = PathBuf::from("tmp").join(name).join("nbd");
        let task = keep(Arc::clone(inner), busy, record, relative, serves, told);
        tokio::spawn(task);
        served.await.unwrap_or_else(|_| {
            Err(VolumeError::Interrupted("read the volume for a snapshot".to_owned()))
        })?;
        Ok(Export { socket, name: VOLUME.to_owned(), _daemon: daemon, _directory: directory })
    }
}

/// Has a daemon serve until it is told to end.
async fn keep(
    inner: Arc<Inner>,
    busy: Busy,
    record: Record,
    socket: PathBuf,
    serves: oneshot::Sender<Result<(), VolumeError>>,
    mut told: oneshot::Receiver<()>,
) {
    let started = tokio::select! {
        started = serve(&inner, &busy, &record, &socket) => started,
        _ = &mut told => return,
    };
    match started {
        Ok(mut daemon) => {
            let _ = serves.send(Ok(()));
            tokio::select! {
                // Who reads it learns of it by the end of the connection.
                () = daemon.wait() => tracing::warn!(volume = %record.id, "an export ended"),
                _ = told => daemon.kill().await,
            }
            drop(busy);
        }
        Err(error) => {
            drop(busy);
            let _ = serves.send(Err(error));
        }
    }
}

async fn serve(
    inner: &Inner,
    busy: &Busy,
    record: &Record,
    socket: &Path,
) -> Result<Daemon, VolumeError> {
    let key = inner.key(record)?;
    inner.grow_file(record, key.as_ref()).await?;
    let what = format!("read volume {}", record.id);
    let mut daemon = Daemon::start(inner, busy, &what, key.as_ref(), None).await?;
    daemon.open_volume(key.as_ref(), Value::Null, true).await?;
    let address = json!({ "type": "unix", "data": { "path": socket } });
    daemon.expect("nbd-server-start", json!({ "addr": address })).await?;
    let export = json!({ "type": "nbd", "id": VOLUME, "node-name": VOLUME, "name": VOLUME });
    daemon.expect("block-export-add", export).await?;
    Ok(daemon)
}
