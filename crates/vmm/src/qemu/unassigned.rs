//! VMs that are no machine's: templates in the making, and those that wait for a machine. Each has
//! a directory of its own beside the templates, by which it is found when its server was killed.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use caddis_guest_protocol::{
    GuestState,
    host::{AgentStream, Connector, GuestEvent, Session},
};

use super::{
    adopt::find,
    launch::{CONTROL_SOCKET, Running, clear, end},
};
use crate::{Slot, VmmError, socket};

/// Directories of templates in the making, and of VMs that wait, begin so.
pub(super) const BUILDING: &str = "building-";
pub(super) const WAITING: &str = "waiting-";

/// Such a VM. Dropped, it is gone with all it had.
pub(super) struct UnassignedVm {
    /// None once it is a machine's.
    pub(super) running: Option<Running>,
    /// The server's own copy, so that the tap is there when the VM is connected. Closed before the
    /// slot is given back.
    pub(super) tap: Option<OwnedFd>,
    pub(super) slot: Slot,
    pub(super) directory: PathBuf,
}

impl Drop for UnassignedVm {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            end(&running.process);
            clear(&self.directory, self.slot.cgroups(), &self.slot.cgroup_name());
        }
        remove(&self.directory);
    }
}

/// The driver is closed.
pub(super) fn called_off() -> VmmError {
    VmmError::io("make a VM")(io::Error::other("the server is ending"))
}

struct Control(PathBuf);

#[async_trait]
impl Connector for Control {
    async fn connect(&self) -> io::Result<Box<dyn AgentStream>> {
        Ok(Box::new(socket::connect(&self.0, CONTROL_SOCKET).await.map_err(io::Error::other)?))
    }
}

/// A directory for one. Blocks.
pub(super) fn directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

impl UnassignedVm {
    /// Opens the session with its init, which waits to hear which machine it is.
    pub(super) async fn session(&self, patience: Duration) -> Result<Session, VmmError> {
        let died = |what: &str| VmmError::DiedAtStart { message: self.said(what) };
        let running = self.running.as_ref().ok_or_else(|| died("it is a machine's"))?;
        let watch = running.process.watch().map_err(VmmError::io("watch a VM"))?;
        let (session, mut events) = Session::open(Arc::new(Control(self.directory.clone())), 0);
        let welcome = async {
            while let Some(event) = events.recv().await {
                if matches!(event, GuestEvent::Welcome { status: GuestState::Waiting, .. }) {
                    return;
                }
            }
        };
        let ready = tokio::select! {
            () = welcome => Ok(()),
            _ = watch.ended() => Err(died("it ended")),
            () = tokio::time::sleep(patience) => Err(died("its init did not answer in time")),
        };
        match ready {
            Ok(()) => {
                // Whatever else it says matters to nobody, but must be taken.
                tokio::spawn(async move { while events.recv().await.is_some() {} });
                Ok(session)
            }
            Err(error) => {
                session.close();
                Err(error)
            }
        }
    }

    /// What happened, with its last words.
    pub(super) fn said(&self, what: &str) -> String {
        let tail = |capture: &Option<crate::capture::Capture>| {
            capture.as_ref().map(|c| c.tail()).unwrap_or_default()
        };
        let running = self.running.as_ref();
        let words =
            running.map(|running| format!("{} {}", tail(&running.output), tail(&running.console)));
        format!("{what} {}", words.unwrap_or_default()).trim().to_owned()
    }
}

/// Ends VMs that are no machine's and whose server was killed. Blocks.
pub fn end_unassigned(directory: &Path, slots: &crate::SlotPool) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(BUILDING) && !name.starts_with(WAITING) {
            continue;
        }
        match find(&entry.path(), slots, &name) {
            Ok(Some((running, slot))) => {
                end(&running.process);
                clear(&entry.path(), slot.cgroups(), &slot.cgroup_name());
            }
            Ok(None) => {}
            Err(error) => {
                // By its directory it is found again.
                tracing::warn!(%error, "can't kill a VM without a machine");
                continue;
            }
        }
        remove(&entry.path());
    }
}

/// Kills the VMs of machines, in whose directories in `directory` they are found, while no server
/// runs. How many it killed. Blocks.
///
/// # Errors
/// When one can't be found out about; those before it are dead.
pub fn kill_machines(directory: &Path, slots: &crate::SlotPool) -> Result<usize, VmmError> {
    let mut killed = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let machine_id = entry.file_name().to_string_lossy().into_owned();
        if let Some((running, slot)) = find(&entry.path(), slots, &machine_id)? {
            end(&running.process);
            clear(&entry.path(), slot.cgroups(), &slot.cgroup_name());
            killed += 1;
        }
    }
    Ok(killed)
}

fn remove(directory: &Path) {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(directory = %directory.display(), %error, "can't remove the directory \
                of a VM without a machine");
        }
        _ => {}
    }
}
