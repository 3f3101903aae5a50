//! WireGuard, as the gateway knows it.

use caddis_api::UnixMillis;
use caddis_gateway::{WireGuardInfo, WireGuardStatus};

/// Public keys: the server's, and that of a peer that has connected.
pub const SERVER: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";
pub const FIRST: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

/// A server at which the first key has connected.
#[derive(Debug)]
pub struct Known;

impl WireGuardInfo for Known {
    fn public_key(&self) -> String {
        SERVER.to_owned()
    }

    fn endpoint(&self) -> String {
        "192.0.2.1:51820".to_owned()
    }

    fn status(&self, key: &str) -> Option<WireGuardStatus> {
        (key == FIRST).then(|| WireGuardStatus {
            endpoint: Some("198.51.100.7:9".parse().unwrap()),
            last_handshake_at: Some(UnixMillis::new(1_000_000_000_000)),
            received_bytes: 1,
            sent_bytes: 2,
            refused_packets: 3,
        })
    }
}
