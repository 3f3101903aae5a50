//! WireGuard without a socket: nobody ever connects.

use caddis_gateway::{WireGuardInfo, WireGuardStatus};

/// Says where peers would be served.
#[derive(Debug)]
pub(super) struct NobodyConnects;

impl WireGuardInfo for NobodyConnects {
    fn public_key(&self) -> String {
        "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=".to_owned()
    }

    fn endpoint(&self) -> String {
        "vpn.example.com:51820".to_owned()
    }

    fn status(&self, _key: &str) -> Option<WireGuardStatus> {
        None
    }
}
