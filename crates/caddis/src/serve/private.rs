//! What the proxy has of private networks: sockets in the namespace of machines, and who sends.

use std::{
    io,
    net::{Ipv6Addr, TcpListener},
    sync::Arc,
};

use caddis_names::InternalNames;
use caddis_network::Network;
use caddis_proxy::{PrivateClient, PrivateNetworks};

/// Those of this server's machines.
#[derive(Debug)]
pub struct OwnNetworks {
    pub network: Arc<Network>,
    pub names: Arc<InternalNames>,
}

impl PrivateNetworks for OwnNetworks {
    fn open(
        &self,
        open: Box<dyn FnOnce() -> io::Result<TcpListener> + Send>,
    ) -> io::Result<TcpListener> {
        self.network.open_inside(open)
    }

    fn machine_at(&self, address: Ipv6Addr) -> Option<PrivateClient> {
        let (machine, app) = self.names.machine_at(address)?;
        Some(PrivateClient { machine, app: app.into() })
    }
}
