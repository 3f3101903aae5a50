//! A real server without VMs: the gateway on a real port, the worker's engine and the catalog on
//! real databases, over a host that pretends ([`FakeHost`]) with guests that speak the real
//! protocol.
//!
//! It has threads of its own, so that tests may block. What its guests do is said in
//! `caddis_guest_protocol::fake`.

use std::{
    fmt,
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result};
use caddis_api::{
    RegionCode,
    traffic::{AppTraffic, MachineTraffic},
};
use caddis_bus::{InProcessBus, stream::InProcessStreams};
use caddis_catalog::{Catalog, SqliteStore};
use caddis_gateway::{Gateway, GatewayParts, Settings, TrafficInfo, TrafficSettings};
use caddis_view::{CachedMachine, View};
use caddis_vmm::fake::FakeHost;
use caddis_worker::{
    Drivers, Worker, WorkerConfig, WorkerParts,
    fake::{self, FakeNetwork, FakeProber},
};
use tokio::{net::TcpListener, runtime::Runtime, sync::oneshot, task::JoinHandle};

use crate::Api;

mod images;
mod wireguard;

pub use caddis_guest_protocol::fake::Behaviour;
pub use caddis_vmm::fake::Faults;
pub use caddis_worker::fake::Answer;
pub use images::{FakeImages, Stage};

/// How long destroyed machines are remembered.
const RETENTION: Duration = Duration::from_secs(3600);

/// What of such a server tests choose.
#[derive(Debug, Clone)]
pub struct FakeOptions {
    /// Memory of its host, MiB.
    pub memory_mib: u64,
    /// The reference's rate limits times this; 0 for none.
    pub rate_limit: f64,
    /// What its proxy knows of each machine; it has none without.
    pub traffic: Option<MachineTraffic>,
}

/// A proxy that knows the same of each machine.
struct KnownTraffic {
    each: MachineTraffic,
    view: OnceLock<Arc<View>>,
}

impl fmt::Debug for KnownTraffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KnownTraffic").field(&self.each).finish()
    }
}

impl TrafficInfo for KnownTraffic {
    fn traffic(&self, app: &str) -> Option<AppTraffic> {
        let machines = self.view.get()?.of_app(app);
        let known =
            |machine: &CachedMachine| (machine.record.machine.id.clone(), self.each.clone());
        let machines = machines.iter().map(|machine| known(machine)).collect();
        Some(AppTraffic { waiting: self.each.waiting, machines, ..AppTraffic::default() })
    }
}

impl Default for FakeOptions {
    fn default() -> Self {
        Self { memory_mib: 16 * 1024, rate_limit: 0.0, traffic: None }
    }
}

/// A server; dropping it is the end of it, of its machines, and of all they have left.
pub struct FakeServer {
    /// Where its VMs are: faults, guests, crashes.
    pub host: FakeHost,
    /// Its images.
    pub images: FakeImages,
    /// What health checks of its machines find.
    pub prober: FakeProber,
    address: SocketAddr,
    token: String,
    options: FakeOptions,
    catalog: Catalog,
    running: Option<Running>,
    runtime: Option<Runtime>,
    directory: tempfile::TempDir,
}

struct Running {
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<()>>,
}

impl FakeServer {
    /// Starts one.
    ///
    /// # Errors
    /// When a part of it can't begin.
    pub async fn start() -> Result<Self> {
        Self::with(FakeOptions::default()).await
    }

    /// Starts one, as chosen.
    ///
    /// # Errors
    /// When a part of it can't begin.
    pub async fn with(options: FakeOptions) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let directory = tempfile::tempdir()?;
        let catalog =
            Catalog::new(Arc::new(SqliteStore::open(&directory.path().join("catalog.db"))?));
        let token = catalog.ensure_root_token().await?.context("the token of a new catalog")?;
        let mut server = Self {
            host: FakeHost::on(runtime.handle().clone()),
            images: FakeImages::open(&directory.path().join("images"))?,
            prober: FakeProber::default(),
            address: ([127, 0, 0, 1], 0).into(),
            token,
            options,
            catalog,
            running: None,
            runtime: Some(runtime),
            directory,
        };
        server.start_again().await?;
        Ok(server)
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its first token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Its data directory, with the databases of a real one and no network or VMs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A client of it.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn api(&self) -> Result<Api> {
        Api::new(self.url(), Some(&self.token))
    }

    /// Ends it but for its VMs, as `caddis serve` is ended: requests find nobody.
    ///
    /// # Errors
    /// When serving had failed before.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        // Gone already when serving has failed, which is told next.
        let _ = running.stop.send(());
        running.served.await?
    }

    /// Starts it again after [`Self::stop`], at the same address.
    ///
    /// # Errors
    /// When a part of it can't begin.
    pub async fn start_again(&mut self) -> Result<()> {
        let runtime = self.runtime.as_ref().context("it is there until it is dropped")?;
        let (stop, stopped) = oneshot::channel();
        let (sender, begun) = oneshot::channel();
        let path = self.directory.path();
        let drivers =
            fake::drivers(path, 200, &self.host, &FakeNetwork::default(), self.images.clone())?;
        let drivers = Drivers { prober: Arc::new(self.prober.clone()), ..drivers };
        let config = WorkerConfig {
            memory_mib: Some(self.options.memory_mib),
            destroyed_retention: RETENTION,
            ..fake::config(path)
        };
        let known = |each: &MachineTraffic| {
            Arc::new(KnownTraffic { each: each.clone(), view: OnceLock::new() })
        };
        let proxy = self.options.traffic.as_ref().map(known);
        let pools = ["203.0.113.64/28", "2001:db8:1::e:0/112"];
        let egress_addresses = pools.iter().map(|pool| pool.parse()).collect::<Result<_, _>>()?;
        let settings = Settings {
            rate_limit: self.options.rate_limit,
            traffic: TrafficSettings {
                egress_addresses,
                info: proxy.clone().map(|proxy| proxy as Arc<dyn TrafficInfo>),
                ..TrafficSettings::default()
            },
            wireguard: Some(Arc::new(wireguard::NobodyConnects)),
            destroyed_retention: RETENTION,
            ..Settings::default()
        };
        let (catalog, address) = (self.catalog.clone(), self.address);
        let served = runtime.spawn(async move {
            let listener = TcpListener::bind(address).await.context("listening")?;
            let address = listener.local_addr()?;
            let bus = Arc::new(InProcessBus::new());
            let worker =
                Worker::start(config, WorkerParts { bus: bus.clone(), drivers, hook: None })
                    .await?;
            let gateway = Gateway::new(GatewayParts {
                bus,
                streams: Arc::new(InProcessStreams::new(worker.id().clone(), worker.streams())),
                catalog,
                region: RegionCode::from_trusted("local"),
                regions: Vec::new(),
                workers: vec![worker.id().clone()],
                settings,
            });
            let gateway = gateway.await?;
            if let Some(proxy) = proxy {
                // It is this server's alone.
                let _ = proxy.view.set(gateway.view());
            }
            // Whoever waits for it is there: it waits for this alone.
            let _ = sender.send(address);
            let stopped = async {
                // The end of the sender is an end too.
                let _ = stopped.await;
            };
            gateway.serve(listener, stopped).await?;
            drop(gateway);
            worker.shutdown().await;
            Ok(())
        });
        match begun.await {
            Ok(address) => {
                self.address = address;
                self.running = Some(Running { stop, served });
                Ok(())
            }
            Err(_) => served.await?.and_then(|()| anyhow::bail!("the server ended at once")),
        }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
