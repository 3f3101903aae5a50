//! What an installation has on its host: one link, rules, routes, a small table of the packet
//! filter, forwarding. All of it can be looked at and mended at any time.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ipnet::{IpNet, Ipv4Net};
use parking_lot::Mutex;

use crate::{
    NetworkError, PRIVATE_V6, answering, conntrack,
    egress::{self, Assignments},
    forwarding,
    host_filter::{self, Content},
    installation::Installation,
    links::Links,
    namespace::Namespace,
    netlink::Socket,
    rules,
    uplink::{Routes, Uplink},
};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct HostSide {
    pub(crate) installation: Installation,
    /// The host's network, and that of the namespace.
    pub(crate) links: Links,
    pub(crate) inner: Links,
    pub(crate) namespace: Arc<Namespace>,
    /// Private ranges that VMs may reach all the same.
    pub(crate) allowed: Vec<IpNet>,
    /// What forwarding was before.
    pub(crate) forwarding: PathBuf,
    /// Prefixes of the egress addresses that machines may have.
    pub(crate) pools: Vec<IpNet>,
    /// Beside which egress addresses are noted.
    pub(crate) state_file: PathBuf,
    filter: Mutex<Filter>,
    filter_port: u32,
    /// Holds the table that has what is not translated dropped.
    _untranslated: Option<Socket>,
    index: AtomicU32,
    routes: tokio::sync::Mutex<Routes>,
}

/// The host's table, and who has which egress address in it.
#[derive(Debug)]
struct Filter {
    socket: Socket,
    egress: Assignments,
}

/// What the host is told of an installation.
pub(crate) struct HostConfig {
    /// Addresses of machines.
    pub(crate) pool: Ipv4Net,
    pub(crate) allowed: Vec<IpNet>,
    pub(crate) pools: Vec<IpNet>,
    pub(crate) forwarding: PathBuf,
    pub(crate) state_file: PathBuf,
}

impl HostSide {
    /// With the egress addresses that machines had when the last server ended. Blocks.
    pub(crate) fn new(
        installation: Installation,
        links: Links,
        inner: Links,
        namespace: Arc<Namespace>,
        config: HostConfig,
    ) -> Result<Self, NetworkError> {
        let HostConfig { pool, allowed, pools, forwarding, state_file } = config;
        let link = installation.link();
        let socket =
            Socket::open().map_err(NetworkError::io("open a socket of the packet filter"))?;
        Ok(Self {
            installation,
            links,
            inner,
            namespace,
            allowed,
            pools,
            forwarding,
            filter_port: socket.port(),
            _untranslated: host_filter::untranslated::refuse(
                &link,
                &[pool.into(), PRIVATE_V6.into()],
            ),
            filter: Mutex::new(Filter { socket, egress: egress::read(&state_file)? }),
            state_file,
            index: AtomicU32::new(0),
            routes: tokio::sync::Mutex::default(),
        })
    }

    /// Whether the host's table is there. Blocks.
    pub(crate) fn has_filter(&self) -> Result<bool, NetworkError> {
        host_filter::is_loaded(&self.installation.link())
    }

    /// Loads the host's table. Blocks.
    pub(crate) fn load_filter(&self) -> Result<(), NetworkError> {
        self.load(&mut self.filter.lock())
    }

    fn load(&self, filter: &mut Filter) -> Result<(), NetworkError> {
        let Filter { socket, egress } = filter;
        let content = Content {
            link: &self.installation.link(),
            allowed: &self.allowed,
            pools: &self.pools,
            egress,
            log_group: self.log_group(),
        };
        host_filter::load(socket, &content)
    }

    /// The group of nflog in which refused connections are told.
    pub(crate) fn log_group(&self) -> u16 {
        /// `CA` for the program, and the installation's number.
        const FIRST: u16 = 0xca00;
        FIRST | (self.installation.number & 0xff) as u16
    }

    /// Changes who has which egress address: noted first, then true of new connections, then
    /// connections under addresses that are taken away are cut. Blocks.
    pub(crate) fn change_egress(
        &self,
        change: impl FnOnce(&mut Assignments),
    ) -> Result<(), NetworkError> {
        let mut filter = self.filter.lock();
        let before = filter.egress.clone();
        let mut after = before.clone();
        change(&mut after);
        if before == after {
            return Ok(());
        }
        egress::write(&self.state_file, &after)?;
        filter.egress = after;
        let Filter { socket, egress } = &mut *filter;
        let link = self.installation.link();
        if host_filter::change_egress(socket, &link, (&before, egress)).is_err() {
            // Another program has changed the table, or taken it away.
            self.load(&mut filter)?;
        }
        let gone = egress::gone(&before, &filter.egress).collect();
        drop(filter);
        conntrack::forget(&gone)
    }

    /// Pools that are not the host's anyway.
    fn wanted_pools(&self) -> BTreeSet<IpNet> {
        self.pools.iter().map(IpNet::trunc).filter(|pool| !pool.addr().is_loopback()).collect()
    }

    /// IPv6 addresses that machines have, for which it answers.
    pub(crate) fn egress_v6(&self) -> BTreeSet<Ipv6Addr> {
        let filter = self.filter.lock();
        let addresses = filter.egress.iter().filter_map(|one| match one.address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        });
        addresses.collect()
    }

    /// Has the egress addresses lead here, and no longer these that machines had.
    pub(crate) async fn answer(&self, before: &BTreeSet<Ipv6Addr>) -> Result<(), NetworkError> {
        let now = self.egress_v6();
        answering::end(&self.links, &before.difference(&now).copied().collect()).await?;
        answering::ensure(&self.links, &now).await
    }

    /// What changes of the packet filter are called that are our own.
    pub(crate) fn filter_port(&self) -> u32 {
        self.filter_port
    }

    /// Number of the link.
    pub(crate) fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }

    fn uplink<'a>(&'a self, name: &'a str) -> Uplink<'a> {
        Uplink {
            host: &self.links,
            namespace: &self.inner,
            descriptor: self.namespace.descriptor(),
            name,
            table: self.installation.table(),
        }
    }

    /// Makes sure that all but the packet filter is there. What was missing.
    pub(crate) async fn ensure(&self) -> Result<BTreeSet<&'static str>, NetworkError> {
        let routes = self.routes.lock().await;
        let mut missing = BTreeSet::new();
        let name = self.installation.link();
        // First, so that nothing comes in before.
        if rules::ensure(&self.links, &self.installation).await? {
            missing.insert("routing rules");
        }
        let uplink = self.uplink(&name);
        let (index, changed) = uplink.ensure().await?;
        self.index.store(index, Ordering::Relaxed);
        if changed {
            missing.insert("link");
        }
        if uplink.ensure_routes(index, &routes).await? {
            missing.insert("routes");
        }
        if !forwarding::is_on() && forwarding::enable(&self.forwarding)? {
            missing.insert("forwarding");
        }
        let (pools, wanted) = (answering::routes(&self.installation), self.wanted_pools());
        let found: BTreeSet<_> = pools.list(&self.links).await?.into_iter().collect();
        if found != wanted {
            pools.take(&self.links, &wanted.iter().copied().collect::<Vec<_>>()).await?;
            missing.insert("routes to egress addresses");
        }
        // One that was just given is not there yet, and one whose link was down was not taken away.
        answering::ensure(&self.links, &self.egress_v6()).await?;
        Ok(missing)
    }

    /// Routes more to the namespace.
    pub(crate) async fn add_route(&self, network: IpNet) -> Result<(), NetworkError> {
        let network = network.trunc();
        let mut routes = self.routes.lock().await;
        if routes.0.contains(&network) {
            return Ok(());
        }
        let name = self.installation.link();
        let uplink = self.uplink(&name);
        if uplink.add_route(self.index(), network).await.is_err() {
            // There may be the one of an earlier server of this installation.
            uplink.ensure_routes(self.index(), &Routes([network].into())).await?;
        }
        routes.0.insert(network);
        Ok(())
    }

    /// Routes no longer. May be repeated where it fails.
    pub(crate) async fn remove_route(&self, network: IpNet) -> Result<(), NetworkError> {
        let network = network.trunc();
        let mut routes = self.routes.lock().await;
        if routes.0.contains(&network) {
            let name = self.installation.link();
            self.uplink(&name).remove_route(self.index(), network).await?;
            routes.0.remove(&network);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{Place, on_a_host, run};

    #[test]
    fn a_route_that_could_not_be_removed_is_removed_by_the_next_try() {
        on_a_host(async || {
            let directory = tempfile::tempdir().unwrap();
            let network = Place::beside(&directory).start().await.unwrap();
            let HostSide { installation, links, inner, namespace, .. } = &*network.side;
            let (installation, inner, namespace) =
                (installation.clone(), inner.clone(), namespace.clone());
            let config = HostConfig {
                pool: network.ipv4_pool(),
                allowed: Vec::new(),
                pools: Vec::new(),
                forwarding: network.side.forwarding.clone(),
                state_file: network.side.state_file.clone(),
            };
            let mut side =
                HostSide::new(installation, links.clone(), inner, namespace, config).unwrap();
            side.ensure().await.unwrap();
            let network = "10.99.0.0/16".parse().unwrap();
            side.add_route(network).await.unwrap();
            let links = std::mem::replace(&mut side.links, Links::unserved());
            side.remove_route(network).await.unwrap_err();
            side.links = links;
            assert!(run("ip route").contains("10.99.0.0/16"));
            side.remove_route(network).await.unwrap();
            assert!(!run("ip route").contains("10.99.0.0/16"));
            side.remove_route(network).await.unwrap();
        });
    }
}
