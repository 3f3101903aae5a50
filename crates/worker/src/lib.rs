//! The owner of the machines on one host: what they are configured to be, what they are doing, and every change of
//! that. See ARCHITECTURE.md for the whole; the parts here:
//!
//! ```text
//!  bus ──▶ service ──▶ owner task (one per machine) ──▶ policy (pure: what may happen now?)
//!                        │   ▲                     └──▶ operation (steps, each durable) ──▶ VMM, images, network
//!                        ▼   │ guest events, timers
//!                      store (SQLite)  ──▶ deltas ──▶ bus
//! ```
#![forbid(unsafe_code)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use caddis_api::{MachineId, WorkerId};
use caddis_bus::{
    Bus, BusError, Serving,
    message::{region_subject, worker_subject},
    stream::StreamService,
};
use caddis_disk::Reserve;
use caddis_guest_protocol::host::Pace;

use crate::{
    engine::Shared,
    service::{QuestionHandler, RequestHandler},
    store::StoreError,
    streams::StreamEndpoint,
};

mod adapters;
mod capacity;
mod clock;
mod disturbance;
mod engine;
mod event;
#[cfg(feature = "fake")]
pub mod fake;
pub mod host;
mod interference;
mod live;
mod logs;
mod operation;
mod owner;
mod policy;
mod publish;
mod restart;
mod row;
mod runner;
mod schedule;
mod service;
mod spec;
mod start;
mod step;
mod store;
mod streams;
mod timing;
mod turns;

pub use capacity::pool_memory_mib;
pub use engine::Drivers;
pub use interference::{Interference, StepHook};
pub use store::DatabaseUse;

/// What a worker is told at its start.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Where its database and its machines' directories live (`DATA_DIR/worker`).
    pub directory: PathBuf,
    /// Region it belongs to.
    pub region: String,
    /// Pool of private IPv4 addresses.
    pub ipv4_pool: ipnet::Ipv4Net,
    /// Memory that machines may reserve, MiB; `None` takes the host's memory less 512 MiB.
    pub memory_mib: Option<u64>,
    /// How many vCPUs may be promised per processor of the host.
    pub cpu_overcommit: f64,
    /// How often each MiB of memory may be promised.
    pub memory_overcommit: f64,
    /// How often each GiB of the directory's file system may be promised to root disks, which are sparse.
    pub disk_overcommit: f64,
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
    /// Boot id of the host, from `/proc/sys/kernel/random/boot_id`; another one than at the last run means that the
    /// host was rebooted and no VM survived.
    pub boot_id: String,
    /// Room on the disk for what must be recorded also when it is full.
    pub reserve: Arc<Reserve>,
}

/// What a worker works with.
pub struct WorkerParts {
    /// Way to the gateways.
    pub bus: Arc<dyn Bus>,
    /// Drivers of VMs, images and network.
    pub drivers: Drivers,
    /// For tests.
    pub hook: Option<Arc<dyn StepHook>>,
}

/// A running worker. VMs outlive it.
pub struct Worker {
    shared: Arc<Shared>,
    serving: Vec<Serving>,
    background: Vec<tokio::task::JoinHandle<()>>,
}

impl Worker {
    /// Opens (or makes) its database, adopts running VMs, goes on with unfinished operations, and serves the bus.
    ///
    /// # Errors
    /// When the database or the directory can't be used.
    pub async fn start(config: WorkerConfig, parts: WorkerParts) -> Result<Self, WorkerError> {
        let shared = start::open(config, parts.bus.clone(), parts.drivers, parts.hook).await?;
        start::resume(&shared).await?;
        let bus = &parts.bus;
        let requests = Arc::new(RequestHandler::new(shared.clone()));
        let questions = Arc::new(QuestionHandler::new(shared.clone()));
        let serving = vec![
            bus.serve(&worker_subject(&shared.worker), requests).await?,
            bus.serve(&region_subject(&shared.config.region), questions).await?,
        ];
        let background = vec![
            tokio::spawn(start::forget_destroyed(shared.clone())),
            tokio::spawn(start::watch_clock(shared.clone())),
            tokio::spawn(start::announce(shared.clone())),
            tokio::spawn(disturbance::note(shared.clone())),
        ];
        Ok(Self { shared, serving, background })
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
        Arc::new(StreamEndpoint::new(self.shared.clone()))
    }

    /// Takes no more requests and lets what is being recorded be recorded. VMs of machines are left running; operations under way
    /// go on at the next start.
    pub async fn shutdown(self) {
        drop(self.serving);
        self.background.iter().for_each(tokio::task::JoinHandle::abort);
        self.shared.end().await;
        self.shared.vmm.close().await;
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
    /// The bus.
    #[error("can't serve the bus: {0}")]
    Bus(#[from] BusError),
    /// A recorded machine that can't be taken up again.
    #[error("can't take up machine {machine}: {reason}")]
    Machine {
        /// Which.
        machine: MachineId,
        /// Why.
        reason: String,
    },
}
