//! What WireGuard peers need of the host.

use caddis_wireguard::open_socket;
use nix::ifaddrs::getifaddrs;

use super::{Check, services};
use crate::settings::Settings;

/// The port, and addresses of the host that are those of private networks; none where the server is
/// not to listen.
pub(super) fn check(settings: &Settings) -> Option<Check> {
    let name = "WireGuard";
    let wireguard = settings.wireguard.as_ref()?;
    if let Some((link, address)) = conflict() {
        return Some(Check::warning(
            name,
            format!("{link} has {address}, a range of private networks: machines may be hidden"),
            "end the other tunnel, or run caddis serve on another host",
        ));
    }
    let listen = wireguard.listen;
    if services::running(settings).is_some() {
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

/// A link of another than Caddis that has an address of `fdaa::/16`.
fn conflict() -> Option<(String, std::net::Ipv6Addr)> {
    let links = getifaddrs().ok()?;
    let mut addresses = links.filter_map(|link| {
        let address = link.address?.as_sockaddr_in6()?.ip();
        Some((link.interface_name, address))
    });
    addresses.find(|(link, address)| {
        address.segments()[0] == 0xfdaa && !link.starts_with(caddis_network::TAP_PREFIX)
    })
}
