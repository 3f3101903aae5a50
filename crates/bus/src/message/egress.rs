//! What connections of machines to the outside come from.

use std::net::IpAddr;

use caddis_api::MachineId;
use serde::{Deserialize, Serialize};

/// The egress addresses of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineEgress {
    /// Id of the machine.
    pub machine: MachineId,
    /// At most one of each family.
    pub sources: Vec<EgressSource>,
}

/// An egress address of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressSource {
    /// The address.
    pub address: IpAddr,
    /// First and last port that the machine has of it; all where it has the address alone.
    pub ports: Option<(u16, u16)>,
}
