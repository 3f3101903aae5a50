//! The host's network as a whole.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use caddis_guest_protocol::spec::NetworkSpec;
use ipnet::{IpNet, Ipv6Net};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::{
    DNS, GATEWAY_V4, GATEWAY_V6, MTU, MachineAddresses, NetworkError, dns, filter, forwarding,
    links::Links,
    sets::{self, Change},
    tap,
};

/// What a network is told.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Private ranges that VMs may reach all the same.
    pub allowed: Vec<IpNet>,
    /// Name servers to forward to; empty means those of the host's `/etc/resolv.conf`.
    pub dns_upstreams: Vec<IpAddr>,
    /// Where is noted what [`Network::clean`] puts back.
    pub state_file: PathBuf,
}

/// The network of this host's VMs.
#[derive(Debug)]
pub struct Network {
    links: Links,
    /// Taps of each private network.
    members: Mutex<HashMap<Ipv6Net, HashSet<String>>>,
    dns: JoinHandle<()>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.dns.abort();
    }
}

impl Network {
    /// Loads the packet filter, turns forwarding on and begins to answer DNS. Everything stays when this process
    /// ends, for the VMs that go on; [`Self::clean`] removes it.
    ///
    /// # Errors
    /// When the host refuses: no root, no nft, no tun device.
    pub async fn start(config: NetworkConfig) -> Result<Self, NetworkError> {
        let links = Links::open()?;
        let NetworkConfig { allowed, dns_upstreams, state_file } = config;
        blocking(move || {
            let path = "/dev/net/tun";
            fs::metadata(path).map_err(NetworkError::io(format!("use {path} (modprobe tun)")))?;
            filter::load(&allowed)?;
            forwarding::enable(&state_file)
        })
        .await?;
        links.add_dns().await?;
        let dns = tokio::spawn(dns::serve(dns_upstreams));
        Ok(Self { links, members: Mutex::default(), dns })
    }

    /// Removes everything that [`Self::start`] has made and that outlives it.
    ///
    /// # Errors
    /// [`NetworkError::InUse`] while VMs run, and when the host refuses.
    pub async fn clean(state_file: &Path) -> Result<(), NetworkError> {
        let links = Links::open()?;
        // A tap is there as long as its VM.
        let taps = links.taps().await?;
        if !taps.is_empty() {
            return Err(NetworkError::InUse { count: taps.len() });
        }
        links.remove_dns().await?;
        let state_file = state_file.to_owned();
        blocking(move || {
            filter::unload()?;
            forwarding::restore(&state_file)
        })
        .await
    }

    /// Makes a tap and routes a machine's addresses to it. The tap exists as long as the descriptor is open.
    ///
    /// # Errors
    /// When the host refuses; nothing is left then.
    pub async fn attach(&self, tap: &str, addresses: &MachineAddresses) -> Result<OwnedFd, NetworkError> {
        // One that outlived its VM, whose server was killed.
        self.links.remove(tap).await?;
        let name = tap.to_owned();
        let device =
            blocking(move || tap::create(&name).map_err(NetworkError::io(format!("make the tap {name}")))).await?;
        if let Err(error) = self.connect(tap, addresses).await {
            drop(device);
            self.leave(tap, addresses.network).await?;
            return Err(error);
        }
        Ok(device)
    }

    /// Makes sure that a running VM's tap is connected.
    ///
    /// # Errors
    /// When the tap is gone or the host refuses.
    pub async fn adopt(&self, tap: &str, addresses: &MachineAddresses) -> Result<(), NetworkError> {
        self.connect(tap, addresses).await
    }

    async fn connect(&self, tap: &str, addresses: &MachineAddresses) -> Result<(), NetworkError> {
        let missing = || NetworkError::io(format!("find the tap {tap}"))(std::io::ErrorKind::NotFound.into());
        let index = self.links.index(tap).await?.ok_or_else(missing)?;
        let network = addresses.network;
        self.members().entry(network).or_default().insert(tap.to_owned());
        blocking(move || sets::change(Change::Add, network)).await?;
        self.links.connect(tap, index, addresses).await
    }

    /// Removes what [`Self::attach`] has made; nothing to do is no error. The VM must be gone.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn detach(&self, tap: &str, addresses: &MachineAddresses) -> Result<(), NetworkError> {
        self.links.remove(tap).await?;
        self.leave(tap, addresses.network).await
    }

    async fn leave(&self, tap: &str, network: Ipv6Net) -> Result<(), NetworkError> {
        let last = {
            let mut members = self.members();
            let taps = members.entry(network).or_default();
            taps.remove(tap);
            let last = taps.is_empty();
            if last {
                members.remove(&network);
            }
            last
        };
        if last { blocking(move || sets::change(Change::Remove, network)).await } else { Ok(()) }
    }

    fn members(&self) -> MutexGuard<'_, HashMap<Ipv6Net, HashSet<String>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The guest's end of a machine's network.
pub fn guest_spec(addresses: &MachineAddresses) -> NetworkSpec {
    NetworkSpec {
        mac: addresses.mac.clone(),
        mtu: MTU,
        ipv4: addresses.ipv4,
        ipv4_gateway: GATEWAY_V4,
        ipv6: addresses.ipv6,
        ipv6_gateway: GATEWAY_V6,
        nameservers: vec![DNS.to_string()],
        ..NetworkSpec::default()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let panicked = |error| NetworkError::io("change the network")(std::io::Error::other(error));
    spawn_blocking(work).await.map_err(panicked)?
}
