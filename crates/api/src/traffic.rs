//! What the proxy knows of a machine.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Traffic of a machine, as the proxy of its host counts it since it began. Caddis extension.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineTraffic {
    /// Open connections to the machine.
    pub connections: u64,
    /// Requests in progress.
    pub requests: u64,
    /// Bytes sent to the machine.
    pub bytes_in: u64,
    /// Bytes received from it.
    pub bytes_out: u64,
    /// Requests and connections that wait for it to start.
    pub waiting: u64,
    /// The proxy's last decision to start, stop or suspend the machine, or not to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<TrafficDecision>,
}

/// A decision of the proxy about a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrafficDecision {
    /// What was done or left, e.g. `stop` or `keep running`.
    pub what: String,
    /// Why.
    pub why: String,
    /// When, RFC 3339 with milliseconds.
    pub at: String,
}
