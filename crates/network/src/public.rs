//! Addresses that apps have as their own: the host takes what is sent to them as its own, without
//! their being set on a link, and answers for them where they belong to a link's network.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use crate::{
    Network, NetworkError,
    installation::Installation,
    links::Links,
    uplink::{all_routes, destination},
};

/// Metric of the routes of the first installation; others have those that follow. Routes that the
/// kernel makes for addresses of links have 0: one of ours to the same address stands beside it,
/// where it would take its place otherwise, and the host would lose the address with the server's
/// end.
pub(crate) const FIRST_METRIC: u32 = 1024;
/// Who has set the routes, by which they are told from a user's. No routing daemon has it.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(202);

/// The host's routes to addresses of apps.
pub struct PublicAddresses {
    links: Links,
    routes: LocalRoutes,
}

/// Routes by which the host takes prefixes as its own, told from others by what they have in
/// common.
#[derive(Debug, Clone)]
pub(crate) struct LocalRoutes {
    pub(crate) protocol: RouteProtocol,
    pub(crate) metric: u32,
}

impl PublicAddresses {
    /// Those of an installation; nothing is changed yet.
    pub fn of(network: &Network) -> Self {
        let side = &network.side;
        Self { links: side.links.clone(), routes: routes(&side.installation) }
    }

    /// Makes the host take what is sent to these prefixes, and no longer what an earlier server of
    /// the installation had. Those of loopback are its own anyway. They stay when this process
    /// ends, until [`Self::release`] or [`Network::clean`].
    ///
    /// # Errors
    /// When a route can't be set.
    pub async fn take(&self, prefixes: &[IpNet]) -> Result<(), NetworkError> {
        self.routes.take(&self.links, prefixes).await
    }

    /// Takes the routes away again.
    pub async fn release(self) {
        if let Err(error) = self.routes.clear(&self.links, &[]).await {
            tracing::warn!(%error, "can't give up the addresses of apps");
        }
    }
}

/// Routes of an installation to addresses of apps.
pub(crate) fn routes(installation: &Installation) -> LocalRoutes {
    LocalRoutes { protocol: PROTOCOL, metric: metric(installation) }
}

impl LocalRoutes {
    /// Has routes to these prefixes, and to no others.
    pub(crate) async fn take(&self, links: &Links, prefixes: &[IpNet]) -> Result<(), NetworkError> {
        let prefixes: Vec<_> =
            prefixes.iter().copied().filter(|prefix| !prefix.addr().is_loopback()).collect();
        self.clear(links, &prefixes).await?;
        if prefixes.is_empty() {
            return Ok(());
        }
        let loopback = loopback(links).await?;
        for prefix in prefixes {
            let route = self.route(loopback, prefix);
            let added = links.handle().route().add(route).replace().execute().await;
            added.map_err(NetworkError::netlink(format!("take the addresses {prefix}")))?;
        }
        Ok(())
    }

    /// Which there are.
    pub(crate) async fn list(&self, links: &Links) -> Result<Vec<IpNet>, NetworkError> {
        let is_own = |route: &RouteMessage| {
            route.header.protocol == self.protocol
                && route.header.kind == RouteType::Local
                && route.attributes.contains(&RouteAttribute::Priority(self.metric))
        };
        let routes = all_routes(links).await?;
        Ok(routes.iter().filter(|route| is_own(route)).filter_map(destination).collect())
    }

    /// Takes away all but these.
    pub(crate) async fn clear(&self, links: &Links, but: &[IpNet]) -> Result<(), NetworkError> {
        let own = self.list(links).await?;
        if own.is_empty() {
            return Ok(());
        }
        let loopback = loopback(links).await?;
        for prefix in own.into_iter().filter(|prefix| !but.contains(prefix)) {
            let route = self.route(loopback, prefix);
            let removed = links.handle().route().del(route).execute().await;
            removed.map_err(NetworkError::netlink(format!("give up the addresses {prefix}")))?;
        }
        Ok(())
    }

    fn route(&self, loopback: u32, prefix: IpNet) -> RouteMessage {
        let mut route = local_route(loopback, prefix, self.metric);
        route.header.protocol = self.protocol;
        route
    }
}

pub(crate) fn metric(installation: &Installation) -> u32 {
    FIRST_METRIC + installation.number
}

pub(crate) async fn loopback(links: &Links) -> Result<u32, NetworkError> {
    // It has this index in every namespace.
    const INDEX: u32 = 1;
    Ok(links.find("lo").await?.map_or(INDEX, |link| link.header.index))
}

/// A route by which a host takes what is sent to a prefix as its own.
pub(crate) fn local_route(loopback: u32, prefix: IpNet, metric: u32) -> RouteMessage {
    let mut route = match prefix {
        IpNet::V4(prefix) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(prefix.network(), prefix.prefix_len())
            .output_interface(loopback)
            .priority(metric)
            .build(),
        IpNet::V6(prefix) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(prefix.network(), prefix.prefix_len())
            .output_interface(loopback)
            .priority(metric)
            .build(),
    };
    route.header.protocol = PROTOCOL;
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route.header.table = libc::RT_TABLE_LOCAL;
    route
}
