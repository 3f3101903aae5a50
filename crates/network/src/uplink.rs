//! The link between the host and the namespace of an installation: a pair of virtual cards with
//! fixed link addresses, permanent neighbours, and routes. No neighbour is ever asked for over it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
};

use ipnet::{IpNet, Ipv4Net};
use rtnetlink::{
    LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoVeth, LinkFlags},
        neighbour::NeighbourState,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType},
    },
};

use crate::{
    GATEWAY_V4, GATEWAY_V6, HOST_V4, HOST_V6, MTU, NetworkError, UPLINK,
    installation::LINK_PREFIX,
    links::{Links, is_tap},
};

/// Link address of the host's end, and of the other.
const HOST_MAC: [u8; 6] = [0x0e, 0xca, 0xdd, 0x15, 0x00, 0x02];
const NAMESPACE_MAC: [u8; 6] = [0x0e, 0xca, 0xdd, 0x15, 0x00, 0x03];
/// The host as its namespaces see it, in IPv6.
const HOST_LINK_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// Both ends of it.
pub(crate) struct Uplink<'a> {
    pub(crate) host: &'a Links,
    pub(crate) namespace: &'a Links,
    /// Descriptor of the namespace.
    pub(crate) descriptor: RawFd,
    /// Name of the host's end.
    pub(crate) name: &'a str,
    /// Routing table that has the host's own address only.
    pub(crate) table: u32,
}

/// What leads to the machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Routes(pub(crate) BTreeSet<IpNet>);

impl Uplink<'_> {
    /// Makes sure that both ends are there, up, and know each other. Index of the host's end, and
    /// whether something was missing.
    pub(crate) async fn ensure(&self) -> Result<(u32, bool), NetworkError> {
        let (host, namespace) =
            (is_up(self.host, self.name).await?, is_up(self.namespace, UPLINK).await?);
        if let (Some((index, true)), Some((inner, true))) = (host, namespace)
            && self.has_addresses(index).await?
        {
            // They went if it was down meanwhile.
            neighbours(self.host, index, [GATEWAY_V4.into(), GATEWAY_V6.into()], NAMESPACE_MAC)
                .await?;
            // A server that was killed here may not have come to it.
            self.lead_out(inner).await?;
            return Ok((index, false));
        }
        if host.is_none() || namespace.is_none() {
            // One without the other leads elsewhere.
            self.host.remove(self.name).await?;
            self.namespace.remove(UPLINK).await?;
            self.create().await?;
        }
        let missing = |what: &str| {
            let error = std::io::Error::other(format!("{what} is gone"));
            NetworkError::io("set up the link to the machines")(error)
        };
        let index = self.host.index(self.name).await?.ok_or_else(|| missing(self.name))?;
        // It needs no address that it makes itself. A host may have IPv6 turned off but for what
        // asks for it.
        for (setting, value) in [("addr_gen_mode", "1"), ("disable_ipv6", "0")] {
            let path = format!("/proc/sys/net/ipv6/conf/{}/{setting}", self.name);
            std::fs::write(&path, value).map_err(NetworkError::io(format!("set {path}")))?;
        }
        let failed = |what: &str| NetworkError::netlink(format!("{what} {}", self.name));
        self.host
            .address(index, HOST_V4.into(), 32)
            .await
            .map_err(failed("add the host's address to"))?;
        self.host
            .address(index, HOST_V6.into(), 128)
            .await
            .map_err(failed("add the host's IPv6 address to"))?;
        up(self.host, index).await?;
        neighbours(self.host, index, [GATEWAY_V4.into(), GATEWAY_V6.into()], NAMESPACE_MAC).await?;
        self.add_local(index).await?;

        let inner = self.namespace.index(UPLINK).await?.ok_or_else(|| missing(UPLINK))?;
        up(self.namespace, inner).await?;
        self.lead_out(inner).await?;
        Ok((index, true))
    }

    /// Has the namespace send to the host what is for outside. May be repeated.
    async fn lead_out(&self, inner: u32) -> Result<(), NetworkError> {
        neighbours(self.namespace, inner, [HOST_V4.into(), HOST_LINK_V6.into()], HOST_MAC).await?;
        let routes = self.namespace.handle().route();
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(HOST_V4)
            .output_interface(inner)
            .onlink()
            .build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(HOST_LINK_V6)
            .output_interface(inner)
            .build();
        for route in [v4, v6] {
            let added = routes.add(route).replace().execute().await;
            added.map_err(NetworkError::netlink("route the namespace of machines to the host"))?;
        }
        Ok(())
    }

    async fn create(&self) -> Result<(), NetworkError> {
        let peer = LinkUnspec::new_with_name(UPLINK).address(NAMESPACE_MAC.to_vec()).mtu(MTU);
        let peer = peer.setns_by_fd(self.descriptor).build();
        let pair = LinkVeth::new(self.name, UPLINK)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(HOST_MAC.to_vec())
            .mtu(MTU)
            .build();
        let made = self.host.handle().link().add(pair).execute().await;
        made.map_err(NetworkError::netlink(format!("create the link {}", self.name)))
    }

    async fn has_addresses(&self, index: u32) -> Result<bool, NetworkError> {
        for address in [IpAddr::from(HOST_V4), HOST_V6.into()] {
            let found = self.host.addresses(index, address).await;
            if found
                .map_err(NetworkError::netlink(format!("list the addresses of {}", self.name)))?
                .is_empty()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes sure that these lead to the namespace; whether one was missing.
    pub(crate) async fn ensure_routes(
        &self,
        index: u32,
        routes: &Routes,
    ) -> Result<bool, NetworkError> {
        let mut found = BTreeSet::new();
        let mut local = 0;
        for message in all_routes(self.host).await? {
            if !message.attributes.contains(&RouteAttribute::Oif(index)) {
                continue;
            }
            if message.header.table == RouteHeader::RT_TABLE_MAIN {
                found.extend(destination(&message));
            }
            local += u32::from(message.attributes.contains(&RouteAttribute::Table(self.table)));
        }
        let mut changed = false;
        for network in routes.0.difference(&found) {
            self.add_route(index, *network).await?;
            changed = true;
        }
        if local < 2 {
            self.add_local(index).await?;
            changed = true;
        }
        Ok(changed)
    }

    /// The host's own address, alone in a table.
    async fn add_local(&self, index: u32) -> Result<(), NetworkError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(HOST_V4, 32)
            .scope(RouteScope::Host);
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(HOST_V6, 128);
        let v4 = v4.kind(RouteType::Local).table_id(self.table).output_interface(index).build();
        let v6 = v6.kind(RouteType::Local).table_id(self.table).output_interface(index).build();
        self.add(v4, true).await?;
        self.add(v6, true).await
    }

    /// Routes a network to the namespace. One that leads elsewhere is left alone, and an error.
    pub(crate) async fn add_route(&self, index: u32, network: IpNet) -> Result<(), NetworkError> {
        self.add(route(index, network), false).await
    }

    async fn add(&self, route: RouteMessage, replace: bool) -> Result<(), NetworkError> {
        let shown = destination(&route).map(|network| network.to_string()).unwrap_or_default();
        let request = self.host.handle().route().add(route);
        let request = if replace { request.replace() } else { request };
        let added = request.execute().await;
        added.map_err(NetworkError::netlink(format!("route {shown} to {}", self.name)))
    }

    /// Takes a route away; none is no error.
    pub(crate) async fn remove_route(
        &self,
        index: u32,
        network: IpNet,
    ) -> Result<(), NetworkError> {
        match self.host.handle().route().del(route(index, network)).execute().await {
            Err(error) if crate::links::errno(&error) != Some(libc::ESRCH) => Err(
                NetworkError::netlink(format!("remove the route to {network} from {}", self.name))(
                    error,
                ),
            ),
            _ => Ok(()),
        }
    }
}

/// The link over which the host sends to a part of this pool, or to all of it, other than `own`. A
/// wider route, such as one to a site, does not count, unless it is the pool of another
/// installation; nor do the routes to taps that an earlier release had in the host's network.
pub(crate) async fn conflict(
    host: &Links,
    pool: Ipv4Net,
    own: Option<u32>,
) -> Result<Option<String>, NetworkError> {
    for message in all_routes(host).await? {
        let Some(IpNet::V4(network)) = destination(&message) else { continue };
        let (within, around) = (pool.contains(&network), network.contains(&pool));
        if message.header.kind != RouteType::Unicast || !(within || around) {
            continue;
        }
        let link = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let name = match link {
            Some(index) if Some(index) == own => continue,
            Some(index) => host.name(index).await?,
            None => None,
        };
        let name = name.unwrap_or_else(|| "another route".to_owned());
        if is_tap(&name) {
            continue;
        }
        if within || name.starts_with(LINK_PREFIX) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn route(index: u32, network: IpNet) -> RouteMessage {
    match network {
        IpNet::V4(network) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.network(), network.prefix_len())
            .gateway(GATEWAY_V4)
            .onlink()
            .pref_source(HOST_V4)
            .output_interface(index)
            .build(),
        IpNet::V6(network) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(network.network(), network.prefix_len())
            .gateway(GATEWAY_V6)
            .pref_source(HOST_V6)
            .output_interface(index)
            .build(),
    }
}

pub(crate) async fn all_routes(links: &Links) -> Result<Vec<RouteMessage>, NetworkError> {
    let mut all = Vec::new();
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for family in [v4, v6] {
        let found = links.dump(|handle| handle.route().get(family).execute()).await;
        all.extend(found.map_err(NetworkError::netlink("list the routes"))?);
    }
    Ok(all)
}

pub(crate) fn destination(message: &RouteMessage) -> Option<IpNet> {
    message.attributes.iter().find_map(|attribute| {
        let address = match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => IpAddr::from(*address),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => (*address).into(),
            _ => return None,
        };
        IpNet::new(address, message.header.destination_prefix_length).ok()
    })
}

/// Index of a link, and whether it is up.
async fn is_up(links: &Links, name: &str) -> Result<Option<(u32, bool)>, NetworkError> {
    let found = links.find(name).await?;
    Ok(found.map(|link| (link.header.index, link.header.flags.contains(LinkFlags::Up))))
}

async fn up(links: &Links, index: u32) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_index(index).up().build();
    let outcome = links.handle().link().set(message).execute().await;
    outcome.map_err(NetworkError::netlink("bring up the link to the machines"))
}

async fn neighbours(
    links: &Links,
    index: u32,
    addresses: [IpAddr; 2],
    mac: [u8; 6],
) -> Result<(), NetworkError> {
    for address in addresses {
        let request =
            links.handle().neighbours().add(index, address).link_layer_address(&mac).replace();
        let outcome = request.state(NeighbourState::Permanent).execute().await;
        outcome.map_err(NetworkError::netlink("set a neighbour on the link to the machines"))?;
    }
    Ok(())
}

/// Names of the links of all installations.
pub(crate) async fn names(host: &Links) -> Result<Vec<String>, NetworkError> {
    let links = host.dump(|handle| handle.link().get().execute()).await;
    let links = links.map_err(NetworkError::netlink("list the interfaces"))?;
    let names =
        links.into_iter().flat_map(|link| link.attributes).filter_map(crate::links::name_of);
    Ok(names.filter(|name| name.starts_with(LINK_PREFIX)).collect())
}
