//! WireGuard peers of private networks, as the catalog takes and gives them.

use std::net::Ipv6Addr;

use caddis_api::{NetworkName, UnixMillis};

/// A peer to make.
#[derive(Debug, Clone)]
pub struct NewPeer {
    /// Slug of the organisation whose network it is.
    pub organization: String,
    /// The network; the organisation's default one when absent.
    pub network: Option<NetworkName>,
    /// Name, a label of DNS; the caller has checked its form.
    pub name: String,
    /// Its public key, in base64; the caller has checked its form.
    pub key: String,
}

/// A computer of a user that is in a private network over WireGuard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRecord {
    /// Unique in its network.
    pub name: String,
    /// Slug of the organisation.
    pub organization: String,
    /// Name of the network.
    pub network: NetworkName,
    /// The network's /48.
    pub network_prefix: String,
    /// Public key in base64, unique in the installation.
    pub key: String,
    /// Its address in the network, unique in the installation.
    pub address: Ipv6Addr,
    /// When it was made.
    pub created_ms: UnixMillis,
}

/// A peer to insert.
#[derive(Debug, Clone)]
pub struct PeerRow {
    /// Number of its network.
    pub network: i64,
    /// Unique in the network.
    pub name: String,
    /// Public key; unique.
    pub key: String,
    /// Unique.
    pub address: Ipv6Addr,
    /// When it was made.
    pub created_ms: UnixMillis,
}

/// What is in the way of a peer; the name comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerConflict {
    /// A peer of the network has this name.
    Name,
    /// A peer has this key.
    Key,
    /// A peer has this address.
    Address,
}
