//! What workers publish.

use caddis_api::{
    AppName, Machine, MachineState, RawConfig, RegionCode, UnixMillis, WorkerId, lease::PublicLease,
};
use serde::{Deserialize, Serialize};

/// A machine as its worker publishes it. Of two records the one with the higher `(epoch, revision)`
/// is newer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Whose truth this is.
    pub worker: WorkerId,
    /// Counts placements of this machine: that of a later one is the truth whatever an earlier host
    /// still says.
    pub epoch: u64,
    /// Rises with every change of this machine.
    pub revision: u64,
    /// The revision that brought its configuration, by which a copy of that is known.
    pub config_revision: u64,
    /// Name of its app.
    pub app: AppName,
    /// It has been booted at least once.
    pub launched: bool,
    /// When its VM was booted, the last one if it has none: tells its VMs apart, since a machine
    /// that restarts or is updated is not always seen without one. A resumed VM is the same.
    #[serde(default)]
    pub booted_at: UnixMillis,
    /// When it last came to run: was started, resumed, or went on after a suspend was cancelled.
    #[serde(default)]
    pub started_at: UnixMillis,
    /// The current lease, if any.
    pub lease: Option<PublicLease>,
    /// The machine as the API shows it, without `lease` and `nonce`. Without its configuration, and
    /// its image's labels, where who is told can have them; always without it when it is destroyed.
    pub machine: Machine,
}

/// Bytes of a configuration above which it does not travel with the status of its machine, but is
/// asked for.
pub const LARGE_CONFIG_BYTES: usize = 128 * 1024;

impl MachineRecord {
    /// Whether the configuration is missing that the machine has.
    pub fn is_status_only(&self) -> bool {
        self.machine.config.is_none() && self.machine.state != MachineState::Destroyed
    }

    /// Bytes of what belongs to the configuration.
    pub fn config_bytes(&self) -> usize {
        let labels = self.machine.image_ref.labels.iter().flatten();
        let labels: usize = labels.map(|(name, value)| name.len() + value.len() + 8).sum();
        labels + self.machine.config.as_ref().map_or(0, RawConfig::size)
    }

    /// The same without what belongs to the configuration.
    pub fn status_only(&self) -> Self {
        let mut status = self.clone();
        status.machine.config = None;
        status.machine.image_ref.labels = None;
        status
    }
}

/// A change of one machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delta {
    /// Host that has the machine.
    pub worker: WorkerId,
    /// Counts this worker's deltas since its process began, from 1 and without holes.
    pub sequence: u64,
    /// The worker's process: a new one begins to count anew.
    pub incarnation: String,
    /// The machine as it is now, with the events since its delta before this one. With its
    /// configuration when that is another one than in the delta before, and not large
    /// ([`LARGE_CONFIG_BYTES`]). `destroyed` machines are published once more and then forgotten.
    pub record: MachineRecord,
}

/// A worker that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Id of the host.
    pub worker: WorkerId,
    /// The region it is in.
    pub region: RegionCode,
    /// Its process, as in [`Delta::incarnation`].
    pub incarnation: String,
    /// Number of the last delta it has published; who has not seen that has lost something.
    pub sequence: u64,
    /// Its machines are being stopped for a shutdown of the host, and none starts.
    pub draining: bool,
    /// Counts the changes of its volumes since its process began: who has not seen the last one
    /// lists them.
    #[serde(default)]
    pub volumes: u64,
}
