//! Networks and addresses: a network is a random /48, a machine has a random /112 of it.

use std::net::Ipv6Addr;

use caddis_api::NetworkName;
use rand::Rng as _;

use super::Catalog;
use crate::{
    Result,
    store::{NetworkRow, NewNetwork},
};

impl Catalog {
    /// A network of an organisation; made when there is none of this name. One that nothing is in
    /// yet, because its first app came to nothing, waits for the next.
    pub(super) async fn network(
        &self,
        organization: i32,
        name: &NetworkName,
    ) -> Result<NetworkRow> {
        loop {
            if let Some(found) = self.store.network(organization, name).await? {
                return Ok(found);
            }
            let network = NewNetwork {
                organization,
                name: name.clone(),
                prefix: random_prefix(),
                created_ms: self.now(),
            };
            // It is there now, or another one has the prefix: the next look tells.
            self.store.insert_network(network).await?;
        }
    }
}

/// A /48 of fdaa::/16. fdaa:0::/32 is left to addresses that are the same in every VM.
fn random_prefix() -> String {
    let (high, low) = (rand::rng().random_range(1..=u16::MAX), rand::rng().random::<u16>());
    format!("{}/48", Ipv6Addr::new(0xfdaa, high, low, 0, 0, 0, 0, 0))
}

/// An address in a network: a random /112, host part 2. The first 2^33 are left out: the name
/// server of peers and the addresses of services are there in the reference.
pub(super) fn random_address(prefix: &str) -> Ipv6Addr {
    let network = prefix.split('/').next().and_then(|text| text.parse::<Ipv6Addr>().ok());
    let network = network.unwrap_or(Ipv6Addr::UNSPECIFIED).to_bits() >> 80 << 80;
    let subnet = u128::from(rand::rng().random_range(1 << 33..=u64::MAX));
    Ipv6Addr::from_bits(network | subnet << 16 | 2)
}
