//! What can go wrong.

use std::net::Ipv6Addr;

use crate::PublicKey;

/// See its variants.
#[derive(Debug, thiserror::Error)]
pub enum WireGuardError {
    /// Two peers have one key: which of them a handshake comes from could not be told.
    #[error("two peers have the public key {0}: each needs a key pair of its own")]
    KeyInUse(PublicKey),
    /// The server itself has this key.
    #[error("the public key {0} is the server's own")]
    OwnKey(PublicKey),
    /// Two peers have one address.
    #[error("two peers have the address {0}")]
    AddressInUse(Ipv6Addr),
    /// A peer's address is not in its network.
    #[error("the address {address} of a peer is not in its network {network}")]
    OutsideNetwork {
        /// The address.
        address: Ipv6Addr,
        /// The network.
        network: ipnet::Ipv6Net,
    },
    /// The host refuses something.
    #[error("can't {attempted}")]
    Io {
        /// What.
        attempted: String,
        /// Why.
        source: std::io::Error,
    },
}

impl WireGuardError {
    pub(crate) fn io(attempted: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Io { attempted, source }
    }
}
