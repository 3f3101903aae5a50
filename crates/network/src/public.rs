//! Addresses that apps have as their own: the host takes what is sent to them as its own, without
//! their being set on a link, and answers for them where they belong to a link's network.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteMessage, RouteScope, RouteType},
};

use crate::{NetworkError, links::Links};

/// Metric of the routes. Those that the kernel makes for addresses of links have 0: one of ours to
/// the same address stands beside it, where it would take its place otherwise, and the host would
/// lose the address with the server's end.
const METRIC: u32 = 1024;

/// The host's routes to addresses of apps.
pub struct PublicAddresses {
    links: Links,
    prefixes: Vec<IpNet>,
}

impl PublicAddresses {
    /// Makes the host take what is sent to these prefixes. Those of loopback are its own anyway.
    /// May be repeated.
    ///
    /// # Errors
    /// When a route can't be set.
    pub async fn take(prefixes: &[IpNet]) -> Result<Self, NetworkError> {
        let prefixes: Vec<_> =
            prefixes.iter().copied().filter(|prefix| !prefix.addr().is_loopback()).collect();
        let links = Links::open()?;
        if !prefixes.is_empty() {
            let loopback = loopback(&links).await?;
            for prefix in &prefixes {
                let added = links.handle().route().add(route(loopback, *prefix)).replace();
                let failed = NetworkError::netlink(format!("take the addresses {prefix}"));
                added.execute().await.map_err(failed)?;
            }
        }
        Ok(Self { links, prefixes })
    }

    /// Takes the routes away again.
    pub async fn release(self) {
        let Ok(loopback) = loopback(&self.links).await else { return };
        for prefix in self.prefixes {
            let removed = self.links.handle().route().del(route(loopback, prefix)).execute().await;
            if let Err(error) = removed {
                tracing::warn!(%prefix, %error, "can't give up the addresses of apps");
            }
        }
    }
}

async fn loopback(links: &Links) -> Result<u32, NetworkError> {
    // It has this index in every namespace.
    const INDEX: u32 = 1;
    Ok(links.find("lo").await?.map_or(INDEX, |link| link.header.index))
}

fn route(loopback: u32, prefix: IpNet) -> RouteMessage {
    let mut route = match prefix {
        IpNet::V4(prefix) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(prefix.network(), prefix.prefix_len())
            .output_interface(loopback)
            .priority(METRIC)
            .build(),
        IpNet::V6(prefix) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(prefix.network(), prefix.prefix_len())
            .output_interface(loopback)
            .priority(METRIC)
            .build(),
    };
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route.header.table = libc::RT_TABLE_LOCAL;
    route
}
