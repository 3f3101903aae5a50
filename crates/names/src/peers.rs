//! Names of WireGuard peers, below `_peer.internal.`.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv6Addr,
};

use caddis_catalog::PeerRecord;
use caddis_network::Found;

use crate::{
    app::joined,
    entry::{Prefix, prefix},
};

/// Names that the reference does not list begin with this.
const HIDDEN: &str = "interactive-";

/// What was read of the catalog.
#[derive(Debug, Default)]
pub(crate) struct Peers(HashMap<Prefix, BTreeMap<String, Ipv6Addr>>);

impl Peers {
    /// Of all peers.
    pub fn new(peers: Vec<PeerRecord>) -> Self {
        let mut networks = HashMap::<_, BTreeMap<_, _>>::new();
        for peer in peers {
            networks.entry(prefix(peer.address)).or_default().insert(peer.name, peer.address);
        }
        Self(networks)
    }

    /// What a name below `_peer` has in the network of the address `source`; all of them for none.
    pub fn look_up(&self, source: Ipv6Addr, labels: &[&str]) -> Found {
        let Some(peers) = self.0.get(&prefix(source)) else { return Found::Nothing };
        match labels {
            [] => joined(peers.keys().filter(|name| !name.starts_with(HIDDEN)).cloned(), ','),
            [name] => match peers.get(*name) {
                Some(address) => Found::Addresses(vec![*address]),
                None => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }
}
