//! What machines use of their hosts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{MachineId, WorkerId};

/// One line of `GET /v1/apps/{app}/machines/usage`: the machines of the app that have a VM on one
/// host right now. It takes the place of that host's last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageSample {
    /// Which host.
    pub worker: WorkerId,
    /// Those that have a VM, in the order of their ids.
    pub machines: Vec<MachineUsage>,
}

/// What the VM of a machine uses of its host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineUsage {
    /// Which machine.
    pub id: MachineId,
    /// Processor time since the last line, percent of one processor. Absent for a VM that was not
    /// in the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Processor time since the VM began, seconds.
    pub cpu_seconds: f64,
    /// Memory that the VM holds on the host: its own, and its share of what VMs share. Bytes.
    pub memory_bytes: u64,
}
