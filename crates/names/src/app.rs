//! The machines of an app, and the answers for its names.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
};

use caddis_api::MachineId;
use caddis_network::{Found, LONGEST_TEXT};
use rand::Rng as _;

use crate::entry::{Entry, Group};

/// Metadata key of a machine's process group.
const PROCESS_GROUP: &str = "fly_process_group";

/// See the module's text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct App {
    /// Those that have names.
    machines: BTreeMap<MachineId, Machine>,
    /// Those that have none, because of their configuration.
    hidden: BTreeSet<MachineId>,
    groups: BTreeMap<Group, Members>,
}

#[derive(Debug, PartialEq, Eq)]
struct Machine {
    address: Ipv6Addr,
    region: String,
    is_answered: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Members {
    count: usize,
    /// Those that are answered, in order.
    addresses: Vec<Ipv6Addr>,
}

impl App {
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty() && self.hidden.is_empty()
    }

    pub fn insert(&mut self, id: &MachineId, entry: &Entry) {
        if entry.settings.is_hidden {
            self.hidden.insert(id.clone());
            return;
        }
        let (address, is_answered) = (entry.address, entry.is_answered);
        for group in entry.groups() {
            let members = self.groups.entry(group).or_default();
            members.count += 1;
            if is_answered && let Err(place) = members.addresses.binary_search(&address) {
                members.addresses.insert(place, address);
            }
        }
        let machine = Machine { address, region: entry.region.clone(), is_answered };
        self.machines.insert(id.clone(), machine);
    }

    /// Removes a machine that was inserted with this entry.
    pub fn remove(&mut self, id: &MachineId, entry: &Entry) {
        self.hidden.remove(id);
        if self.machines.remove(id).is_none() {
            return;
        }
        for group in entry.groups() {
            let Some(members) = self.groups.get_mut(&group) else { continue };
            members.count -= 1;
            if entry.is_answered
                && let Ok(place) = members.addresses.binary_search(&entry.address)
            {
                members.addresses.remove(place);
            }
            if members.count == 0 {
                self.groups.remove(&group);
            }
        }
    }

    /// What a name below that of the app has. `asker` is the machine that asks.
    pub fn look_up(&self, labels: &[&str], asker: Option<&Entry>) -> Found {
        match labels {
            [] | ["global"] => Found::Addresses(rotated(self.addresses(&Group::All))),
            ["vms"] => self.machine_list(false),
            ["all", "vms"] => self.machine_list(true),
            ["regions"] => self.region_list(false),
            ["all", "regions"] => self.region_list(true),
            [id, "vm"] => match self.machines.get(&MachineId::from_trusted(*id)) {
                Some(machine) if machine.is_answered => Found::Addresses(vec![machine.address]),
                Some(_) => Found::Empty,
                None => Found::Nothing,
            },
            [group @ .., "process"] if !group.is_empty() => {
                self.group(&Group::Metadata(format!("{}.{PROCESS_GROUP}", group.join("."))))
            }
            [pair @ .., "kv", "_metadata"] if !pair.is_empty() => {
                self.group(&Group::Metadata(pair.join(".")))
            }
            [top, "nearest", "of"] => {
                let count = top.strip_prefix("top").and_then(|count| count.parse().ok());
                match count.filter(|count| *count > 0) {
                    Some(count) => Found::Addresses(self.nearest(count, asker)),
                    None => Found::Nothing,
                }
            }
            // Others are below them.
            ["vm" | "process" | "of"] | ["nearest", "of"] | ["_metadata"] | ["kv", "_metadata"] => {
                Found::Empty
            }
            [region] => self.group(&Group::Region((*region).to_owned())),
            _ => Found::Nothing,
        }
    }

    /// Lines of machines, as `_instances.internal` has them.
    pub fn instances<'a>(&'a self, app: &'a str, all: bool) -> impl Iterator<Item = String> + 'a {
        let machines = self.machines.iter().filter(move |(_, machine)| all || machine.is_answered);
        machines.map(move |(id, Machine { address, region, .. })| {
            format!("instance={id},app={app},ip={address},region={region}")
        })
    }

    fn addresses(&self, group: &Group) -> &[Ipv6Addr] {
        self.groups.get(group).map_or(&[], |members| &members.addresses)
    }

    /// A group that nobody is in does not exist.
    fn group(&self, group: &Group) -> Found {
        match self.groups.get(group) {
            Some(members) => Found::Addresses(rotated(&members.addresses)),
            None => Found::Nothing,
        }
    }

    fn machine_list(&self, all: bool) -> Found {
        let machines = self.machines.iter().filter(|(_, machine)| all || machine.is_answered);
        joined(machines.map(|(id, machine)| format!("{id} {}", machine.region)), ',')
    }

    fn region_list(&self, all: bool) -> Found {
        let regions = self.groups.range(Group::Region(String::new())..);
        let regions = regions.map_while(|(group, members)| match group {
            Group::Region(region) => Some((region, members)),
            _ => None,
        });
        let regions = regions.filter(|(_, members)| all || !members.addresses.is_empty());
        joined(regions.map(|(region, _)| region.clone()), ',')
    }

    /// Round-trip times are not measured: those of the asker's host come first, then those of its
    /// region, then the others.
    fn nearest(&self, count: usize, asker: Option<&Entry>) -> Vec<Ipv6Addr> {
        let all = self.addresses(&Group::All);
        let Some(asker) = asker else {
            let mut any = rotated(all);
            any.truncate(count);
            return any;
        };
        let on_host = self.addresses(&Group::Host(asker.worker.clone()));
        let in_region = self.addresses(&Group::Region(asker.region.clone()));
        let mut nearest = Vec::new();
        let circles = [on_host, in_region, all];
        for (number, circle) in circles.iter().enumerate() {
            let is_new = |address: &Ipv6Addr| {
                circles.iter().take(number).all(|inner| inner.binary_search(address).is_err())
            };
            let missing = count - nearest.len();
            nearest.extend(rotated(circle).into_iter().filter(is_new).take(missing));
        }
        nearest
    }
}

/// Addresses, beginning with any of them: many clients take the first.
fn rotated(addresses: &[Ipv6Addr]) -> Vec<Ipv6Addr> {
    if addresses.len() < 2 {
        return addresses.to_vec();
    }
    let (last, first) = addresses.split_at(rand::rng().random_range(0..addresses.len()));
    [first, last].concat()
}

/// A text of as many items as fit.
pub(crate) fn joined(items: impl Iterator<Item = String>, separator: char) -> Found {
    let mut text = String::new();
    for item in items {
        let length = if text.is_empty() { item.len() } else { text.len() + 1 + item.len() };
        if length > LONGEST_TEXT {
            break;
        }
        if !text.is_empty() {
            text.push(separator);
        }
        text.push_str(&item);
    }
    Found::Text(text)
}
