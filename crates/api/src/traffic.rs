//! What the proxy knows of apps and their machines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::MachineId;

/// Traffic of a machine, as the proxy of its host counts it since it began. Caddis extension.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineTraffic {
    /// Requests and connections in progress at the machine.
    #[serde(default)]
    pub in_progress: u64,
    /// Connections that were opened to it since the server started.
    pub connections: u64,
    /// HTTP requests that were sent to it since the server started.
    pub requests: u64,
    /// Bytes of bodies and streams that were sent to it since the server started.
    pub bytes_in: u64,
    /// Bytes of bodies and streams that it sent since the server started.
    pub bytes_out: u64,
    /// Requests and connections that wait for any machine of the app now.
    pub waiting: u64,
    /// The proxy's last decision to start, stop or suspend the machine, or not to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<TrafficDecision>,
}

/// What the proxy knows of an app. Totals count since the server started, or since the app first
/// had a machine with services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppTraffic {
    /// Requests and connections that wait for a machine now.
    pub waiting: u64,
    /// Open connections of clients to addresses of the app's own.
    pub connections: u64,
    /// Such connections that were closed at once, as there were too many, in total.
    pub refused_connections: u64,
    /// Clients of UDP services that have a machine now.
    pub udp_clients: u64,
    /// Datagrams that were dropped, in total: no machine took them, or a buffer or limit was full.
    pub dropped_datagrams: u64,
    /// Errors by code, in total.
    pub errors: BTreeMap<String, u64>,
    /// Its machines with services.
    pub machines: BTreeMap<MachineId, MachineTraffic>,
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
