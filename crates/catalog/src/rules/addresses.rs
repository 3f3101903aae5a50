//! Addresses of apps: each is of one app, but for those of the shared listeners.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
};

use caddis_api::{AppName, NetworkName};
use ipnet::{IpNet, Ipv6Net};
use rand::Rng as _;
use tokio::sync::watch;

use super::{Catalog, apps::DEFAULT_NETWORK};
use crate::{
    Address, AddressKind, AddressPool, AppRecord, AppState, CatalogError, NewAddress,
    PrivateNetwork, Result, WantedAddress,
    store::{AddressConflict, AddressRow, NetworkRow},
};

/// What is given and to whom, but for the address itself.
struct Terms {
    kind: AddressKind,
    network: Option<(i64, PrivateNetwork)>,
    /// One of these is enough where the app has it already.
    enough: Option<AddressPool>,
}

impl Catalog {
    /// Gives an app an address: the lowest that is free, or the one that is wanted. A private one
    /// is a random one, so that none which was released goes to another app while clients that
    /// have looked it up still use it.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`], [`CatalogError::AppInDeletion`],
    /// [`CatalogError::AddressesExhausted`], [`CatalogError::AddressOutsidePool`],
    /// [`CatalogError::AddressTaken`], [`CatalogError::OrganizationNotFound`],
    /// [`CatalogError::NetworkNotFound`].
    pub async fn allocate_address(&self, new: NewAddress) -> Result<Address> {
        self.allocate(new, false).await
    }

    /// Sees to it that an app has an address of its own from the pool. One that it has there is
    /// enough, however many want it at once; one that the pool no longer has is not.
    ///
    /// # Errors
    /// As of [`Self::allocate_address`].
    pub async fn ensure_address(&self, app: &str, pool: AddressPool) -> Result<Address> {
        let new = NewAddress {
            app: AppName::from_trusted(app),
            wanted: WantedAddress::Own(pool),
            region: String::new(),
            service_name: String::new(),
        };
        self.allocate(new, true).await
    }

    async fn allocate(&self, new: NewAddress, only_first: bool) -> Result<Address> {
        loop {
            let app = self.store.app(&new.app).await?;
            let app = app.ok_or_else(|| CatalogError::AppNotFound(new.app.to_string()))?;
            if app.state == AppState::Deleting {
                return Err(CatalogError::AppInDeletion(new.app));
            }
            let (terms, pool, wanted) = self.terms(&new.wanted, &app, only_first).await?;
            let mut only_beside = None;
            if let Some(enough) = &terms.enough {
                let addresses = self.store.addresses(Some(app.number)).await?;
                let alike = addresses.into_iter().filter(|address| address.kind == terms.kind);
                let (found, useless): (Vec<_>, Vec<_>) =
                    alike.partition(|address| enough.has(address.ip));
                if let Some(first) = found.into_iter().next() {
                    return Ok(first);
                }
                only_beside = Some(useless.into_iter().map(|address| address.ip).collect());
            }
            let ip = match wanted {
                Some(ip) => ip,
                None if terms.kind == AddressKind::PrivateV6 => {
                    let random = pool.prefixes.first().and_then(random_of);
                    let pool = pool.to_string();
                    random.ok_or(CatalogError::AddressesExhausted { pool })?
                }
                None => self.lowest_free(&pool).await?,
            };
            let is_known = wanted.is_some();
            let row = AddressRow {
                app: app.number,
                ip,
                kind: terms.kind,
                network: terms.network.as_ref().map(|(number, _)| *number),
                region: new.region.clone(),
                service_name: new.service_name.clone(),
                only_beside,
                created_at: self.now(),
            };
            match self.store.insert_address(row.clone()).await? {
                Ok(()) => {
                    return Ok(Address {
                        ip,
                        kind: terms.kind,
                        app: app.name,
                        network: terms.network.map(|(_, name)| name),
                        region: row.region,
                        service_name: row.service_name,
                        created_at: row.created_at,
                    });
                }
                Err(AddressConflict::Address) if is_known => {
                    return Err(CatalogError::AddressTaken(ip));
                }
                // Somebody was quicker, or the app has just been marked: the next round tells.
                Err(AddressConflict::Address | AddressConflict::Kind | AddressConflict::App) => {}
            }
        }
    }

    /// What is to be given, where it may be from, and the address when it is known.
    async fn terms(
        &self,
        wanted: &WantedAddress,
        app: &AppRecord,
        only_first: bool,
    ) -> Result<(Terms, AddressPool, Option<IpAddr>)> {
        let own = |is_v6: bool, pool: &AddressPool| {
            let kind = if is_v6 { AddressKind::V6 } else { AddressKind::V4 };
            Terms { kind, network: None, enough: only_first.then(|| pool.clone()) }
        };
        Ok(match wanted {
            WantedAddress::Own(pool) => {
                let is_v6 = pool.prefixes.iter().any(|prefix| prefix.addr().is_ipv6());
                (own(is_v6, pool), pool.clone(), None)
            }
            WantedAddress::This(ip, pool) => {
                if !pool.has(*ip) {
                    let pool = pool.to_string();
                    return Err(CatalogError::AddressOutsidePool { ip: *ip, pool });
                }
                (own(ip.is_ipv6(), pool), AddressPool::default(), Some(*ip))
            }
            WantedAddress::Shared(ip) => {
                let this = IpNet::from(IpAddr::V4(*ip));
                let enough = AddressPool { prefixes: vec![this], reserved: Vec::new() };
                let kind = AddressKind::SharedV4;
                let terms = Terms { kind, network: None, enough: Some(enough) };
                (terms, AddressPool::default(), Some(IpAddr::V4(*ip)))
            }
            WantedAddress::Private { organization, network } => {
                let (row, name) = self.private_network(app, organization, network).await?;
                let pool = AddressPool {
                    prefixes: private_prefix(&row.prefix).into_iter().collect(),
                    reserved: Vec::new(),
                };
                let (kind, network) = (AddressKind::PrivateV6, Some((row.number, name)));
                let enough = only_first.then(|| pool.clone());
                (Terms { kind, network, enough }, pool, None)
            }
        })
    }

    async fn private_network(
        &self,
        app: &AppRecord,
        organization: &Option<String>,
        network: &Option<NetworkName>,
    ) -> Result<(NetworkRow, PrivateNetwork)> {
        let slug = organization.as_ref().unwrap_or(&app.organization.slug);
        let organization = self.store.organization(slug).await?;
        let organization =
            organization.ok_or_else(|| CatalogError::OrganizationNotFound(slug.clone()))?;
        let number = organization.internal_numeric_id;
        let row = match network {
            // The default network of an organisation is there from its first use on.
            None => self.network(number, &NetworkName::from_trusted(DEFAULT_NETWORK)).await?,
            Some(name) => {
                let found = self.store.network(number, name).await?;
                found.ok_or(CatalogError::NetworkNotFound)?
            }
        };
        let name = network.clone();
        let name = name.unwrap_or_else(|| NetworkName::from_trusted(DEFAULT_NETWORK));
        Ok((row, PrivateNetwork { organization: organization.slug, name }))
    }

    async fn lowest_free(&self, pool: &AddressPool) -> Result<IpAddr> {
        let all = self.store.addresses(None).await?;
        let taken: HashSet<_> = all.into_iter().map(|address| address.ip).collect();
        pool.all()
            .find(|ip| !taken.contains(ip) && !pool.reserved.contains(ip))
            .ok_or_else(|| CatalogError::AddressesExhausted { pool: pool.to_string() })
    }

    /// Takes an address from an app.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`], [`CatalogError::AddressNotFound`].
    pub async fn release_address(&self, app: &str, ip: IpAddr) -> Result<()> {
        let found = self.store.app(app).await?;
        let found = found.ok_or_else(|| CatalogError::AppNotFound(app.to_owned()))?;
        match self.store.delete_address(found.number, ip).await? {
            true => Ok(()),
            false => Err(CatalogError::AddressNotFound(ip)),
        }
    }

    /// Addresses of an app, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`].
    pub async fn addresses_of(&self, app: &str) -> Result<Vec<Address>> {
        let found = self.store.app(app).await?;
        let found = found.ok_or_else(|| CatalogError::AppNotFound(app.to_owned()))?;
        Ok(self.store.addresses(Some(found.number)).await?)
    }

    /// Addresses of all apps, by app.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn addresses(&self) -> Result<Vec<Address>> {
        Ok(self.store.addresses(None).await?)
    }

    /// A number that rises after each change of [`Self::addresses`]. Who subscribes before it asks
    /// for them misses none.
    pub fn addresses_changed(&self) -> watch::Receiver<u64> {
        self.store.addresses_changed()
    }
}

impl AddressPool {
    /// Whether the address is one that an app may have.
    pub fn has(&self, ip: IpAddr) -> bool {
        let has = |prefix: &IpNet| prefix.contains(&ip) && !is_special(prefix, ip);
        self.prefixes.iter().any(has) && !self.reserved.contains(&ip)
    }

    /// All addresses of the prefixes, lowest first within each.
    pub(super) fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.prefixes
            .iter()
            .flat_map(|prefix| prefix.trunc().hosts().filter(move |ip| !is_special(prefix, *ip)))
    }
}

impl std::fmt::Display for AddressPool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.prefixes.is_empty() {
            return formatter.write_str("an empty pool");
        }
        for (index, prefix) in self.prefixes.iter().enumerate() {
            let joint = if index > 0 { ", " } else { "" };
            write!(formatter, "{joint}{prefix}")?;
        }
        Ok(())
    }
}

/// The network's and the broadcast address of IPv4, and the routers' address of IPv6, where a
/// prefix is large enough to have them.
fn is_special(prefix: &IpNet, ip: IpAddr) -> bool {
    let host_bits = prefix.max_prefix_len() - prefix.prefix_len();
    host_bits > 1 && (ip == prefix.network() || (ip.is_ipv4() && ip == prefix.broadcast()))
}

/// Where the addresses of services are within a network, a /48: its `0:1::/80`, as the reference
/// has it. No machine's address is there.
fn private_prefix(network: &str) -> Option<IpNet> {
    let network: Ipv6Net = network.parse().ok()?;
    let first = Ipv6Addr::from_bits(network.network().to_bits() | 1 << 48);
    Ipv6Net::new(first, 80).ok().map(IpNet::V6)
}

/// A random address of the first 2^32 of a prefix, but for the lowest: it stays short.
fn random_of(prefix: &IpNet) -> Option<IpAddr> {
    let IpNet::V6(prefix) = prefix else { return None };
    let host = u128::from(rand::rng().random_range(1..=u32::MAX));
    let ip = Ipv6Addr::from_bits(prefix.network().to_bits() | host);
    prefix.contains(&ip).then_some(IpAddr::V6(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_random_ones_of_their_prefix() {
        let prefix = private_prefix("fdaa:2:45b::/48").unwrap();
        let [first, second] = [(); 2].map(|()| random_of(&prefix).unwrap());
        assert!(prefix.contains(&first) && prefix.contains(&second));
        assert_ne!(first, second, "once in 2^32 runs");
        assert_eq!(random_of(&"192.0.2.0/24".parse().unwrap()), None);
    }

    fn pool(prefixes: &[&str]) -> AddressPool {
        let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        AddressPool { prefixes, reserved: vec!["192.0.2.2".parse().unwrap()] }
    }

    #[test]
    fn a_pool_has_what_apps_may_have() {
        let all = |prefixes: &[&str]| {
            pool(prefixes).all().map(|ip| ip.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(all(&["192.0.2.0/30"]), "192.0.2.1 192.0.2.2");
        assert_eq!(all(&["192.0.2.4/31", "192.0.2.9/32"]), "192.0.2.4 192.0.2.5 192.0.2.9");
        assert_eq!(all(&["2001:db8::/126"]), "2001:db8::1 2001:db8::2 2001:db8::3");
        assert_eq!(all(&["2001:db8::7/127"]), "2001:db8::6 2001:db8::7");
        for (ip, expected) in [
            ("192.0.2.0", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("192.0.2.3", false),
            ("192.0.2.4", false),
        ] {
            assert_eq!(pool(&["192.0.2.0/30"]).has(ip.parse().unwrap()), expected, "{ip}");
        }
    }

    #[test]
    fn services_of_a_network_have_a_prefix_of_their_own() {
        let prefix = private_prefix("fdaa:2:45b::/48").unwrap();
        assert_eq!(prefix.to_string(), "fdaa:2:45b:0:1::/80");
    }
}
