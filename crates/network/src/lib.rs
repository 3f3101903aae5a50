//! Taps, addresses, packet filter and DNS of VMs. Spawns no command once started, but for nft when
//! network policies change (`policies.rs`).
//!
//! ```text
//!           namespace of the installation                   │ host
//!  VM eth0 ── tap caddisN ── routes ── uplink ──────────────┼── caddis-I ── routes, NAT ── outside
//!   10.201.x.y/32, via 169.254.255.1 │ nft table            │   169.254.255.2, fdaa::2
//!   fdaa:…/128,    via fe80::1       │ inet caddis:         │   rules: in from here only what is
//!                                    │   what may pass      │   marked, and never to an address
//!                                    │ fdaa::3: DNS         │   of the host
//!                                    │ fdaa:…:0:1::n: proxy │
//! ```
//! Taps are routed, not bridged: each has a /32 and a /128 route and permanent neighbours, so no VM
//! sees another's frames. Whether a packet's source is its VM's own is looked up in the routes
//! (`fib`), so nothing needs to be told to the filter per machine; only who is in one private
//! network is, as an element of the set `own6`.
//!
//! Names of machines are answered from what [`Names`] says, which is given to the network: who is
//! in which network is known by the source address of a query, which can't be another machine's.
//!
//! The filter is out of reach of whatever manages the host's own. What is on the host is watched
//! (`guard.rs`) and put back; meanwhile nothing passes.

mod address;
mod answering;
mod conntrack;
mod dns;
mod egress;
mod error;
mod exhaustion;
mod expression;
mod filter;
mod flycast;
mod forwarding;
mod guard;
mod host;
mod host_filter;
mod inspection;
mod installation;
mod legacy;
mod links;
mod names;
mod namespace;
mod netlink;
mod network;
mod peers;
mod policies;
mod pool;
mod public;
mod recover;
mod rules;
mod sets;
mod state;
mod tap;
#[cfg(test)]
mod tests;
mod uplink;

use std::net::{Ipv4Addr, Ipv6Addr};

pub use address::{allocate_ipv4, random_mac};
pub use caddis_guest_protocol::spec::{GATEWAY_V4, GATEWAY_V6};
pub use conntrack::Tracked;
pub use dns::asked::DnsQueries;
pub use egress::{Assignment, Assignments, egress_file};
pub use error::NetworkError;
pub use exhaustion::Refused;
pub use filter::check_filter;
pub use guard::Disturbances;
pub use installation::RUN_DIRECTORY;
pub use names::{Found, LONGEST_TEXT, Names};
pub use network::{Cleaned, Network, NetworkConfig, guest_spec};
pub use policies::{Allowance, AllowedPort, MachinePolicy};
pub use public::PublicAddresses;
use serde::{Deserialize, Serialize};

/// The addresses of one machine. IPv4 is private to the host; the private IPv6 stays with the
/// machine for its life.
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

/// MAC address of both gateways, so of every tap: a machine that is resumed behind another tap
/// finds its gateway where it was.
pub const GATEWAY_MAC: [u8; 6] = [0x0e, 0xca, 0xdd, 0x15, 0x00, 0x01];
/// Name server of every VM.
pub const DNS: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 3);
/// The host's own addresses on the link to its machines: what it sends them comes from here, and
/// only answers go here.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 255, 2);
/// The same in IPv6.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 2);
/// Where all private networks are.
pub(crate) const PRIVATE_V6: ipnet::Ipv6Net =
    ipnet::Ipv6Net::new_assert(Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 0), 16);
/// Name of the link to the host, in the namespace.
pub(crate) const UPLINK: &str = "uplink";
/// Largest packet, bytes: leaves room for a tunnel between hosts.
pub const MTU: u32 = 1420;
/// What the names of all taps begin with.
pub const TAP_PREFIX: &str = "caddis";
