//! Addresses of services within private networks, which make the names below `flycast.`.

use std::{collections::HashMap, net::IpAddr, net::Ipv6Addr};

use caddis_catalog::{Address, AddressKind};
use caddis_network::Found;

use crate::entry::{Prefix, prefix};

/// What was read of the catalog.
#[derive(Debug, Default)]
pub(crate) struct Services(HashMap<Prefix, HashMap<String, Vec<Ipv6Addr>>>);

impl Services {
    /// Of all addresses of apps.
    pub fn new(addresses: Vec<Address>) -> Self {
        let mut networks = HashMap::<_, HashMap<_, Vec<_>>>::new();
        for address in addresses {
            if let (AddressKind::PrivateV6, IpAddr::V6(ip)) = (address.kind, address.ip) {
                let app = address.app.to_ascii_lowercase();
                networks.entry(prefix(ip)).or_default().entry(app).or_default().push(ip);
            }
        }
        Self(networks)
    }

    /// What a name has in the network of the address `source`.
    pub fn look_up(&self, source: Ipv6Addr, labels: &[&str]) -> Found {
        let network = self.0.get(&prefix(source));
        let found = network.zip(labels.first()).and_then(|(apps, app)| apps.get(*app));
        match found {
            Some(addresses) if labels.len() == 1 => Found::Addresses(addresses.clone()),
            _ => Found::Nothing,
        }
    }
}
