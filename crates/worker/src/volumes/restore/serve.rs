//! Serves snapshots to those who restore volumes from them.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use caddis_api::VolumeId;
use caddis_vmm::Backing;
use tokio::net::UnixListener;

use super::Readable;
use crate::engine::Shared;

/// Name of a volume's socket in its directory.
const SOCKET: &str = "nbd";
/// How long a start waits for a snapshot to be readable.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A snapshot can't be read now.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume} is being restored, and its snapshot can't be read: {reason}")]
pub struct Unreadable {
    volume: VolumeId,
    reason: String,
}

/// What a volume is to be read from where it has nothing yet; none where it is whole.
///
/// # Errors
/// When the snapshot can't be read now.
pub async fn backing(shared: &Shared, volume: &VolumeId) -> Result<Option<Backing>, Unreadable> {
    if !shared.volumes.files.get(volume).is_ok_and(|files| files.restoring) {
        return Ok(None);
    }
    let unreadable =
        |reason: &str| Unreadable { volume: volume.clone(), reason: reason.to_owned() };
    let found = {
        let hydrating = shared.volumes.restores.hydrating.lock();
        hydrating.get(volume).map(|h| (h.socket.clone(), h.readable.clone()))
    };
    let (socket, mut readable) = found.ok_or_else(|| unreadable("it is not being served"))?;
    let served = async { readable.wait_for(|readable| *readable == Readable::Yes).await.is_ok() };
    match shared.clock.timeout(TIMEOUT, served).await {
        Some(true) => Ok(Some(Backing { socket })),
        Some(false) => Err(unreadable("the restore has ended")),
        None => {
            let reason = match &*readable.borrow() {
                Readable::Unknown(Some(reason)) => reason.clone(),
                _ => "the snapshot store does not answer".to_owned(),
            };
            Err(unreadable(&reason))
        }
    }
}

/// Where the socket of a volume is, below the directory of all.
pub(super) fn socket(directory: &Path, volume: &VolumeId) -> PathBuf {
    directory.join(volume.as_str()).join(SOCKET)
}

/// Listens there. A VM may have the directory open since an earlier process: it stays.
pub(super) fn listen(socket: &Path) -> io::Result<UnixListener> {
    let directory = socket.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let all = directory.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(all)?;
    DirBuilder::new().recursive(true).create(directory)?;
    // Nobody else reaches it by its path; a VM process, of another user, that was handed it open
    // has to find the socket in it.
    fs::set_permissions(directory, Permissions::from_mode(0o711))?;
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Addresses of sockets are short, paths may be long.
    let opened = File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string()).join(SOCKET);
    let listener = UnixListener::bind(&short)?;
    // Who has the directory may connect; nobody else can reach it.
    fs::set_permissions(socket, Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Nobody needs the socket of a volume any more.
pub(super) fn remove_directory(directory: &Path) {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(directory = %directory.display(), %error, "can't remove a socket");
        }
        _ => {}
    }
}
