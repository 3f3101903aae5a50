//! What machines use of their hosts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{MachineId, WorkerId};

/// One line of `GET /v1/apps/{app}/machines/usage`: the machines of the app that have a VM on one
/// host right now. It replaces that host's previous line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageSample {
    /// Id of the host.
    pub worker: WorkerId,
    /// Machines that have a VM, in the order of their ids.
    pub machines: Vec<MachineUsage>,
}

/// Host resources used by a machine's VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineUsage {
    /// Id of the machine.
    pub id: MachineId,
    /// CPU time since the previous line, percent of one CPU. Absent for a VM that was not in the
    /// previous line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// CPU time since the VM started, seconds.
    pub cpu_seconds: f64,
    /// Memory of the VM on the host, bytes: its own, and its share of what VMs share.
    pub memory_bytes: u64,
    /// Queries of the machine to the name server, since its VM was started; since the server was,
    /// if that is later. Also a machine that may make no other connections can ask for names,
    /// unless a network policy says `dns: deny`.
    #[serde(default)]
    pub dns_queries: u64,
    /// Those of them that went to the host's name servers: names of the outside.
    #[serde(default)]
    pub dns_forwarded: u64,
}
