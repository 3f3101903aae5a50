//! Addresses of services within private networks ("Flycast" of the reference): `0:1::/80` of each
//! network. The namespace takes what is sent there as its own (AnyIP), and the packet filter lets
//! in TCP of the network's machines. Who answers there opens its sockets with
//! [`Network::open_inside`].

use std::{
    io,
    net::{Ipv6Addr, TcpListener},
};

use ipnet::{IpNet, Ipv6Net};

use crate::{
    Network, NetworkError,
    links::{Links, errno},
    public::{self, FIRST_METRIC},
};

/// What tells these addresses from others: the bits that count, and their value.
pub(crate) const MASK: Ipv6Addr = Ipv6Addr::new(0xffff, 0, 0, 0xffff, 0xffff, 0, 0, 0);
/// See [`MASK`].
pub(crate) const VALUE: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 1, 0, 0, 0);

impl Network {
    /// Calls `open` in the namespace of machines. A listener that it binds to an address of
    /// services is reached by the machines of that address's network and by nobody else, whether
    /// there are any now or not: it needs `IPV6_FREEBIND`. For short work only. Blocks.
    ///
    /// # Errors
    /// Those of `open`, and when the thread of the namespace has ended.
    pub fn open_inside(
        &self,
        open: impl FnOnce() -> io::Result<TcpListener> + Send + 'static,
    ) -> io::Result<TcpListener> {
        self.namespace.run(open)?
    }
}

/// Where the addresses of services are in a network.
fn prefix(network: Ipv6Net) -> IpNet {
    let first = network.network().to_bits() | VALUE.to_bits() & !(0xffff << 112);
    // Its length is one that a prefix can have.
    Ipv6Net::new_assert(Ipv6Addr::from_bits(first), 80).into()
}

/// Makes the namespace take what is sent to services in a network. May be repeated.
pub(crate) async fn take(links: &Links, network: Ipv6Net) -> Result<(), NetworkError> {
    let prefix = prefix(network);
    let route = public::local_route(public::loopback(links).await?, prefix, FIRST_METRIC);
    let added = links.handle().route().add(route).replace().execute().await;
    added.map_err(NetworkError::netlink(format!("take the addresses {prefix} of services")))
}

/// Ends that; nothing to end is no error.
pub(crate) async fn release(links: &Links, network: Ipv6Net) -> Result<(), NetworkError> {
    let prefix = prefix(network);
    let route = public::local_route(public::loopback(links).await?, prefix, FIRST_METRIC);
    match links.handle().route().del(route).execute().await {
        Err(error) if errno(&error) != Some(libc::ESRCH) => {
            let attempted = format!("give up the addresses {prefix} of services");
            Err(NetworkError::netlink(attempted)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_a_prefix_of_each_network_that_the_filter_knows() {
        let prefix = prefix("fdaa:2:45b::/48".parse().unwrap());
        assert_eq!(prefix.to_string(), "fdaa:2:45b:0:1::/80");
        let IpNet::V6(prefix) = prefix else { panic!() };
        assert_eq!(prefix.broadcast() & MASK, VALUE);
    }
}
