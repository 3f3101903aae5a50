//! The owner of the machines on one host: what they are configured to be, what they are doing, and
//! every change of that. See docs/internals/engine.md for the whole; the parts here:
//!
//! ```text
//!  bus ──▶ requests ─▶ owner task (one per machine) ──▶ policy (pure: what may happen now?)
//!                        │   ▲                     └──▶ operation (steps, each durable)
//!                        │   │                          ──▶ VMM, images, network
//!                        ▼   │ guest events, timers
//!                      store (SQLite)  ──▶ deltas ──▶ bus
//! ```
#![forbid(unsafe_code)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use caddis_api::{MachineId, RegionCode, VolumeId, WorkerId};
use caddis_bus::{
    Bus, BusError, Serving,
    message::{region_subject, worker_subject},
    stream::StreamService,
};
use caddis_disk::Reserve;
use caddis_guest_protocol::host::Pace;

use crate::{
    engine::Shared,
    requests::{QuestionHandler, RequestHandler},
    store::StoreError,
    streams::StreamEndpoint,
};

mod adapters;
mod capacity;
mod checks;
mod clock;
mod connections;
mod disturbance;
mod egress;
mod engine;
mod event;
#[cfg(feature = "fake")]
pub mod fake;
mod files;
pub mod host;
mod housekeeping;
mod interference;
mod live;
mod logs;
mod operations;
mod owner;
mod policies;
mod policy;
mod publish;
mod quarantine;
mod recovery;
mod requests;
mod restart;
mod row;
mod runner;
mod schedule;
mod spec;
mod steps;
mod store;
mod streams;
mod timing;
mod turns;
mod volumes;

pub use capacity::pool_memory_mib;
pub use checks::{Finding, NetworkProber, Probe, Prober};
pub use clock::Clock;
pub use engine::Drivers;
pub use interference::{FaultInjection, StepHook};
pub use store::DatabaseUse;

/// What a worker is told at its start.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Where its database and its machines' directories live (`DATA_DIR/worker`).
    pub directory: PathBuf,
    /// Region it belongs to.
    pub region: RegionCode,
    /// Pool of private IPv4 addresses.
    pub ipv4_pool: ipnet::Ipv4Net,
    /// Memory that machines may reserve, MiB; `None` takes the host's memory less 512 MiB.
    pub memory_mib: Option<u64>,
    /// How many vCPUs may be promised per processor of the host.
    pub cpu_overcommit: f64,
    /// How often each MiB of memory may be promised.
    pub memory_overcommit: f64,
    /// How often each GiB of the directory's file system may be promised to root disks, which are
    /// sparse.
    pub disk_overcommit: f64,
    /// Bytes that a new volume, filled, must leave free on the disk as it is; `None`: volumes may
    /// be promised whatever is free.
    pub volume_reserve: Option<u64>,
    /// Whether what machines read and write of their volumes is limited by their size.
    pub volume_throttle: bool,
    /// How many machines start at once after a host reboot.
    pub restart_concurrency: usize,
    /// How many VMs are launched at once; more wait for their turn.
    pub launch_concurrency: usize,
    /// Log kept per machine on disk, bytes.
    pub log_bytes_per_machine: u64,
    /// Free disk space below which unused images are removed and new machines refused, bytes.
    pub reserved_disk: u64,
    /// How long destroyed machines stay readable.
    pub destroyed_retention: Duration,
    /// How often a guest that says nothing is asked something, and how long it is waited for.
    pub guest_pace: Pace,
    /// Boot id of the host, from `/proc/sys/kernel/random/boot_id`; another one than at the last
    /// run means that the host was rebooted and no VM survived.
    pub boot_id: String,
    /// By which it records and waits.
    pub clock: Clock,
    /// Room on the disk for what must be recorded also when it is full.
    pub reserve: Arc<Reserve>,
}

/// What a worker works with.
pub struct WorkerParts {
    /// Way to the gateways.
    pub bus: Arc<dyn Bus>,
    /// Drivers of VMs, images, network and checks.
    pub drivers: Drivers,
    /// For tests.
    pub hook: Option<Arc<dyn StepHook>>,
}

/// First and longest wait before a bus that refused is tried again.
const SERVE_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A running worker. VMs outlive it.
pub struct Worker {
    shared: Arc<Shared>,
    requests: Arc<RequestHandler>,
    background: Vec<tokio::task::JoinHandle<()>>,
}

impl Worker {
    /// Opens (or makes) its database, adopts running VMs, goes on with unfinished operations, and
    /// serves the bus, now or as soon as that can be had.
    ///
    /// # Errors
    /// When the database or the directory can't be used.
    pub async fn start(config: WorkerConfig, parts: WorkerParts) -> Result<Self, WorkerError> {
        let shared = recovery::open(config, parts.bus.clone(), parts.drivers, parts.hook).await?;
        let requests = Arc::new(RequestHandler::open(shared.clone()).await?);
        recovery::resume(&shared).await?;
        let services =
            Services { bus: parts.bus, shared: shared.clone(), requests: requests.clone() };
        let served = services.serve().await;
        let background = vec![
            tokio::spawn(services.keep(served)),
            tokio::spawn(housekeeping::forget_destroyed(shared.clone())),
            tokio::spawn(housekeeping::watch_clock(shared.clone())),
            tokio::spawn(housekeeping::announce(shared.clone())),
            tokio::spawn(volumes::purge(shared.clone())),
            tokio::spawn(volumes::watch_usage(shared.clone())),
            tokio::spawn(volumes::snapshots::run(shared.clone())),
            tokio::spawn(disturbance::note(shared.clone())),
            tokio::spawn(egress::note(shared.clone())),
            tokio::spawn(connections::note(shared.clone())),
        ];
        Ok(Self { shared, requests, background })
    }

    /// Its id, made at its first start.
    pub fn id(&self) -> &WorkerId {
        &self.shared.worker
    }

    /// What it has recorded of its machines since it was started.
    pub fn database_use(&self) -> DatabaseUse {
        self.shared.store.database_use()
    }

    /// Its stream endpoint.
    pub fn streams(&self) -> Arc<dyn StreamService> {
        Arc::new(StreamEndpoint::new(self.shared.clone(), self.requests.clone()))
    }

    /// Takes no more requests and lets what is being recorded be recorded. VMs of machines are left
    /// running; operations under way go on at the next start.
    pub async fn shutdown(self) {
        for task in self.background {
            task.abort();
            // What it holds, the services on the bus among it, is let go then.
            let _ = task.await;
        }
        self.shared.end().await;
        self.shared.vmm.close().await;
    }
}

/// What a worker serves on the bus. Its machines do not need it: without a bus they go on, and it
/// serves once there is one.
struct Services {
    bus: Arc<dyn Bus>,
    shared: Arc<Shared>,
    requests: Arc<RequestHandler>,
}

impl Services {
    async fn serve(&self) -> Result<[Serving; 2], BusError> {
        let questions = Arc::new(QuestionHandler::new(self.shared.clone()));
        Ok([
            self.bus.serve(&worker_subject(&self.shared.worker), self.requests.clone()).await?,
            self.bus.serve(&region_subject(&self.shared.config.region), questions).await?,
        ])
    }

    /// Keeps what is served until it is dropped, and tries again where nothing is yet.
    async fn keep(self, mut served: Result<[Serving; 2], BusError>) {
        let mut backoff = SERVE_BACKOFF.0;
        while let Err(error) = &served {
            tracing::warn!(%error, "can't serve the bus, retrying");
            tokio::time::sleep(backoff).await;
            backoff = SERVE_BACKOFF.1.min(backoff * 2);
            served = self.serve().await;
        }
        std::future::pending().await
    }
}

/// Why a worker can't start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its directory.
    #[error("can't use {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is recorded of network policies.
    #[error("can't read the network policies that are recorded: {reason}")]
    Policies {
        /// Why.
        reason: String,
    },
    /// There are no files of volumes at all, and there were.
    #[error(
        "volume {volume} is recorded, and {} has no volumes: mount the disk that has them; if they \
         are lost, make the directory {}, and they are shown as failed",
        directory.display(),
        directory.join("volumes").display()
    )]
    VolumesMissing {
        /// One of those that are recorded.
        volume: VolumeId,
        /// Where they should be.
        directory: PathBuf,
    },
    /// A recorded machine that can't be taken up again.
    #[error("can't recover machine {machine}: {reason}")]
    Machine {
        /// Which.
        machine: MachineId,
        /// Why.
        reason: String,
    },
}
