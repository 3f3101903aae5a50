//! The network of an installation's VMs as a whole.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv6Addr},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use caddis_guest_protocol::spec::NetworkSpec;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};
use tracing::warn;

use crate::{
    DNS, Disturbances, DnsQueries, GATEWAY_V4, GATEWAY_V6, MTU, MachineAddresses, Names,
    NetworkError, answering,
    dns::{self, asked::Asked},
    exhaustion::Counter,
    filter, flycast, forwarding,
    guard::{Guard, Subscriptions},
    host::{HostConfig, HostSide},
    host_filter,
    installation::{Claims, Installation, link_of},
    legacy,
    links::Links,
    namespace::{self, Namespace},
    netlink::Socket,
    pool, public, recover, rules,
    sets::{self, Change},
    tap, uplink,
};

/// What a network is told.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The installation's data directory, with no links in its path: what is made on the host goes
    /// by it.
    pub data_directory: PathBuf,
    /// Where all installations of the host are noted: [`crate::RUN_DIRECTORY`].
    pub run_directory: PathBuf,
    /// Where the pool is noted that was chosen.
    pub state_file: PathBuf,
    /// Addresses of machines; one that is free is chosen where none is given.
    pub ipv4_pool: Option<Ipv4Net>,
    /// Private ranges that VMs may reach all the same.
    pub allowed: Vec<IpNet>,
    /// Prefixes of egress addresses that machines may have, which this host takes as its own.
    pub egress_pools: Vec<IpNet>,
    /// Name servers to forward to; empty means those of the host's `/etc/resolv.conf`.
    pub dns_upstreams: Vec<IpAddr>,
    /// Names of machines; without it there are none.
    pub names: Option<Arc<dyn Names>>,
}

/// The network of an installation's VMs.
#[derive(Debug)]
pub struct Network {
    pub(crate) namespace: Arc<Namespace>,
    links: Links,
    pub(crate) side: Arc<HostSide>,
    pool: Ipv4Net,
    sets: Arc<Mutex<Socket>>,
    /// Taps of each private network. Held while who may meet is changed, so that the filter agrees
    /// with it.
    members: tokio::sync::Mutex<HashMap<Ipv6Net, HashSet<String>>>,
    /// Those whose WireGuard peers are routed.
    pub(crate) peer_networks: tokio::sync::Mutex<BTreeSet<Ipv6Net>>,
    guard: Guard,
    dns: JoinHandle<()>,
    /// What machines ask it.
    asked: Arc<Asked>,
    /// Held while egress addresses are changed.
    pub(crate) egress_turn: tokio::sync::Mutex<()>,
    /// None where the kernel does not tell.
    pub(crate) refused: Option<Counter>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.dns.abort();
    }
}

/// What was cleaned, and what stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// Data directories of other installations that have a network on this host.
    pub others: Vec<PathBuf>,
}

impl Network {
    /// Makes the namespace of machines and its link to the host, loads the packet filter, turns
    /// forwarding on and begins to answer DNS. Everything stays when this process ends, for the VMs
    /// that go on; [`Self::clean`] removes it.
    ///
    /// # Errors
    /// When the host refuses (no root, no nft, no tun device), or the pool is in use.
    pub async fn start(config: NetworkConfig) -> Result<Self, NetworkError> {
        let NetworkConfig {
            data_directory,
            run_directory,
            state_file,
            ipv4_pool,
            allowed,
            egress_pools,
            dns_upstreams,
            names,
        } = config;
        let links = Links::open()?;
        let lock = {
            let run_directory = run_directory.clone();
            blocking(move || {
                let path = "/dev/net/tun";
                fs::metadata(path)
                    .map_err(NetworkError::io(format!("use {path} (modprobe tun)")))?;
                Claims::lock(&run_directory)
            })
        };
        let claims = lock.await?;
        let former = match claims.find(&data_directory)? {
            Some(installation) => Some(installation.number),
            None => recover::number(&links, &data_directory).await?,
        };
        let own = match former {
            Some(number) => links.index(&link_of(number)).await?,
            None => None,
        };
        let pool = pool::choose(&links, ipv4_pool, own, &state_file).await?;
        let before = forwarding_file(&run_directory)?;
        forget_gone(&links, &claims).await?;
        let others = uplink::names(&links).await?;
        if others.is_empty() {
            // Of a network namespace that had the same number.
            let _ = fs::remove_file(&before);
            if claims.list()?.is_empty() {
                forwarding::forget(&run_directory)?;
            }
        }
        forwarding::take_over(&state_file, &before)?;

        let installation = claims.take(&data_directory, former, &others)?;
        let place = installation.namespace();
        let filtered = allowed.clone();
        let opened = blocking(move || {
            if !namespace::exists(&place) {
                recover::remount(&place, &data_directory);
            }
            let namespace = Namespace::open(&place)?;
            filter::load(&namespace, pool, &filtered)?;
            let inner = Links::open_in(&namespace)?;
            let sets = namespace.run(Socket::open).and_then(|socket| socket);
            Ok((
                namespace,
                inner,
                sets.map_err(NetworkError::io("open a socket of the packet filter"))?,
            ))
        });
        let (namespace, inner, sets) = opened.await?;
        let namespace = Arc::new(namespace);
        inner.add_dns().await?;
        let host =
            HostConfig { pool, allowed, pools: egress_pools, forwarding: before, state_file };
        let (side_inner, side_namespace) = (inner.clone(), namespace.clone());
        let side =
            blocking(move || HostSide::new(installation, links, side_inner, side_namespace, host));
        let side = Arc::new(side.await?);
        let subscriptions = Subscriptions::open()?;
        side.ensure().await?;
        side.add_route(pool.into()).await?;
        let loading = side.clone();
        blocking(move || loading.load_filter()).await?;
        let refused = Counter::of_group(side.log_group());
        legacy::tidy().await?;
        drop(claims);

        let guard = Guard::start(side.clone(), subscriptions)?;
        let asked = Arc::<Asked>::default();
        let serving = dns::serve(namespace.clone(), names, dns_upstreams, asked.clone());
        let dns = tokio::spawn(serving);
        let sets = Arc::new(Mutex::new(sets));
        Ok(Self {
            namespace,
            links: inner,
            side,
            pool,
            sets,
            members: tokio::sync::Mutex::default(),
            peer_networks: tokio::sync::Mutex::default(),
            guard,
            dns,
            asked,
            egress_turn: tokio::sync::Mutex::default(),
            refused,
        })
    }

    /// The connection to the routing of the namespace.
    pub(crate) fn inner(&self) -> &Links {
        &self.links
    }

    /// Addresses of machines, as given or chosen.
    pub fn ipv4_pool(&self) -> Ipv4Net {
        self.pool
    }

    /// How often a machine has asked the name server, since its tap was connected or this was
    /// started.
    pub fn dns_queries(&self, machine: Ipv6Addr) -> DnsQueries {
        self.asked.of(machine)
    }

    /// What other programs do to it.
    pub fn disturbances(&self) -> watch::Receiver<Disturbances> {
        self.guard.told()
    }

    /// Makes a tap of this name, which is gone when it is closed. Blocks.
    ///
    /// # Errors
    /// When there is one already, or the host refuses.
    pub fn create_tap(&self, name: &str) -> std::io::Result<OwnedFd> {
        let name = name.to_owned();
        self.namespace.run(move || tap::create(&name))?
    }

    /// Removes everything that [`Self::start`] has made and that outlives it.
    ///
    /// # Errors
    /// [`NetworkError::InUse`] while VMs run, and when the host refuses.
    pub async fn clean(
        run_directory: &Path,
        data_directory: &Path,
        state_file: &Path,
    ) -> Result<Cleaned, NetworkError> {
        let links = Links::open()?;
        let run = run_directory.to_owned();
        let claims = blocking(move || Claims::lock(&run)).await?;
        let before = forwarding_file(run_directory)?;
        if let Some(installation) = claims.find(data_directory)? {
            remove(&links, &installation).await?;
            claims.release(&installation)?;
        } else {
            let directory = data_directory.to_owned();
            let count = blocking(move || Ok(recover::count(&directory))).await?;
            if count > 0 {
                return Err(NetworkError::InUse { count });
            }
        }
        forget_gone(&links, &claims).await?;
        legacy::tidy().await?;
        forwarding::take_over(state_file, &before)?;
        let left = uplink::names(&links).await?;
        if left.is_empty() && links.taps().await?.is_empty() {
            forwarding::restore(&before)?;
            if claims.list()?.is_empty() {
                forwarding::forget(run_directory)?;
            }
        }
        let others = claims.list()?.into_iter().filter(|other| left.contains(&other.link()));
        Ok(Cleaned { others: others.map(|other| other.owner).collect() })
    }

    /// Makes a tap and routes a machine's addresses to it. The tap exists as long as the descriptor
    /// is open.
    ///
    /// # Errors
    /// When the host refuses; nothing is left then.
    pub async fn attach(
        &self,
        tap: &str,
        addresses: &MachineAddresses,
    ) -> Result<OwnedFd, NetworkError> {
        // One that outlived its VM, whose server was killed.
        self.links.remove(tap).await?;
        let (name, namespace) = (tap.to_owned(), self.namespace.clone());
        let device = blocking(move || {
            let (failed, made) = (NetworkError::io(format!("create the tap {name}")), name);
            namespace.run(move || tap::create(&made)).and_then(|device| device).map_err(failed)
        });
        let device = device.await?;
        if let Err(error) = self.connect(tap, addresses).await {
            drop(device);
            self.leave(tap, addresses).await?;
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
        let index = match self.links.index(tap).await? {
            Some(index) => index,
            None => self.move_here(tap).await?,
        };
        let network = addresses.network;
        {
            let mut members = self.members.lock().await;
            if !members.contains_key(&network) {
                self.change(Change::Add, network).await?;
                flycast::take(&self.links, network).await?;
                self.side.add_route(network.into()).await?;
            }
            members.entry(network).or_default().insert(tap.to_owned());
        }
        if !self.pool.contains(&addresses.ipv4) {
            // Of a pool that the server had before.
            self.side.add_route(IpAddr::from(addresses.ipv4).into()).await?;
        }
        self.links.connect(tap, index, addresses).await?;
        self.asked.begin(addresses.ipv6);
        Ok(())
    }

    /// The tap of a VM that an earlier release has started is in the host's network.
    async fn move_here(&self, tap: &str) -> Result<u32, NetworkError> {
        let missing =
            || NetworkError::io(format!("find the tap {tap}"))(std::io::ErrorKind::NotFound.into());
        if !legacy::take_over(&self.side.links, tap, self.namespace.descriptor()).await? {
            return Err(missing());
        }
        legacy::tidy().await?;
        self.links.index(tap).await?.ok_or_else(missing)
    }

    /// Removes what [`Self::attach`] has made; nothing to do is no error. The VM must be gone.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn detach(
        &self,
        tap: &str,
        addresses: &MachineAddresses,
    ) -> Result<(), NetworkError> {
        self.links.remove(tap).await?;
        self.leave(tap, addresses).await
    }

    async fn leave(&self, tap: &str, addresses: &MachineAddresses) -> Result<(), NetworkError> {
        self.asked.end(addresses.ipv6);
        if !self.pool.contains(&addresses.ipv4) {
            self.side.remove_route(IpAddr::from(addresses.ipv4).into()).await?;
        }
        let network = addresses.network;
        let mut members = self.members.lock().await;
        let taps = members.entry(network).or_default();
        taps.remove(tap);
        if !taps.is_empty() {
            return Ok(());
        }
        members.remove(&network);
        self.change(Change::Remove, network).await?;
        flycast::release(&self.links, network).await?;
        self.side.remove_route(network.into()).await
    }

    async fn change(&self, change: Change, network: Ipv6Net) -> Result<(), NetworkError> {
        let sets = self.sets.clone();
        blocking(move || sets::change(&mut sets.lock(), change, network)).await
    }
}

/// Removes what installations have on the host whose data directories are gone, but where VMs still
/// run.
async fn forget_gone(links: &Links, claims: &Claims) -> Result<(), NetworkError> {
    for gone in claims.list()?.into_iter().filter(|installation| !installation.owner.exists()) {
        match remove(links, &gone).await {
            Ok(()) => claims.release(&gone)?,
            Err(NetworkError::InUse { .. }) => {}
            Err(error) => {
                warn!(%error, data_dir = %gone.owner.display(), "can't remove the network of a \
                    data directory that no longer exists");
            }
        }
    }
    Ok(())
}

/// Removes all of an installation from the host.
async fn remove(links: &Links, installation: &Installation) -> Result<(), NetworkError> {
    let (place, name) = (installation.namespace(), installation.link());
    let (mount, owner) = (place.clone(), installation.owner.clone());
    if blocking(move || Ok(namespace::exists(&mount) || recover::remount(&mount, &owner))).await? {
        let place = place.clone();
        let opened = blocking(move || {
            let namespace = Namespace::open(&place)?;
            let inner = Links::open_in(&namespace)?;
            Ok((namespace, inner))
        });
        let (_namespace, inner) = opened.await?;
        // A tap is there as long as its VM.
        let taps = inner.taps().await?;
        if !taps.is_empty() {
            return Err(NetworkError::InUse { count: taps.len() });
        }
    }
    links.remove(&name).await?;
    rules::clear(links, installation).await?;
    public::routes(installation).clear(links, &[]).await?;
    answering::clear(links, installation).await?;
    blocking(move || {
        let mut socket =
            Socket::open().map_err(NetworkError::io("open a socket of the packet filter"))?;
        host_filter::unload(&mut socket, &name)?;
        namespace::remove(&place)
    })
    .await
}

/// Where is noted what forwarding was, of this network namespace.
fn forwarding_file(run_directory: &Path) -> Result<PathBuf, NetworkError> {
    let own = "/proc/thread-self/ns/net";
    let number = fs::metadata(own).map_err(NetworkError::io(format!("read {own}")))?.ino();
    Ok(run_directory.join(format!("{}{number}.json", forwarding::FILE_PREFIX)))
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
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let panicked = |error| NetworkError::io("change the network")(std::io::Error::other(error));
    spawn_blocking(work).await.map_err(panicked)?
}
