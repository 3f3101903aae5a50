//! What an installation has on its host: one link, rules, routes, a small table of the packet
//! filter, forwarding. All of it can be looked at and mended at any time.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ipnet::IpNet;
use parking_lot::Mutex;

use crate::{
    NetworkError, forwarding, host_filter,
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
    filter: Mutex<Socket>,
    filter_port: u32,
    index: AtomicU32,
    routes: tokio::sync::Mutex<Routes>,
}

impl HostSide {
    pub(crate) fn new(
        installation: Installation,
        links: Links,
        inner: Links,
        namespace: Arc<Namespace>,
        allowed: Vec<IpNet>,
        forwarding: PathBuf,
    ) -> Result<Self, NetworkError> {
        let filter =
            Socket::open().map_err(NetworkError::io("open a socket of the packet filter"))?;
        Ok(Self {
            installation,
            links,
            inner,
            namespace,
            allowed,
            forwarding,
            filter_port: filter.port(),
            filter: Mutex::new(filter),
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
        let mut socket = self.filter.lock();
        host_filter::load(&mut socket, &self.installation.link(), &self.allowed)
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
            let HostSide { installation, links, inner, namespace, forwarding, .. } = &*network.side;
            let (installation, inner, namespace) =
                (installation.clone(), inner.clone(), namespace.clone());
            let (links, forwarding) = (links.clone(), forwarding.clone());
            let mut side =
                HostSide::new(installation, links, inner, namespace, Vec::new(), forwarding)
                    .unwrap();
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
