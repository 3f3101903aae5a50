//! What the proxy knows of a machine.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Traffic of a machine, as the proxy of its host counts it since it began. Caddis extension.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineTraffic {
    /// Connections that were opened to the machine.
    pub connections: u64,
    /// HTTP requests that were sent to it.
    pub requests: u64,
    /// Bytes of bodies and streams that were sent to it.
    pub bytes_in: u64,
    /// Bytes of bodies and streams that it sent.
    pub bytes_out: u64,
    /// Requests and connections that wait for a machine of its app now.
    pub waiting: u64,
    /// The proxy's last decision to start, stop or suspend the machine, or not to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<TrafficDecision>,
}

/// A decision of the proxy about a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrafficDecision {
    /// What was done or left, e.g. `suspended` or `kept running`.
    pub what: String,
    /// Why.
    pub why: String,
    /// When, RFC 3339 with milliseconds.
    pub at: String,
}
