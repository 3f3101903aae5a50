//! How services of apps are reached.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Result, bail};
use ipnet::{IpNet, Ipv6Net};
use nix::ifaddrs::getifaddrs;

use super::ServeArguments;

/// Where the shared listeners are unless settings say otherwise.
const DEFAULT_PORTS: [u16; 2] = [8080, 8443];

/// How services of apps are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficSettings {
    /// Stands for port 80 of all apps.
    pub http_listen: SocketAddr,
    /// Stands for port 443 of all apps.
    pub https_listen: SocketAddr,
    /// Which of both are there because nobody said otherwise: the server does without them where
    /// something else has the port.
    pub are_defaults: [bool; 2],
    /// Apps are `APP.DOMAIN`.
    pub domain: String,
    /// Prefixes of the addresses that apps may have as their own.
    pub public_addresses: Vec<IpNet>,
    /// Prefixes of egress addresses, which connections of machines come from.
    pub egress_addresses: Vec<IpNet>,
    /// Page for browsers while a machine starts.
    pub waking_page: Option<PathBuf>,
    /// Whether each request is logged.
    pub access_log: bool,
}

impl TrafficSettings {
    pub(super) fn new(set: &ServeArguments) -> Result<Self> {
        let domain = set.domain.as_deref().unwrap_or("localhost").trim_end_matches('.');
        if !is_domain(domain) {
            bail!("invalid domain '{domain}': use lowercase labels joined by dots, example.com");
        }
        let mut public_addresses: Vec<_> = set.public_addresses.iter().map(IpNet::trunc).collect();
        if public_addresses.is_empty() {
            public_addresses.push(caddis_gateway::default_public_addresses());
        }
        if let Some(prefix) = public_addresses.iter().find(|prefix| prefix.prefix_len() == 0) {
            bail!("invalid public addresses '{prefix}': name the addresses that are this host's");
        }
        let egress_addresses = egress(set, &public_addresses)?;
        let [http, https] = DEFAULT_PORTS.map(|port| (Ipv4Addr::LOCALHOST, port).into());
        Ok(Self {
            http_listen: set.http_listen.unwrap_or(http),
            https_listen: set.https_listen.unwrap_or(https),
            are_defaults: [set.http_listen.is_none(), set.https_listen.is_none()],
            domain: domain.to_owned(),
            public_addresses,
            egress_addresses,
            waking_page: set.waking_page.clone(),
            access_log: set.access_log.unwrap_or(false),
        })
    }

    /// The same for the gateway, which tells clients of it; `listeners` are the addresses of the
    /// shared listeners for HTTP and HTTPS as they are bound, and `api` is that of the API, which
    /// no app gets.
    pub fn of_gateway(
        &self,
        listeners: Option<(SocketAddr, SocketAddr)>,
        api: SocketAddr,
    ) -> caddis_gateway::TrafficSettings {
        caddis_gateway::TrafficSettings {
            listeners: listeners.map(|(http, https)| caddis_gateway::SharedListeners {
                domain: self.domain.clone(),
                http,
                https,
            }),
            public_addresses: self.public_addresses.clone(),
            reserved: vec![api.ip()],
            egress_addresses: self.egress_addresses.clone(),
            reserved_egress: of_links().map(|(ip, _)| ip).collect(),
            info: None,
        }
    }
}

/// Addresses of the host's links, with the names of these.
pub fn of_links() -> impl Iterator<Item = (IpAddr, String)> {
    getifaddrs().into_iter().flatten().filter_map(|link| {
        let address = link.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))?;
        Some((ip, link.interface_name))
    })
}

/// The egress addresses: such as can be seen outside, and nothing else of the server.
fn egress(set: &ServeArguments, public: &[IpNet]) -> Result<Vec<IpNet>> {
    let all: Vec<_> = set.egress_addresses.iter().map(IpNet::trunc).collect();
    let overlap = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    for (index, prefix) in all.iter().enumerate() {
        let ip = prefix.addr();
        let is_link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let is_own = matches!(ip, IpAddr::V6(ip) if PRIVATE_NETWORKS.contains(&ip));
        if prefix.prefix_len() == 0
            || ip.is_loopback()
            || ip.is_multicast()
            || is_link_local
            || is_own
        {
            bail!("invalid egress addresses '{prefix}': name addresses that lead to this host");
        }
        let machines = set.ipv4_pool.map(IpNet::V4);
        let others = public
            .iter()
            .map(|other| (other, "--public-addresses"))
            .chain(machines.iter().map(|other| (other, "--ipv4-pool")))
            .chain(all.iter().skip(index + 1).map(|other| (other, "--egress-addresses")));
        for (other, flag) in others {
            if overlap(prefix, other) {
                bail!("invalid egress addresses '{prefix}': {flag} has {other}");
            }
        }
    }
    Ok(all)
}

/// Where the private networks of machines are.
const PRIVATE_NETWORKS: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 0), 16);

/// Whether host names can end in it.
fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    // An app's name and a dot come before it.
    text.len() <= 189 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_settings_services_are_reached_on_this_host_alone() {
        let traffic = TrafficSettings::new(&ServeArguments::default()).unwrap();
        let gateway = traffic.of_gateway(
            Some((traffic.http_listen, traffic.https_listen)),
            "127.0.0.1:4280".parse().unwrap(),
        );
        let usual = caddis_gateway::TrafficSettings::default();
        assert_eq!(gateway.listeners, usual.listeners);
        assert_eq!(gateway.public_addresses, usual.public_addresses);
        let given = ServeArguments {
            domain: Some("example.com.".to_owned()),
            public_addresses: vec!["192.0.2.5/29".parse().unwrap()],
            ..ServeArguments::default()
        };
        let traffic = TrafficSettings::new(&given).unwrap();
        assert_eq!(traffic.domain, "example.com");
        assert_eq!(traffic.public_addresses, ["192.0.2.0/29".parse().unwrap()]);
    }

    #[test]
    fn egress_addresses_are_those_of_nothing_else() {
        let with = |egress: &[&str]| {
            let given = ServeArguments {
                public_addresses: vec!["192.0.2.0/29".parse().unwrap()],
                ipv4_pool: Some("10.9.0.0/16".parse().unwrap()),
                egress_addresses: egress.iter().map(|prefix| prefix.parse().unwrap()).collect(),
                ..ServeArguments::default()
            };
            TrafficSettings::new(&given).map(|traffic| traffic.egress_addresses)
        };
        assert_eq!(with(&[]).unwrap(), []);
        let all = ["192.0.2.8/29", "2001:db8::e:0/112", "10.8.0.1/32"];
        assert_eq!(with(&all).unwrap(), all.map(|prefix| prefix.parse().unwrap()));
        for (refused, why) in [
            (&["192.0.2.0/24"][..], "--public-addresses has 192.0.2.0/29"),
            (&["10.9.1.0/24"], "--ipv4-pool has 10.9.0.0/16"),
            (&["203.0.113.0/24", "203.0.113.7/32"], "--egress-addresses has 203.0.113.7/32"),
            (&["0.0.0.0/0"], "lead to this host"),
            (&["127.0.0.0/8"], "lead to this host"),
            (&["fdaa:1::/32"], "lead to this host"),
            (&["fe80::/64"], "lead to this host"),
        ] {
            let error = with(refused).unwrap_err().to_string();
            assert!(error.contains(why), "{refused:?}: {error}");
        }
    }
}
