//! That egress addresses lead to this host: it takes the pools as its own by local routes, by which
//! it answers ARP, and answers neighbour solicitations for IPv6 addresses that machines have. The
//! routes stay when the server ends, for the machines that go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv6Net};
use rtnetlink::packet_route::{
    AddressFamily,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags},
    route::{RouteAttribute, RouteHeader, RouteProtocol, RouteType},
};

use crate::{
    NetworkError,
    installation::{Installation, LINK_PREFIX},
    links::Links,
    public::{self, LocalRoutes},
    uplink::{all_routes, destination},
};

/// Who has set the routes.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(203);

/// Routes of an installation to its pools.
pub(crate) fn routes(installation: &Installation) -> LocalRoutes {
    LocalRoutes { protocol: PROTOCOL, metric: public::metric(installation) }
}

/// Answers for these on the links whose network they are in. May be repeated.
pub(crate) async fn ensure(
    links: &Links,
    addresses: &BTreeSet<Ipv6Addr>,
) -> Result<(), NetworkError> {
    if addresses.is_empty() {
        return Ok(());
    }
    let (networks, proxied) = (connected(links).await?, proxied(links).await?);
    for address in addresses {
        let around = networks.iter().filter(|(network, _)| network.contains(address));
        let Some((_, index)) = around.max_by_key(|(network, _)| network.prefix_len()) else {
            continue;
        };
        turn_on(links, *index).await?;
        if proxied.contains(&(*index, *address)) {
            continue;
        }
        let mut request = links.handle().neighbours().add(*index, IpAddr::V6(*address)).replace();
        request.message_mut().header.flags = NeighbourFlags::Proxy;
        let failed = NetworkError::netlink(format!("answer for the address {address}"));
        request.execute().await.map_err(failed)?;
    }
    Ok(())
}

/// Answers for these no longer.
pub(crate) async fn end(links: &Links, addresses: &BTreeSet<Ipv6Addr>) -> Result<(), NetworkError> {
    if addresses.is_empty() {
        return Ok(());
    }
    for (index, address) in proxied(links).await? {
        if !addresses.contains(&address) {
            continue;
        }
        let mut message =
            links.handle().neighbours().add(index, IpAddr::V6(address)).message_mut().clone();
        message.header.flags = NeighbourFlags::Proxy;
        match links.handle().neighbours().del(message).execute().await {
            Err(error) if crate::links::errno(&error) != Some(libc::ENOENT) => {
                let attempted = format!("answer no longer for the address {address}");
                return Err(NetworkError::netlink(attempted)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes away all of an installation.
pub(crate) async fn clear(links: &Links, installation: &Installation) -> Result<(), NetworkError> {
    let routes = routes(installation);
    let pools = routes.list(links).await?;
    if pools.is_empty() {
        return Ok(());
    }
    let is_own = |address: &Ipv6Addr| pools.iter().any(|pool| pool.contains(&IpAddr::V6(*address)));
    let proxied = proxied(links).await?.into_iter().map(|(_, address)| address);
    end(links, &proxied.filter(is_own).collect()).await?;
    routes.clear(links, &[]).await
}

/// IPv6 networks that links are in.
async fn connected(links: &Links) -> Result<BTreeMap<Ipv6Net, u32>, NetworkError> {
    let mut found = BTreeMap::new();
    for message in all_routes(links).await? {
        let Some(IpNet::V6(network)) = destination(&message) else { continue };
        let is_direct = message.header.kind == RouteType::Unicast
            && message.header.table == RouteHeader::RT_TABLE_MAIN
            && !message.attributes.iter().any(|it| matches!(it, RouteAttribute::Gateway(_)));
        let link = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        if let Some(index) = link.filter(|_| is_direct && !network.addr().is_unicast_link_local()) {
            found.insert(network, index);
        }
    }
    Ok(found)
}

/// What is answered for, on which link.
async fn proxied(links: &Links) -> Result<BTreeSet<(u32, Ipv6Addr)>, NetworkError> {
    let list = |handle: &rtnetlink::Handle| {
        handle.neighbours().get().proxies().set_address_family(AddressFamily::Inet6).execute()
    };
    let found = links.dump(list).await;
    let found = found.map_err(NetworkError::netlink("list the addresses that are answered for"))?;
    let address = |message: &rtnetlink::packet_route::neighbour::NeighbourMessage| {
        message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(*address),
            _ => None,
        })
    };
    Ok(found
        .iter()
        .filter_map(|message| Some((message.header.ifindex, address(message)?)))
        .collect())
}

/// Has a link answer for others at once.
async fn turn_on(links: &Links, index: u32) -> Result<(), NetworkError> {
    let Some(name) = links.name(index).await? else { return Ok(()) };
    if name.starts_with(LINK_PREFIX) {
        return Ok(());
    }
    for (setting, value) in [
        (format!("/proc/sys/net/ipv6/conf/{name}/proxy_ndp"), "1"),
        // Else it waits for up to 0.8 seconds with each answer.
        (format!("/proc/sys/net/ipv6/neigh/{name}/proxy_delay"), "0"),
    ] {
        let failed = || NetworkError::io(format!("set {setting}"));
        if fs::read_to_string(&setting).map_err(failed())?.trim() != value {
            fs::write(&setting, value).map_err(failed())?;
        }
    }
    Ok(())
}
