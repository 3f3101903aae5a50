//! WireGuard peers in private networks: one TUN device in the namespace of machines, over which
//! packets of all peers come and go. Who moves them sees to it that a source is its peer's own and
//! that networks stay apart; the packet filter looks again.
//!
//! Peers have their addresses in the first /80 of each network, and the network's `::3` for the
//! name server, which the filter leads to [`crate::DNS`].

use std::{collections::BTreeSet, io, net::Ipv6Addr};

use ipnet::Ipv6Net;
use rtnetlink::{LinkUnspec, RouteMessageBuilder, packet_route::link::LinkAttribute};

use crate::{MTU, Network, NetworkError, links::errno, network::blocking};

/// Name of the device.
pub(crate) const DEVICE: &str = "peers";
/// What tells the name server's address of each network from others.
pub(crate) const DNS_MASK: Ipv6Addr =
    Ipv6Addr::new(0xffff, 0, 0, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff);

impl Network {
    /// Makes the device of peers with `create`, which is called with its name in the namespace of
    /// machines. It is gone, with its routes, once what was made is closed. What the kernel hands
    /// over there as one is at most so many packets.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn attach_peers<D: Send + 'static>(
        &self,
        most_segments: u32,
        create: impl FnOnce(&str) -> io::Result<D> + Send + 'static,
    ) -> Result<D, NetworkError> {
        let attempted = || format!("create the device {DEVICE} of WireGuard peers");
        let namespace = self.namespace.clone();
        let made = blocking(move || {
            let made = namespace.run(move || create(DEVICE)).and_then(|device| device);
            made.map_err(NetworkError::io(attempted()))
        });
        let device = made.await?;
        let index = self.peer_device().await?;
        let limit = LinkAttribute::GsoMaxSegs(most_segments);
        let up = LinkUnspec::new_with_index(index).mtu(MTU).append_extra_attribute(limit).up();
        let up = up.build();
        let raised = self.inner().handle().link().set(up).execute().await;
        raised.map_err(NetworkError::netlink(format!("bring up {DEVICE}")))?;
        Ok(device)
    }

    /// Has the device be the way to the peers of these networks, and of no others.
    ///
    /// # Errors
    /// When the host refuses; may be repeated then.
    pub async fn route_peers(&self, networks: BTreeSet<Ipv6Net>) -> Result<(), NetworkError> {
        let index = self.peer_device().await?;
        let mut routed = self.peer_networks.lock().await;
        for network in routed.difference(&networks).copied().collect::<Vec<_>>() {
            self.unroute(index, network).await?;
            routed.remove(&network);
        }
        for network in networks {
            if !routed.contains(&network) {
                self.route(index, network).await?;
                routed.insert(network);
            }
        }
        Ok(())
    }

    async fn peer_device(&self) -> Result<u32, NetworkError> {
        let missing = || io::Error::other("it is gone");
        let index = self.inner().index(DEVICE).await?;
        index.ok_or_else(missing).map_err(NetworkError::io(format!("find the device {DEVICE}")))
    }

    async fn route(&self, index: u32, network: Ipv6Net) -> Result<(), NetworkError> {
        let own = name_server(network);
        // Errors about packets of peers come from there.
        let given = self.inner().address(index, own.into(), 128).await;
        given.map_err(NetworkError::netlink(format!("give {own} to {DEVICE}")))?;
        let route = route(index, network);
        let added = self.inner().handle().route().add(route).replace().execute().await;
        added.map_err(NetworkError::netlink(format!("route the peers of {network}")))
    }

    async fn unroute(&self, index: u32, network: Ipv6Net) -> Result<(), NetworkError> {
        let failed = || NetworkError::netlink(format!("end the route to the peers of {network}"));
        match self.inner().handle().route().del(route(index, network)).execute().await {
            Err(error) if errno(&error) != Some(libc::ESRCH) => return Err(failed()(error)),
            _ => {}
        }
        let own = name_server(network).into();
        for message in self.inner().addresses(index, own).await.map_err(failed())? {
            self.inner().handle().address().del(message).execute().await.map_err(failed())?;
        }
        Ok(())
    }
}

/// The name server of a network as its peers see it.
fn name_server(network: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from_bits(network.network().to_bits() | 3)
}

fn route(index: u32, network: Ipv6Net) -> rtnetlink::packet_route::route::RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(network.network(), 80)
        .output_interface(index)
        .build()
}
