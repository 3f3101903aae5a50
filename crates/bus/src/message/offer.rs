//! What all workers of a region are asked.

use caddis_api::WorkerId;
use serde::{Deserialize, Serialize};

/// A question to all workers of a region.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Question {
    /// Who has room for this? Answer: [`Offer`], also from those that have none.
    Place {
        /// Virtual processors.
        cpus: u32,
        /// Memory, MiB.
        memory_mib: u64,
        /// Size of its root disk, GiB.
        #[serde(default)]
        disk_gib: u64,
        /// Size of a volume to be made, GiB; 0 for none.
        #[serde(default)]
        volume_gib: u64,
        /// Image reference: a worker that has it is to be preferred.
        image: String,
    },
}

/// A worker's answer to [`Question::Place`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Offer {
    /// Host that answers.
    pub worker: WorkerId,
    /// Whether it fits.
    pub fits: bool,
    /// The host is being drained for a shutdown: nothing fits, however much is free.
    #[serde(default)]
    pub drains: bool,
    /// What is missing when it does not, for the user.
    pub shortage: Option<String>,
    /// Free memory, MiB; of an offer that fits, after it.
    pub free_memory_mib: u64,
    /// Unreserved virtual processors, likewise.
    pub free_cpus: u32,
    /// Unreserved disk, GiB, likewise.
    #[serde(default)]
    pub free_disk_gib: u64,
    /// Unreserved space for volumes, GiB, likewise; none: it is not limited.
    #[serde(default)]
    pub free_volume_gib: Option<u64>,
    /// The image is there already.
    pub has_image: bool,
}
