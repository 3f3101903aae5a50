//! Taps, addresses, packet filter and DNS of VMs. Spawns no command once started.
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// The addresses of one machine. IPv4 is private to the host; the private IPv6 stays with the machine for its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineAddresses {
    /// From the host's pool.
    pub ipv4: Ipv4Addr,
    /// The machine's address in its network, used as a /128.
    pub ipv6: Ipv6Addr,
    /// The /48 of its network: machines in it reach each other.
    pub network: ipnet::Ipv6Net,
    /// MAC address of the guest's interface, `02:…`.
    pub mac: String,
}
