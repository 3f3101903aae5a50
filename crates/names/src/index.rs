//! All machines that are not destroyed, by network and app.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv6Addr,
};

use caddis_api::MachineId;
use caddis_network::Found;

use crate::{
    app::{App, joined},
    entry::{Entry, Prefix, prefix},
};

/// See the module's text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    machines: HashMap<MachineId, Entry>,
    by_address: HashMap<Ipv6Addr, MachineId>,
    networks: HashMap<Prefix, BTreeMap<String, App>>,
}

impl Index {
    pub fn get(&self, id: &MachineId) -> Option<&Entry> {
        self.machines.get(id)
    }

    /// The machine with this address.
    pub fn at(&self, address: Ipv6Addr) -> Option<(&MachineId, &Entry)> {
        let id = self.by_address.get(&address)?;
        Some((id, self.machines.get(id)?))
    }

    /// Ids of the machines for which this holds.
    pub fn ids(&self, holds: impl Fn(&Entry) -> bool) -> Vec<MachineId> {
        let machines = self.machines.iter().filter(|(_, entry)| holds(entry));
        machines.map(|(id, _)| id.clone()).collect()
    }

    /// A machine is this from now on, or gone.
    pub fn put(&mut self, id: &MachineId, entry: Option<Entry>) {
        self.remove(id);
        let Some(entry) = entry else { return };
        let network = self.networks.entry(prefix(entry.address)).or_default();
        network.entry(entry.app.clone()).or_default().insert(id, &entry);
        self.by_address.insert(entry.address, id.clone());
        self.machines.insert(id.clone(), entry);
    }

    fn remove(&mut self, id: &MachineId) {
        let Some(entry) = self.machines.remove(id) else { return };
        if self.by_address.get(&entry.address) == Some(id) {
            self.by_address.remove(&entry.address);
        }
        let number = prefix(entry.address);
        let Some(network) = self.networks.get_mut(&number) else { return };
        if let Some(app) = network.get_mut(&entry.app) {
            app.remove(id, &entry);
            if app.is_empty() {
                network.remove(&entry.app);
            }
        }
        if network.is_empty() {
            self.networks.remove(&number);
        }
    }

    /// What a name has in the network of the address `source`.
    pub fn look_up(&self, source: Ipv6Addr, labels: &[&str]) -> Found {
        let Some(network) = self.networks.get(&prefix(source)) else { return Found::Nothing };
        let instances =
            |all| joined(network.iter().flat_map(|(name, app)| app.instances(name, all)), ';');
        match labels {
            ["_apps"] => joined(network.keys().cloned(), ','),
            ["_instances"] => instances(false),
            ["all", "_instances"] => instances(true),
            [labels @ .., app] => match network.get(*app) {
                Some(app) => app.look_up(labels, self.at(source).map(|(_, asker)| asker)),
                None => Found::Nothing,
            },
            [] => Found::Empty,
        }
    }
}
