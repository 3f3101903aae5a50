//! Private networks of machines, as far as the proxy needs to know of them.

use std::{
    fmt, io,
    net::{Ipv6Addr, TcpListener},
};

use caddis_api::MachineId;

use crate::AppName;

/// Where machines reach the private addresses of apps.
pub trait PrivateNetworks: fmt::Debug + Send + Sync {
    /// Calls `open` where sockets are reached from private networks. Blocks for a moment.
    ///
    /// # Errors
    /// Those of `open`, and when no socket can be opened there.
    fn open(
        &self,
        open: Box<dyn FnOnce() -> io::Result<TcpListener> + Send>,
    ) -> io::Result<TcpListener>;

    /// The machine that has an address. No other machine can send from there.
    fn machine_at(&self, address: Ipv6Addr) -> Option<PrivateClient>;
}

/// A machine that connects to a private address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateClient {
    /// The machine.
    pub machine: MachineId,
    /// Its app.
    pub app: AppName,
}
