//! How services of apps are reached.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Result, bail};
use ipnet::IpNet;

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
        let [http, https] = DEFAULT_PORTS.map(|port| (Ipv4Addr::LOCALHOST, port).into());
        Ok(Self {
            http_listen: set.http_listen.unwrap_or(http),
            https_listen: set.https_listen.unwrap_or(https),
            are_defaults: [set.http_listen.is_none(), set.https_listen.is_none()],
            domain: domain.to_owned(),
            public_addresses,
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
            info: None,
        }
    }
}

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
}
