//! Volumes that are made from a snapshot: an empty one at once, which machines can have, and what
//! the snapshot holds is read as it is needed, and all of it in the background.
//!
//! ```text
//!   restoring ─ snapshot looked up ─▶ empty files ─▶ hydrating ── all read ─▶ created
//!                 │ away: again                        served from │ by a VM that has it,
//!                 ▼ not there, damaged, too large      here on     │ or by the files
//!               failed                                             ▼ damaged, no VM
//!                                                                failed
//! ```
//!
//! A server, in this process, gives QEMU the snapshot over a unix socket; a VM that outlives the
//! process connects again to that of the next.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use caddis_api::{MachineId, VolumeId};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use super::Volumes;

mod hydrate;
mod make;
mod serve;

pub use self::serve::backing;
pub(super) use self::{hydrate::begin, make::make};

/// Volumes that are hydrated by their files at once: they share the disk and the way to the store.
const AT_ONCE: usize = 2;

/// Volumes that are being restored.
pub(super) struct Restores {
    /// Has a directory for the socket of each.
    directory: PathBuf,
    hydrating: Mutex<HashMap<VolumeId, Hydrating>>,
    turns: Arc<Semaphore>,
}

/// One of them.
struct Hydrating {
    /// Of its server.
    socket: PathBuf,
    /// Whether the snapshot can be read.
    readable: watch::Receiver<Readable>,
    /// Ends it.
    task: AbortOnDropHandle<()>,
}

/// Whether a snapshot can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Readable {
    /// That is not known yet; why it takes time, if there is a reason.
    Unknown(Option<String>),
    /// It is served.
    #[default]
    Yes,
}

impl Restores {
    pub(super) fn new(directory: &Path) -> Self {
        let directory = directory.join("restores");
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Self { directory, hydrating: Mutex::default(), turns }
    }

    /// Ends what is done for a volume that is deleted.
    pub(super) async fn stop(&self, volume: &VolumeId) {
        let hydrating = self.hydrating.lock().remove(volume);
        if let Some(Hydrating { task, .. }) = hydrating {
            task.abort();
            // Whether it was ended or had ended.
            let _ = task.await;
        }
        serve::remove_directory(&self.directory.join(volume.as_str()));
    }
}

impl Volumes {
    /// A volume of a machine that does not have all of its snapshot yet, if there is one.
    pub fn restoring_of(&self, machine: &MachineId) -> Option<VolumeId> {
        let is_restoring = |id: &VolumeId| self.files.get(id).is_ok_and(|files| files.restoring);
        let mut volumes = self.of_machine(machine).into_iter().map(|(id, _)| id);
        volumes.find(is_restoring)
    }
}
