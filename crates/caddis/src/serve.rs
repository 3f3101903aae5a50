//! `caddis serve`: the parts of a server, in one process.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use caddis_bus::{InProcessBus, WorkerClient, stream::InProcessStreams};
use caddis_catalog::{Catalog, SqliteStore};
use caddis_cli::ServerFile;
use caddis_disk::Reserve;
use caddis_gateway::{Gateway, GatewayParts};
use caddis_image::{ImageStore, ImageStoreConfig};
use caddis_names::InternalNames;
use caddis_network::{Network, NetworkConfig, PublicAddresses};
use caddis_snapshot::SnapshotStore;
use caddis_vmm::{
    Accelerator, Qemu, QemuConfig, SlotPool,
    boot::{self, BootSource},
    qemu::{MakeTap, PoolLimits},
    slot::SlotPoolConfig,
};
use caddis_volume::{StoreConfig, VolumeError, VolumeStore};
use caddis_worker::{
    Clock, Drivers, NetworkProber, Worker, WorkerConfig, WorkerParts, host::NbdExports,
};
use tokio::{net::TcpListener, signal::unix::SignalKind, task::spawn_blocking};
use tracing::{info, warn};

use crate::{
    accelerator, descriptors,
    installation_key::InstallationKey,
    instance::{self, Instance, write_secret},
    settings::{LogFormat, ServeArguments, Settings, default_volume_gib},
};
use private::OwnNetworks;
pub(crate) use traffic::CANNOT_ANSWER;
use traffic::Traffic;
use wireguard::WireGuard;

mod private;
mod traffic;
mod wireguard;

/// How long the port may be taken.
const PORT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long destroyed machines stay readable.
const DESTROYED_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// VMs that are launched at once, for each processor of the host: while one waits for its disk
/// another can go on.
const LAUNCHES_PER_PROCESSOR: usize = 2;

/// Runs a server until SIGTERM or SIGINT.
pub async fn run(arguments: ServeArguments) -> Result<()> {
    let settings = arguments.resolve()?;
    log_to_stderr(&settings)?;
    crate::allocator::give_back_what_is_large();
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "caddis serve needs root, for taps, cgroups and the packet filter: sudo caddis serve"
        );
    }
    let max_connections = descriptors::raise();
    let mut stop = Signals::new()?;
    let instance = Instance::take(&settings.data_dir)?;
    info!(version = crate::VERSION, data_dir = %instance.directory().display(), "starting");
    // Before anything else is written: a disk that is full must not keep the server from what frees
    // room.
    let reserve = Arc::new(Reserve::open(&instance.path(instance::RESERVE), caddis_disk::SIZE));
    let path = instance.path(instance::INSTALLATION_KEY);
    let key = InstallationKey::open_or_create(&path, &instance.path(instance::VOLUMES))?;
    let mut public_addresses = None;
    let started = tokio::select! {
        started = start(
            &settings, &instance, &key, max_connections, reserve.clone(), &mut public_addresses,
        ) => started.map(Some),
        () = stop.received() => Ok(None),
    };
    // Whatever became of it: the next start may need it.
    reserve.settle();
    let (listener, address, server) = match started {
        Ok(Some(started)) => started,
        failed => {
            release(public_addresses).await;
            return failed.map(drop);
        }
    };
    let keeping = tokio::spawn(async move { reserve.keep_whole().await });
    info!(url = %url(address), "listening on {address}");
    notify(&[
        sd_notify::NotifyState::Ready,
        sd_notify::NotifyState::Status(&format!("listening on {address}")),
    ]);
    let served = server.gateway.serve(listener, stop.received()).await;
    info!("stopping; machines keep running");
    notify(&[sd_notify::NotifyState::Stopping]);
    keeping.abort();
    instance.withdraw();
    server.traffic.shutdown().await;
    drop(server.gateway);
    server.worker.shutdown().await;
    release(public_addresses).await;
    served.context("serving the API")
}

async fn release(addresses: Option<PublicAddresses>) {
    if let Some(addresses) = addresses {
        addresses.release().await;
    }
}

async fn start(
    settings: &Settings,
    instance: &Instance,
    key: &InstallationKey,
    max_connections: usize,
    reserve: Arc<Reserve>,
    public_addresses: &mut Option<PublicAddresses>,
) -> Result<(TcpListener, SocketAddr, Server)> {
    let listener = listen(settings.listen).await.with_context(|| {
        format!("can't listen on {}; choose another address with --listen", settings.listen)
    })?;
    let address = listener.local_addr()?;
    let files = Files {
        volumes: open_volumes(settings, instance, key).await?,
        snapshots: open_snapshots(settings, key)?,
        wireguard: key.of_wireguard()?,
    };
    let starting = Server::start(
        settings,
        instance,
        address,
        max_connections,
        files,
        reserve,
        public_addresses,
    );
    let server = starting.await?;
    let services = server.traffic.listeners().map(|(http, https)| vec![http, https]);
    let host = server.worker.id().as_str();
    instance.announce(&ServerFile {
        url: url(address),
        host: Some(host.to_owned()),
        services: services.unwrap_or_default(),
        egress_addresses: Some(settings.traffic.egress_addresses.clone()),
        wireguard: settings.wireguard.as_ref().map(|wireguard| wireguard.listen),
        snapshot_store: Some(settings.snapshots.to_string()),
        volume_gb: settings.volume_gib,
    })?;
    Ok((listener, address, server))
}

/// Listens. What a server that was killed was just starting has its port a moment longer than its
/// data directory: a program that begins closes the descriptors it inherited one after the other.
async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let begun = std::time::Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Err(error)
                if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < PORT_TIMEOUT =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            outcome => return outcome,
        }
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "can't notify the service manager");
    }
}

/// What the address looks like to a client on this host.
fn url(address: SocketAddr) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    format!("http://{address}")
}

fn log_to_stderr(settings: &Settings) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log)
        .with_context(|| format!("invalid log filter '{}'", settings.log))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => subscriber.with_target(false).with_ansi(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    Ok(())
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| tokio::signal::unix::signal(kind).context("can't listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Where the data of apps is.
struct Files {
    volumes: VolumeStore,
    snapshots: SnapshotStore,
    /// Key of the server's end of WireGuard.
    wireguard: caddis_wireguard::PrivateKey,
}

struct Server {
    gateway: Gateway,
    worker: Worker,
    traffic: Traffic,
    _wireguard: Option<WireGuard>,
}

impl Server {
    async fn start(
        settings: &Settings,
        instance: &Instance,
        address: SocketAddr,
        max_connections: usize,
        files: Files,
        reserve: Arc<Reserve>,
        public_addresses: &mut Option<PublicAddresses>,
    ) -> Result<Self> {
        let catalog = open_catalog(instance, reserve.clone()).await?;
        let taps = Arc::new(OnceLock::new());
        let vmm = start_vmm(settings, instance, address, taps.clone()).await?;
        let images = open_images(settings, instance, vmm.amd64_level()).await?;
        let names = Arc::new(InternalNames::default());
        let network = Network::start(NetworkConfig {
            data_directory: instance.directory().to_owned(),
            run_directory: caddis_network::RUN_DIRECTORY.into(),
            state_file: instance.path(instance::NETWORK_STATE),
            ipv4_pool: settings.ipv4_pool,
            allowed: settings.allow_private.clone(),
            egress_pools: settings.traffic.egress_addresses.clone(),
            dns_upstreams: settings.dns.clone(),
            names: Some(names.clone()),
        });
        let network = Arc::new(network.await.context("can't set up the network of machines")?);
        let ipv4_pool = network.ipv4_pool();
        // VMs that wait for machines are made later.
        let _ = taps.set(network.clone());
        let bus = Arc::new(InProcessBus::new());
        let boot_id = std::fs::read_to_string(&settings.boot_id_file)
            .with_context(|| format!("can't read {}", settings.boot_id_file.display()))?;
        let config = WorkerConfig {
            directory: instance.path(instance::WORKER),
            region: settings.region.clone(),
            ipv4_pool,
            memory_mib: settings.memory_mib,
            cpu_overcommit: settings.cpu_overcommit,
            memory_overcommit: settings.memory_overcommit,
            disk_overcommit: settings.disk_overcommit,
            // Who says how much volumes may take may promise more than there is.
            volume_reserve: settings.volume_gib.is_none().then_some(settings.reserved_disk),
            volume_throttle: settings.volume_throttle,
            restart_concurrency: settings.restart_concurrency,
            launch_concurrency: LAUNCHES_PER_PROCESSOR
                * thread::available_parallelism().map_or(1, usize::from),
            log_bytes_per_machine: settings.log_bytes,
            reserved_disk: settings.reserved_disk,
            destroyed_retention: DESTROYED_RETENTION,
            guest_pace: Default::default(),
            boot_id: boot_id.trim().to_owned(),
            clock: Clock::default(),
            reserve,
        };
        let vmm = Arc::new(vmm);
        let drivers = Drivers {
            snapshots: Some(files.snapshots),
            exports: Arc::new(NbdExports),
            vmm: vmm.clone(),
            images: Arc::new(images),
            network: network.clone(),
            prober: Arc::new(NetworkProber::default()),
            volumes: files.volumes,
        };
        let worker =
            Worker::start(config, WorkerParts { bus: bus.clone(), drivers, hook: None }).await?;
        let streams = Arc::new(InProcessStreams::new(worker.id().clone(), worker.streams()));
        let public = public_addresses.insert(PublicAddresses::of(&network));
        let taken = public.take(&settings.traffic.public_addresses).await;
        taken.context("can't have the addresses of apps")?;
        let client = WorkerClient::new(bus.clone(), streams.clone());
        let own = Arc::new(OwnNetworks { network: network.clone(), names: names.clone() });
        let mut traffic = Traffic::listen(&settings.traffic, &settings.region, client, own)?;
        let wireguard = match &settings.wireguard {
            Some(wireguard) => {
                let key = &files.wireguard;
                let started = WireGuard::start(wireguard, key, network, catalog.clone()).await;
                Some(started.context("can't serve WireGuard peers")?)
            }
            None => None,
        };
        let gateway = Gateway::new(GatewayParts {
            bus,
            streams,
            catalog: catalog.clone(),
            region: settings.region.clone(),
            regions: Vec::new(),
            workers: vec![worker.id().clone()],
            settings: caddis_gateway::Settings {
                destroyed_retention: DESTROYED_RETENTION,
                rate_limit: settings.rate_limit,
                max_connections,
                traffic: caddis_gateway::TrafficSettings {
                    info: Some(traffic.info()),
                    ..settings.traffic.of_gateway(traffic.listeners(), address)
                },
                wireguard: wireguard.as_ref().map(WireGuard::info),
                ..Default::default()
            },
        });
        let gateway = gateway.await?;
        let view = gateway.view();
        traffic.follow(view.clone(), catalog.clone());
        tokio::spawn(async move {
            tokio::join!(
                names.follow(&view),
                names.follow_addresses(&catalog),
                names.follow_peers(&catalog)
            )
        });
        // Last, so that nothing that failed leaves it behind.
        vmm.keep_warm();
        Ok(Self { gateway, worker, traffic, _wireguard: wireguard })
    }
}

/// Opens the catalog, and writes the root token where it is new or was lost.
async fn open_catalog(instance: &Instance, reserve: Arc<Reserve>) -> Result<Catalog> {
    let store = SqliteStore::open_with(&instance.path(instance::CATALOG), reserve)?;
    let catalog = Catalog::new(Arc::new(store));
    let path = instance.path(instance::ROOT_TOKEN);
    let token = match catalog.ensure_root_token().await? {
        Some(token) => Some(token),
        None if path.exists() => None,
        // The server was killed before it was written, or someone removed it.
        None => Some(catalog.replace_root_token().await?),
    };
    if let Some(token) = token {
        write_secret(&path, &format!("{token}\n"))?;
        info!(path = %path.display(), organization = caddis_catalog::PERSONAL, "wrote the root \
            token");
    }
    Ok(catalog)
}

/// Opens the volumes. What a server that was killed was just starting has their directory a moment
/// longer than the data directory.
async fn open_volumes(
    settings: &Settings,
    instance: &Instance,
    key: &InstallationKey,
) -> Result<VolumeStore> {
    let limit = match settings.volume_gib {
        Some(gib) => gib,
        None => default_volume_gib(instance.directory())?,
    };
    let config = StoreConfig {
        limit: Some(limit),
        ..StoreConfig::new(instance.path(instance::VOLUMES), key.of_volumes())
    };
    let begun = std::time::Instant::now();
    loop {
        let config = config.clone();
        match spawn_blocking(move || VolumeStore::open(config)).await? {
            Err(VolumeError::StoreInUse(_)) if begun.elapsed() < PORT_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => return opened.context("can't open the volumes"),
        }
    }
}

/// Opens the snapshots. A store that does not answer is no reason not to start.
fn open_snapshots(settings: &Settings, key: &InstallationKey) -> Result<SnapshotStore> {
    let location = settings.snapshots.location()?;
    info!(store = %settings.snapshots, "snapshots of volumes are kept");
    let config = caddis_snapshot::StoreConfig { location, key: key.of_snapshots()? };
    SnapshotStore::open(config).context("can't open the snapshot store")
}

async fn start_vmm(
    settings: &Settings,
    instance: &Instance,
    address: SocketAddr,
    taps: Arc<OnceLock<Arc<Network>>>,
) -> Result<Qemu> {
    let source = BootSource {
        kernel: settings.kernel.clone(),
        modules: settings.modules.clone(),
        init: caddis_guest_init_image::INIT.into(),
        extra_modules: Vec::new(),
    };
    let (choice, program) = (settings.accelerator, settings.qemu.clone());
    let (data_dir, boot_dir) = (instance.directory().to_owned(), instance.path(instance::BOOT));
    let (templates, pool) = (instance.path(instance::TEMPLATES), settings.pool);
    spawn_blocking(move || {
        let (accelerator, reason) = accelerator::choose(choice, address, &data_dir)?;
        let boot = boot::prepare(&source, &boot_dir)?;
        let slots = SlotPool::open(SlotPoolConfig::default())?;
        let vmm = Qemu::new(QemuConfig {
            program,
            accelerator,
            boot: boot.clone(),
            slots,
            templates,
            pool: PoolLimits { count: pool, memory_mib: caddis_worker::pool_memory_mib() },
            tap: MakeTap(Arc::new(move |name| {
                let network =
                    taps.get().ok_or_else(|| std::io::Error::other("there is no network yet"))?;
                network.create_tap(name)
            })),
        })?;
        match accelerator {
            Accelerator::Kvm => {
                info!(qemu = vmm.version(), kernel = boot.release, reason, "VMs run with KVM")
            }
            Accelerator::Emulation => warn!(
                qemu = vmm.version(),
                kernel = boot.release,
                reason,
                "VMs run under emulation: slower, and not a security boundary"
            ),
        }
        Ok(vmm)
    })
    .await?
}

async fn open_images(
    settings: &Settings,
    instance: &Instance,
    amd64_level: u8,
) -> Result<ImageStore> {
    let config = ImageStoreConfig {
        insecure_registries: settings.insecure_registries.clone(),
        registry_credentials: settings.registry_credentials.clone(),
        default_registry: settings.default_registry.clone(),
        amd64_level,
        ..ImageStoreConfig::new(instance.path(instance::IMAGES))
    };
    Ok(spawn_blocking(move || ImageStore::open(config)).await??)
}
