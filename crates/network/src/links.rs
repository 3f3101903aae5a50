//! Links, addresses, routes and neighbours, over rtnetlink.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
    sync::Arc,
};

use futures::{TryStream, TryStreamExt as _};
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{LinkAttribute, LinkMessage},
        neighbour::NeighbourState,
        route::RouteScope,
    },
};
use tokio::sync::Mutex;

use crate::{
    DNS, GATEWAY_V4, GATEWAY_V6, MTU, MachineAddresses, NetworkError, TAP_PREFIX,
    address::parse_mac, namespace::Namespace,
};

/// A connection to the kernel's routing.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    handle: Handle,
    /// Held while a list is read: the kernel refuses a second one at the same time.
    lists: Arc<Mutex<()>>,
}

impl Links {
    /// Opens it in the network namespace of the calling thread, which must be in the context of a
    /// runtime.
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(NetworkError::io("open a netlink socket"))?;
        tokio::spawn(connection);
        Ok(Self { handle, lists: Arc::default() })
    }

    /// One over which nothing can be asked.
    #[cfg(test)]
    pub(crate) fn unserved() -> Self {
        Self { handle: rtnetlink::new_connection().unwrap().1, lists: Arc::default() }
    }

    /// Opens it in another namespace. Blocks; to be called in the context of a runtime.
    pub(crate) fn open_in(namespace: &Namespace) -> Result<Self, NetworkError> {
        let runtime = tokio::runtime::Handle::current();
        let opened = namespace.run(move || {
            let _context = runtime.enter();
            Self::open()
        });
        opened.map_err(NetworkError::io("open a netlink socket"))?
    }

    /// All that a request lists.
    pub(crate) async fn dump<T, S>(
        &self,
        request: impl FnOnce(&Handle) -> S,
    ) -> Result<Vec<T>, rtnetlink::Error>
    where
        S: TryStream<Ok = T, Error = rtnetlink::Error>,
    {
        let _turn = self.lists.lock().await;
        request(&self.handle).try_collect().await
    }

    /// Where a link has this address.
    pub(crate) async fn addresses(
        &self,
        index: u32,
        address: IpAddr,
    ) -> Result<Vec<AddressMessage>, rtnetlink::Error> {
        let of = |handle: &Handle| {
            handle.address().get().set_link_index_filter(index).set_address_filter(address)
        };
        self.dump(|handle| of(handle).execute()).await
    }

    /// Number of the link of this name; `None` when there is none.
    pub(crate) async fn index(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        Ok(self.find(name).await?.map(|link| link.header.index))
    }

    /// The link of this name.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => {
                Err(NetworkError::netlink(format!("look for the interface {name}"))(error))
            }
        }
    }

    /// The name of a link.
    pub(crate) async fn name(&self, index: u32) -> Result<Option<String>, NetworkError> {
        let link = match self.handle.link().get().match_index(index).execute().try_next().await {
            Ok(link) => link,
            Err(error) if errno(&error) == Some(libc::ENODEV) => None,
            Err(error) => {
                return Err(NetworkError::netlink(format!("look for the interface {index}"))(
                    error,
                ));
            }
        };
        Ok(link.and_then(|link| link.attributes.into_iter().find_map(name_of)))
    }

    /// Brings a tap up and routes a machine's addresses to it. May be repeated.
    pub(crate) async fn connect(
        &self,
        tap: &str,
        index: u32,
        machine: &MachineAddresses,
    ) -> Result<(), NetworkError> {
        let mac = parse_mac(&machine.mac)?;
        let failed = |what: &str| NetworkError::netlink(format!("{what} {tap}"));
        let up = LinkUnspec::new_with_index(index).mtu(MTU).up().build();
        self.handle.link().set(up).execute().await.map_err(failed("bring up"))?;
        self.address(index, GATEWAY_V4.into(), 32)
            .await
            .map_err(failed("give the IPv4 gateway's address to"))?;
        self.address(index, GATEWAY_V6.into(), 64)
            .await
            .map_err(failed("give the IPv6 gateway's address to"))?;
        for address in [IpAddr::from(machine.ipv4), machine.ipv6.into()] {
            let neighbour =
                self.handle.neighbours().add(index, address).link_layer_address(&mac).replace();
            let neighbour = neighbour.state(NeighbourState::Permanent).execute().await;
            neighbour.map_err(failed("set a neighbour on"))?;
        }
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(machine.ipv4, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(failed("route IPv4 to"))?;
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(machine.ipv6, 128)
            .output_interface(index)
            .build();
        self.handle.route().add(route).replace().execute().await.map_err(failed("route IPv6 to"))
    }

    /// Gives an address to a link, if it has it not.
    pub(crate) async fn address(
        &self,
        index: u32,
        address: IpAddr,
        length: u8,
    ) -> Result<(), rtnetlink::Error> {
        let mut request = self.handle.address().add(index, address, length).replace();
        if address.is_ipv6() {
            // Nobody else on the link has it: no need to ask.
            let flags = AddressFlags::Nodad;
            request.message_mut().attributes.push(AddressAttribute::Flags(flags));
        }
        request.execute().await
    }

    /// Removes a tap that outlived its VM; none is no error.
    pub(crate) async fn remove(&self, tap: &str) -> Result<(), NetworkError> {
        let Some(index) = self.index(tap).await? else { return Ok(()) };
        match self.handle.link().del(index).execute().await {
            Err(error) if errno(&error) != Some(libc::ENODEV) => {
                Err(NetworkError::netlink(format!("remove the interface {tap}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Names of all taps of VMs.
    pub(crate) async fn taps(&self) -> Result<Vec<String>, NetworkError> {
        let links = self.dump(|handle| handle.link().get().execute()).await;
        let links = links.map_err(NetworkError::netlink("list the interfaces"))?;
        let names = links.into_iter().flat_map(|link| link.attributes).filter_map(name_of);
        Ok(names.filter(|name| is_tap(name)).collect())
    }

    /// Gives the DNS address to the loopback interface.
    pub(crate) async fn add_dns(&self) -> Result<(), NetworkError> {
        let loopback = self.loopback().await?;
        let up = LinkUnspec::new_with_index(loopback).up().build();
        self.handle.link().set(up).execute().await.map_err(NetworkError::netlink("bring up lo"))?;
        self.address(loopback, DNS.into(), 128)
            .await
            .map_err(NetworkError::netlink(format!("give {DNS} to lo")))
    }

    /// Takes it away; succeeds when it isn't there.
    pub(crate) async fn remove_dns(&self) -> Result<(), NetworkError> {
        let loopback = self.loopback().await?;
        let failed = || NetworkError::netlink(format!("take {DNS} from lo"));
        for message in self.addresses(loopback, DNS.into()).await.map_err(failed())? {
            self.handle.address().del(message).execute().await.map_err(failed())?;
        }
        Ok(())
    }

    async fn loopback(&self) -> Result<u32, NetworkError> {
        let missing = || std::io::Error::other("this network namespace has no lo");
        self.index("lo")
            .await?
            .ok_or_else(missing)
            .map_err(NetworkError::io("find the loopback interface"))
    }

    /// Moves a link to another network namespace, where it is down and has no addresses.
    pub(crate) async fn move_to(&self, link: u32, namespace: RawFd) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link).setns_by_fd(namespace).build();
        let moved = self.handle.link().set(message).execute().await;
        moved.map_err(NetworkError::netlink("move a tap to the namespace of its installation"))
    }

    /// The connection itself.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

pub(crate) fn name_of(attribute: LinkAttribute) -> Option<String> {
    match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    }
}

/// `caddis` and a number.
pub(crate) fn is_tap(name: &str) -> bool {
    name.strip_prefix(TAP_PREFIX)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

pub(crate) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}
