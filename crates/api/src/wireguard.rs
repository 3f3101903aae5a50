//! WireGuard peers of private networks.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ApiError;

/// A computer that reaches the machines of a private network over WireGuard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WireGuardPeer {
    /// Name, unique in its network; machines reach it as `NAME._peer.internal`.
    pub name: String,
    /// Name of its network.
    pub network: String,
    /// Its address in the network.
    pub peer_ip: String,
    /// Its public key, in base64.
    pub public_key: String,
    /// RFC 3339.
    pub created_at: String,
    /// Address and port that it was last heard from; absent before it has connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// RFC 3339; absent before it has connected. Like all below it is since the server was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake_at: Option<String>,
    /// Bytes of the packets that came from it.
    pub received_bytes: u64,
    /// Bytes of the packets that were sent to it.
    pub sent_bytes: u64,
    /// Packets from it that were dropped: not from its address, or not to a machine of its network.
    pub refused_packets: u64,
}

/// What a peer has to know of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WireGuardServer {
    /// Its public key, in base64.
    pub public_key: String,
    /// Host and port that peers send to.
    pub endpoint: String,
    /// What is behind it: the peer's network.
    pub allowed_ips: String,
    /// Name server of the network.
    pub dns: String,
}

/// Body of `POST /v1/orgs/{org}/wireguard_peers`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreateWireGuardPeer {
    /// Name: 1 to 63 lowercase letters, digits and dashes; required.
    #[schema(required = true)]
    pub name: String,
    /// The peer's public key, in base64, as `wg pubkey` prints it; required.
    #[schema(required = true)]
    pub public_key: String,
    /// Name of the network; the organization's default unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// Body of `POST /v1/orgs/{org}/wireguard_peers/{name}/reset`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ResetWireGuardPeer {
    /// The peer's new public key; required. The former one opens nothing from then on.
    #[schema(required = true)]
    pub public_key: String,
    /// Name of the network; the organization's default unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// A peer, and what it has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WireGuardPeerReply {
    /// The peer.
    pub peer: WireGuardPeer,
    /// The server.
    pub server: WireGuardServer,
}

/// Reply of `GET /v1/orgs/{org}/wireguard_peers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WireGuardPeers {
    /// By network and name.
    pub peers: Vec<WireGuardPeer>,
}

/// Checks the name of a peer, which is a label of DNS.
///
/// # Errors
/// `invalid_argument`.
pub fn check_peer_name(name: &str) -> Result<(), ApiError> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_label = (1..=63).contains(&name.len())
        && name.bytes().all(legal)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_label {
        return Ok(());
    }
    Err(ApiError::invalid("invalid name, use 1 to 63 lowercase letters, digits and dashes"))
}

/// Checks a public key, and gives the one way of writing it.
///
/// # Errors
/// `invalid_argument`.
pub fn check_public_key(text: &str) -> Result<String, ApiError> {
    let key =
        STANDARD.decode(text).ok().filter(|key| key.len() == 32 && key.iter().any(|b| *b != 0));
    let key = key.ok_or_else(|| {
        ApiError::invalid(
            "invalid public_key, 44 characters of base64 are expected, as 'wg pubkey' prints them",
        )
    })?;
    Ok(STANDARD.encode(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_and_keys_have_32_bytes() {
        for good in ["a", "my-laptop", "7", &"a".repeat(63)] {
            check_peer_name(good).unwrap();
        }
        for bad in ["", "A", "a.b", "-a", "a-", "a_b", "ä", &"a".repeat(64)] {
            assert!(check_peer_name(bad).is_err(), "{bad}");
        }
        let key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        assert_eq!(check_public_key(key).unwrap(), key);
        let (short, zero) = (STANDARD.encode([7; 31]), STANDARD.encode([0; 32]));
        for bad in ["", "?", key.trim_end_matches('='), &short, &zero] {
            assert!(check_public_key(bad).is_err(), "{bad}");
        }
    }
}
