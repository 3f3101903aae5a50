//! Where WireGuard peers find the server.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use super::ServeArguments;

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireGuardSettings {
    /// UDP address and port to listen on.
    pub listen: SocketAddr,
    /// Host and port that peers send to.
    pub endpoint: String,
}

impl WireGuardSettings {
    /// None where the server is not to listen.
    pub(super) fn new(set: &ServeArguments) -> Result<Option<Self>> {
        let Some(listen) = set.wireguard_listen else {
            if set.wireguard_endpoint.is_some() {
                bail!("--wireguard-endpoint needs --wireguard-listen");
            }
            return Ok(None);
        };
        let endpoint = match &set.wireguard_endpoint {
            Some(endpoint) => with_port(endpoint, listen.port())?,
            None if listen.ip().is_unspecified() => bail!(
                "--wireguard-listen {listen} needs --wireguard-endpoint HOST, the name or address \
                 of this host by which peers reach it"
            ),
            None => listen.to_string(),
        };
        Ok(Some(Self { listen, endpoint }))
    }
}

/// A host with its port: the given one unless it names another.
fn with_port(endpoint: &str, port: u16) -> Result<String> {
    if endpoint.parse::<SocketAddr>().is_ok() {
        return Ok(endpoint.to_owned());
    }
    if let Ok(address) = endpoint.parse() {
        return Ok(SocketAddr::new(address, port).to_string());
    }
    let (host, named) = match endpoint.rsplit_once(':') {
        Some((host, named)) => (host, named.parse().ok()),
        None => (endpoint, Some(port)),
    };
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    match named {
        Some(port) if port != 0 && !host.is_empty() && host.bytes().all(legal) => {
            Ok(format!("{host}:{port}"))
        }
        _ => bail!("invalid WireGuard endpoint '{endpoint}': use HOST or HOST:PORT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(listen: &str, endpoint: Option<&str>) -> Result<Option<String>> {
        let settings = WireGuardSettings::new(&ServeArguments {
            wireguard_listen: (!listen.is_empty()).then(|| listen.parse().unwrap()),
            wireguard_endpoint: endpoint.map(str::to_owned),
            ..ServeArguments::default()
        });
        settings.map(|settings| settings.map(|settings| settings.endpoint))
    }

    #[test]
    fn peers_are_told_a_host_and_a_port() {
        for (listen, given, expected) in [
            ("192.0.2.1:51820", None, "192.0.2.1:51820"),
            ("[::]:51820", Some("vpn.example.com"), "vpn.example.com:51820"),
            ("[::]:51820", Some("vpn.example.com:7"), "vpn.example.com:7"),
            ("[::]:51820", Some("2001:db8::1"), "[2001:db8::1]:51820"),
            ("[::]:51820", Some("[2001:db8::1]:7"), "[2001:db8::1]:7"),
            ("0.0.0.0:51820", Some("192.0.2.1"), "192.0.2.1:51820"),
        ] {
            assert_eq!(endpoint(listen, given).unwrap().unwrap(), expected);
        }
        assert_eq!(endpoint("", None).unwrap(), None);
        for (listen, given) in [
            ("[::]:51820", None),
            ("", Some("host")),
            ("[::]:51820", Some("")),
            ("[::]:51820", Some("a b")),
            ("[::]:51820", Some("host:")),
            ("[::]:51820", Some("host:0")),
            ("[::]:51820", Some("host:x\nPostUp = reboot")),
        ] {
            assert!(endpoint(listen, given).is_err(), "{given:?}");
        }
    }
}
