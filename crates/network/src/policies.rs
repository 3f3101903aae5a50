//! Network policies of machines: a table of its own beside the filter (`filter.rs`), in the
//! installation's namespace, where it outlives the server and no firewall of the host reaches it.
//!
//! ```text
//! forwarded  before the filter's chain  ct original saddr ─▶ maps out4, out6 ─┐
//!                                       ct original daddr ─▶ maps in4, in6  ──┤ jump
//! p7_0 …     what a machine may do: allowed connections return, then ─▶ refused
//! to_host    the name server, of machines without it: set without_dns ─▶ refused
//! ```
//! Each packet is judged by who opened its connection to whom, in both directions and also where
//! the connection is established: so a policy is in force for connections that there are already.
//! The table only refuses. What it lets pass still has to pass the filter.
//!
//! Machines are known by their addresses, running or not, so that starting one changes nothing
//! here. The chains of a change are new ones, and the maps come to lead to them in one step; only
//! then are the former ones deleted. So at no time does a packet pass that both refuse.

use std::{collections::BTreeMap, fmt::Write as _};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    DNS, HOST_V4, HOST_V6, MachineAddresses, Network, NetworkError, filter, network::blocking,
};

const TABLE: &str = "caddis-policies";

/// What a machine may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachinePolicy {
    /// The machine.
    pub addresses: MachineAddresses,
    /// The connections that it may make; `None`: all.
    pub egress: Option<Vec<Allowance>>,
    /// The connections that others may make to it; `None`: all. The host itself may always.
    pub ingress: Option<Vec<Allowance>>,
    /// Whether it may ask the name server.
    pub dns: bool,
}

/// Connections that are allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowance {
    /// With any of these; `None`: with anyone.
    pub peers: Option<Vec<IpNet>>,
    /// On any of these; `None`: on all.
    pub ports: Option<Vec<AllowedPort>>,
}

/// A port that connections are made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AllowedPort {
    /// Of TCP; `None`: all.
    Tcp(Option<u16>),
    /// Of UDP; `None`: all.
    Udp(Option<u16>),
    /// ICMP and ICMPv6.
    Icmp,
}

impl Network {
    /// Puts policies in force, in place of all that there were. Connections that they forbid are
    /// refused from the next packet on.
    ///
    /// # Errors
    /// [`NetworkError::Filter`]; then the former ones are still in force.
    pub async fn set_policies(&self, machines: Vec<MachinePolicy>) -> Result<(), NetworkError> {
        let namespace = self.namespace.clone();
        blocking(move || {
            let replaced = namespace.run(move || replace(&machines));
            replaced.map_err(NetworkError::io("load network policies"))?
        })
        .await
    }
}

/// One of these at a time: on the thread of the namespace.
fn replace(machines: &[MachinePolicy]) -> Result<(), NetworkError> {
    let there = filter::nft("", &["-t", "list", "table", "inet", TABLE]);
    if there.is_err() && machines.is_empty() {
        return Ok(());
    }
    // A failure may have another reason: then what follows fails too.
    let former = chains(there.as_deref().unwrap_or_default());
    let generation = former.iter().filter_map(|name| generation(name)).max().map_or(0, |it| it + 1);
    let base = if there.is_err() { base() } else { String::new() };
    filter::nft(&(base + &change(generation, machines)), &["-f", "-"])?;
    if former.is_empty() {
        return Ok(());
    }
    let removal = former.iter().fold(String::new(), |mut script, chain| {
        let _ = writeln!(script, "delete chain inet {TABLE} {chain}");
        script
    });
    filter::nft(&removal, &["-f", "-"]).map(drop)
}

/// Names of the chains of policies in a listing of the table.
fn chains(listing: &str) -> Vec<String> {
    let names = listing.lines().filter_map(|line| line.trim().strip_prefix("chain "));
    let names = names.map(|name| name.trim_end_matches(" {"));
    names.filter(|name| generation(name).is_some()).map(str::to_owned).collect()
}

/// `p7_0` is of generation 7.
fn generation(chain: &str) -> Option<u64> {
    chain.strip_prefix('p')?.split_once('_')?.0.parse().ok()
}

/// What is there whatever the policies are.
fn base() -> String {
    format!(
        r#"
table inet {TABLE} {{
    map out4 {{ type ipv4_addr : verdict; }}
    map out6 {{ type ipv6_addr : verdict; }}
    map in4 {{ type ipv4_addr : verdict; }}
    map in6 {{ type ipv6_addr : verdict; }}
    # Machines that have a policy.
    set limited4 {{ type ipv4_addr; }}
    set limited6 {{ type ipv6_addr; }}
    set without_dns {{ type ipv6_addr; }}
    # Ends a connection that there is, and says of another one that it is not allowed.
    chain refused {{
        meta l4proto tcp reject with tcp reset
        reject with icmpx type admin-prohibited
    }}
    # Of no connection, so it is not known who opened it.
    chain unknown {{
        ip saddr @limited4 drop
        ip daddr @limited4 drop
        ip6 saddr @limited6 drop
        ip6 daddr @limited6 drop
    }}
    chain forwarded {{
        type filter hook forward priority filter - 10; policy accept;
        ct state {{ invalid, untracked }} jump unknown
        # Errors of connections, such as that a packet is too large.
        ct state related meta l4proto {{ icmp, ipv6-icmp }} accept
        ct original ip saddr vmap @out4
        ct original ip6 saddr vmap @out6
        # The proxy and health checks.
        ct original ip saddr {HOST_V4} accept
        ct original ip6 saddr {HOST_V6} accept
        ct original ip daddr vmap @in4
        ct original ip6 daddr vmap @in6
    }}
    chain to_host {{
        type filter hook input priority filter - 10; policy accept;
        # A machine is known by its own address only.
        ip6 daddr {DNS} ip6 saddr fe80::/10 drop
        ip6 daddr {DNS} ip6 saddr @without_dns jump refused
    }}
}}
"#
    )
}

/// Which end of a connection a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Out,
    In,
}

/// The script that puts policies in force.
fn change(generation: u64, machines: &[MachinePolicy]) -> String {
    let mut known: BTreeMap<(Direction, &[Allowance]), String> = BTreeMap::new();
    let mut script = String::new();
    let mut elements: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for machine in machines {
        let MachineAddresses { ipv4, ipv6, .. } = &machine.addresses;
        let directions = [
            (Direction::Out, &machine.egress, ["out4", "out6"]),
            (Direction::In, &machine.ingress, ["in4", "in6"]),
        ];
        for (direction, allowed, [map4, map6]) in directions {
            let Some(allowed) = allowed else { continue };
            let name = format!("p{generation}_{}", known.len());
            let chain = known.entry((direction, allowed)).or_insert_with(|| {
                script.push_str(&rules(&name, direction, allowed));
                name
            });
            elements.entry(map4).or_default().push(format!("{ipv4} : jump {chain}"));
            elements.entry(map6).or_default().push(format!("{ipv6} : jump {chain}"));
        }
        if machine.egress.is_some() || machine.ingress.is_some() {
            elements.entry("limited4").or_default().push(ipv4.to_string());
            elements.entry("limited6").or_default().push(ipv6.to_string());
        }
        if !machine.dns {
            elements.entry("without_dns").or_default().push(ipv6.to_string());
        }
    }
    let maps = ["out4", "out6", "in4", "in6"].map(|name| ("map", name));
    let sets = ["limited4", "limited6", "without_dns"].map(|name| ("set", name));
    for (kind, name) in maps.into_iter().chain(sets) {
        let _ = writeln!(script, "flush {kind} inet {TABLE} {name}");
        if let Some(elements) = elements.get(name) {
            let elements = elements.join(", ");
            let _ = writeln!(script, "add element inet {TABLE} {name} {{ {elements} }}");
        }
    }
    script
}

/// A chain that returns what is allowed.
fn rules(chain: &str, direction: Direction, allowed: &[Allowance]) -> String {
    let mut script = format!("add chain inet {TABLE} {chain}\n");
    for Allowance { peers, ports } in allowed {
        for peers in peer_matches(direction, peers.as_deref()) {
            for ports in port_matches(ports.as_deref()) {
                let _ = writeln!(script, "add rule inet {TABLE} {chain} {peers}{ports}return");
            }
        }
    }
    let _ = writeln!(script, "add rule inet {TABLE} {chain} jump refused");
    script
}

fn peer_matches(direction: Direction, peers: Option<&[IpNet]>) -> Vec<String> {
    let Some(peers) = peers else { return vec![String::new()] };
    let end = match direction {
        Direction::Out => "daddr",
        Direction::In => "saddr",
    };
    // Intervals of a set must not overlap.
    let v4: Vec<_> = peers.iter().filter_map(v4).collect();
    let v6: Vec<_> = peers.iter().filter_map(v6).collect();
    let lists = [("ip", list(Ipv4Net::aggregate(&v4))), ("ip6", list(Ipv6Net::aggregate(&v6)))];
    let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
    lists.map(|(family, list)| format!("ct original {family} {end} {{ {list} }} ")).collect()
}

/// IPv4 as IPv6 has it means the same.
fn v4(network: &IpNet) -> Option<Ipv4Net> {
    match network {
        IpNet::V4(network) => Some(*network),
        IpNet::V6(network) => {
            let length = network.prefix_len().checked_sub(96)?;
            Ipv4Net::new(network.addr().to_ipv4_mapped()?, length).ok()
        }
    }
}

fn v6(network: &IpNet) -> Option<Ipv6Net> {
    match network {
        IpNet::V6(other) if v4(network).is_none() => Some(*other),
        _ => None,
    }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn port_matches(ports: Option<&[AllowedPort]>) -> Vec<String> {
    let Some(ports) = ports else { return vec![String::new()] };
    let of = |protocol: &str, numbers: Vec<Option<u16>>| {
        if numbers.is_empty() {
            return None;
        }
        let all: Option<Vec<u16>> = numbers.into_iter().collect();
        Some(match all {
            None => format!("meta l4proto {protocol} "),
            Some(mut numbers) => {
                numbers.sort_unstable();
                numbers.dedup();
                let numbers = list(numbers);
                format!("meta l4proto {protocol} ct original proto-dst {{ {numbers} }} ")
            }
        })
    };
    let numbers = |wanted: fn(&AllowedPort) -> Option<Option<u16>>| {
        ports.iter().filter_map(wanted).collect::<Vec<_>>()
    };
    let tcp =
        numbers(|port| if let AllowedPort::Tcp(number) = port { Some(*number) } else { None });
    let udp =
        numbers(|port| if let AllowedPort::Udp(number) = port { Some(*number) } else { None });
    let icmp = ports.contains(&AllowedPort::Icmp);
    let icmp = icmp.then(|| "meta l4proto { icmp, ipv6-icmp } ".to_owned());
    [of("tcp", tcp), of("udp", udp), icmp].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(egress: Option<Vec<Allowance>>) -> MachinePolicy {
        MachinePolicy { addresses: crate::tests::machine(), egress, ingress: None, dns: true }
    }

    #[test]
    fn machines_that_may_do_the_same_share_a_chain() {
        let web = vec![Allowance { peers: None, ports: Some(vec![AllowedPort::Tcp(Some(443))]) }];
        let mut second = machine(Some(web.clone()));
        second.addresses.ipv4 = [10, 201, 3, 5].into();
        second.ingress = Some(web.clone());
        second.dns = false;
        let script = change(7, &[machine(Some(web)), second]);
        let wanted = [
            "add rule inet caddis-policies p7_0 meta l4proto tcp ct original proto-dst { 443 } \
             return",
            "add rule inet caddis-policies p7_0 jump refused",
            "add element inet caddis-policies out4 { 10.201.3.4 : jump p7_0, 10.201.3.5 : jump \
             p7_0 }",
            "add element inet caddis-policies in4 { 10.201.3.5 : jump p7_1 }",
            "add element inet caddis-policies without_dns { fdaa:0:5::7 }",
        ];
        for line in wanted {
            assert!(script.lines().any(|found| found == line), "{line}\nin\n{script}");
        }
        assert_eq!(script.matches("add chain").count(), 2);
    }

    #[test]
    fn peers_and_ports_are_joined_and_nobody_is_nobody() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let peers = [
            net("10.0.0.0/8"),
            net("10.1.0.0/16"),
            net("::ffff:192.0.2.1/128"),
            net("fdaa:0:5::/48"),
            net("fdaa:0:5:1::/64"),
        ];
        assert_eq!(
            peer_matches(Direction::Out, Some(&peers)),
            [
                "ct original ip daddr { 10.0.0.0/8, 192.0.2.1/32 } ",
                "ct original ip6 daddr { fdaa:0:5::/48 } "
            ]
        );
        assert_eq!(
            peer_matches(Direction::In, Some(&peers[..1])),
            ["ct original ip saddr { 10.0.0.0/8 } "]
        );
        assert!(peer_matches(Direction::In, Some(&[])).is_empty(), "an app without machines");
        let ports = [
            AllowedPort::Tcp(Some(80)),
            AllowedPort::Udp(Some(53)),
            AllowedPort::Udp(None),
            AllowedPort::Tcp(Some(22)),
            AllowedPort::Tcp(Some(80)),
            AllowedPort::Icmp,
        ];
        assert_eq!(
            port_matches(Some(&ports)),
            [
                "meta l4proto tcp ct original proto-dst { 22, 80 } ",
                "meta l4proto udp ",
                "meta l4proto { icmp, ipv6-icmp } "
            ]
        );
    }

    #[test]
    fn chains_of_policies_are_known_by_their_generation() {
        let listing = "table inet caddis-policies {\n\tchain refused {\n\t}\n\tchain p12_0 {\n\t\t\
                       jump refused\n\t}\n\tchain p7_10 {\n\t}\n}\n";
        assert_eq!(chains(listing), ["p12_0", "p7_10"]);
        assert_eq!(generation("p12_0"), Some(12));
    }
}
