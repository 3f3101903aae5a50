//! WireGuard peers: names are unique in a network, keys and addresses in the installation.

use std::net::Ipv6Addr;

use caddis_api::NetworkName;
use rand::Rng as _;
use tokio::sync::watch;

use super::{Catalog, apps::DEFAULT_NETWORK};
use crate::{CatalogError, NewPeer, PeerConflict, PeerRecord, PeerRow, Result, store::NetworkRow};

impl Catalog {
    /// Makes a peer of a network, with an address of its own.
    ///
    /// # Errors
    /// [`CatalogError::OrganizationNotFound`], [`CatalogError::NetworkNotFound`],
    /// [`CatalogError::PeerNameTaken`], [`CatalogError::PeerKeyTaken`].
    pub async fn create_peer(&self, new: NewPeer) -> Result<PeerRecord> {
        let (row, network) = self.peer_network(&new.organization, new.network.as_ref()).await?;
        loop {
            let address = random_peer(&row.prefix);
            let (network_number, created_ms) = (row.number, self.now());
            let peer = PeerRow {
                network: network_number,
                name: new.name.clone(),
                key: new.key.clone(),
                address,
                created_ms,
            };
            match self.store.insert_peer(peer).await? {
                Ok(()) => {
                    return Ok(PeerRecord {
                        name: new.name,
                        organization: new.organization,
                        network,
                        network_prefix: row.prefix,
                        key: new.key,
                        address,
                        created_ms,
                    });
                }
                Err(PeerConflict::Name) => return Err(CatalogError::PeerNameTaken(new.name)),
                Err(PeerConflict::Key) => return Err(CatalogError::PeerKeyTaken),
                Err(PeerConflict::Address) => {}
            }
        }
    }

    /// Gives a peer another key, so that the former one opens nothing any more.
    ///
    /// # Errors
    /// [`CatalogError::PeerNotFound`], [`CatalogError::PeerKeyTaken`], and those of
    /// [`Self::create_peer`] about organisation and network.
    pub async fn change_peer_key(
        &self,
        organization: &str,
        network: Option<&NetworkName>,
        name: &str,
        key: &str,
    ) -> Result<PeerRecord> {
        let (row, _) = self.peer_network(organization, network).await?;
        match self.store.change_peer_key(row.number, name, key).await? {
            Err(_) => Err(CatalogError::PeerKeyTaken),
            Ok(false) => Err(CatalogError::PeerNotFound(name.to_owned())),
            Ok(true) => self.peer(organization, network, name).await,
        }
    }

    /// Removes a peer.
    ///
    /// # Errors
    /// [`CatalogError::PeerNotFound`], and those of [`Self::create_peer`] about organisation and
    /// network.
    pub async fn remove_peer(
        &self,
        organization: &str,
        network: Option<&NetworkName>,
        name: &str,
    ) -> Result<()> {
        let (row, _) = self.peer_network(organization, network).await?;
        match self.store.delete_peer(row.number, name).await? {
            true => Ok(()),
            false => Err(CatalogError::PeerNotFound(name.to_owned())),
        }
    }

    /// A peer of a network.
    ///
    /// # Errors
    /// As of [`Self::remove_peer`].
    pub async fn peer(
        &self,
        organization: &str,
        network: Option<&NetworkName>,
        name: &str,
    ) -> Result<PeerRecord> {
        let (row, _) = self.peer_network(organization, network).await?;
        let found = self
            .peers()
            .await?
            .into_iter()
            .find(|peer| peer.network_prefix == row.prefix && peer.name == name);
        found.ok_or_else(|| CatalogError::PeerNotFound(name.to_owned()))
    }

    /// Peers of all networks, by network and name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn peers(&self) -> Result<Vec<PeerRecord>> {
        Ok(self.store.peers().await?)
    }

    /// A number that rises after each change of [`Self::peers`]. Who subscribes before it asks for
    /// them misses none.
    pub fn peers_changed(&self) -> watch::Receiver<u64> {
        self.store.peers_changed()
    }

    async fn peer_network(
        &self,
        slug: &str,
        name: Option<&NetworkName>,
    ) -> Result<(NetworkRow, NetworkName)> {
        let organization = self.store.organization(slug).await?;
        let organization =
            organization.ok_or_else(|| CatalogError::OrganizationNotFound(slug.to_owned()))?;
        let number = organization.internal_numeric_id;
        match name {
            // The default network of an organisation is there from its first use on.
            None => {
                let name = NetworkName::from_trusted(DEFAULT_NETWORK);
                Ok((self.network(number, &name).await?, name))
            }
            Some(name) => {
                let found = self.store.network(number, name).await?;
                Ok((found.ok_or(CatalogError::NetworkNotFound)?, name.clone()))
            }
        }
    }
}

/// A random address of the first /80 of a network, a /48: `::x:y:2`. Neither a machine nor a
/// service has its address there, nor the name server, which is `::3`.
fn random_peer(prefix: &str) -> Ipv6Addr {
    let network = prefix.split('/').next().and_then(|text| text.parse::<Ipv6Addr>().ok());
    let network = network.unwrap_or(Ipv6Addr::UNSPECIFIED).to_bits() >> 80 << 80;
    let number = u128::from(rand::rng().random_range(1..=u32::MAX));
    Ipv6Addr::from_bits(network | number << 16 | 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_peers_are_random_ones_where_no_machine_is() {
        let prefix: ipnet::Ipv6Net = "fdaa:2:45b::/80".parse().unwrap();
        let [first, second] = [(); 2].map(|()| random_peer("fdaa:2:45b::/48"));
        assert!(prefix.contains(&first) && prefix.contains(&second));
        assert_ne!(first, second, "once in 2^32 runs");
        assert!(!prefix.contains(&super::super::networks::random_address("fdaa:2:45b::/48")));
    }
}
