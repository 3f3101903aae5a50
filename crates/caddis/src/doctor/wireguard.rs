//! What WireGuard peers need of the host.

use std::net::IpAddr;

use caddis_wireguard::open_socket;

use super::{Check, server::Server};
use crate::settings::{Settings, of_links};

/// The port, and addresses of the host that are those of private networks; none where the server is
/// not to listen.
pub(super) fn check(settings: &Settings, server: Option<&Server>) -> Option<Check> {
    check_on(settings, server, of_links())
}

/// The same on a host whose links have these addresses.
fn check_on(
    settings: &Settings,
    server: Option<&Server>,
    mut links: impl Iterator<Item = (IpAddr, String)>,
) -> Option<Check> {
    let name = "WireGuard";
    let wireguard = settings.wireguard.as_ref()?;
    if let Some((address, link)) = links.find(|(ip, link)| is_in_the_way(*ip, link)) {
        return Some(Check::warning(
            name,
            format!("{link} has {address}, a range of private networks: machines may be hidden"),
            "end the other tunnel, or run caddis serve on another host",
        ));
    }
    let listen = wireguard.listen;
    if server.is_some_and(Server::runs) {
        return Some(Check::ok(name, format!("the server has UDP {listen}")));
    }
    Some(match open_socket(listen) {
        Ok(_) => Check::ok(name, format!("UDP {listen} is free; let it in at your firewall")),
        Err(error) => {
            let reason = std::error::Error::source(&error).map(ToString::to_string);
            let reason = reason.unwrap_or_else(|| error.to_string());
            Check::failed(
                name,
                format!("UDP {listen}: {reason}; the server does not start"),
                "free it, or choose another with --wireguard-listen",
            )
        }
    })
}

/// Whether a link of another than Caddis has an address of `fdaa::/16`.
fn is_in_the_way(address: IpAddr, link: &str) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] == 0xfdaa)
        && !link.starts_with(caddis_network::TAP_PREFIX)
}

#[cfg(test)]
mod tests {
    use std::{iter, net::UdpSocket};

    use caddis_client::ClientError;

    use super::{
        super::{Status, server::tests::answering},
        *,
    };
    use crate::settings::ServeArguments;

    fn settings(data_dir: &std::path::Path, listen: &UdpSocket) -> Settings {
        let arguments = ServeArguments {
            data_dir: Some(data_dir.to_owned()),
            wireguard_listen: Some(listen.local_addr().unwrap()),
            ..ServeArguments::default()
        };
        arguments.resolve().unwrap()
    }

    #[test]
    fn a_port_that_something_has_fails_and_that_of_the_server_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let settings = settings(directory.path(), &taken);
        let status = |server: Option<&Server>| check_on(&settings, server, iter::empty()).unwrap();
        let found = status(None);
        assert_eq!(found.status, Status::Failed);
        assert!(found.message.contains("the server does not start"), "{}", found.message);
        let server = answering(&[], &[]);
        assert_eq!(status(Some(&server)).status, Status::Ok);
        // One that was killed has no port any more: another program has it.
        let (url, reason) = ("http://x".to_owned(), "connection refused".to_owned());
        let status_of_none = Err(ClientError::Unreachable { url, reason });
        let killed = Server { status: status_of_none, ..server };
        assert_eq!(status(Some(&killed)).status, Status::Failed);
        drop(taken);
        assert_eq!(status(None).status, Status::Ok);
        let without = Settings { wireguard: None, ..settings.clone() };
        assert!(check_on(&without, None, iter::empty()).is_none());
    }

    #[test]
    fn another_tunnel_with_addresses_of_private_networks_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let settings = settings(directory.path(), &free);
        drop(free);
        let of = |address: &str, link: &str| {
            let links = [(address.parse().unwrap(), link.to_owned())];
            check_on(&settings, None, links.into_iter()).unwrap()
        };
        let found = of("fdaa:0:5::1", "wg0");
        assert_eq!(found.status, Status::Warning);
        assert!(found.message.contains("wg0 has fdaa:0:5::1"), "{}", found.message);
        for (address, link) in [("fdaa::2", "caddis-0"), ("fd00::1", "wg0"), ("10.0.0.1", "eth0")] {
            assert_eq!(of(address, link).status, Status::Ok, "{address} of {link}");
        }
    }
}
