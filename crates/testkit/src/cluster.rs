//! Several gateways and workers in one process, over hosts that pretend: what is to be known about
//! several hosts is tried here. Beside `caddis serve` this is where the parts of a server are put
//! together.
//!
//! ```text
//!   Gateway(0)  Gateway(1) …          one catalog
//!        └───┬──────┘
//!         Network: cut, lossy, late, with clocks that differ
//!        ┌───┴──────┬─────────┐
//!   Worker(0)  Worker(1)  Worker(2) …   each in a runtime of its own, so that it can end at once
//! ```

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use axum::{Router, body::Body, http::Request};
use caddis_api::{RegionCode, WorkerId};
use caddis_catalog::{Catalog, SqliteStore};
use caddis_gateway::{Gateway, GatewayParts, Settings};
use caddis_vmm::fake::FakeHost;
use caddis_worker::{
    StepHook, Worker, WorkerConfig, WorkerParts,
    fake::{self, FakeImages, FakeNetwork},
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::runtime::{Handle, Runtime};
use tower::ServiceExt as _;

mod network;

pub use network::{Network, Node, Port};

/// What of a cluster tests choose.
#[derive(Clone)]
pub struct ClusterOptions {
    /// How many gateways.
    pub gateways: u8,
    /// How many workers.
    pub workers: u8,
    /// Of the gateways.
    pub settings: Settings,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        let settings = Settings {
            suspected_after: Duration::from_millis(2500),
            unreachable_after: Duration::from_secs(5),
            request_deadline: Duration::from_secs(5),
            ..Settings::default()
        };
        Self { gateways: 1, workers: 3, settings }
    }
}

/// The cluster; dropping it is the end of it and of its machines.
pub struct Cluster {
    /// What connects the nodes.
    pub network: Network,
    /// Names and placements.
    pub catalog: Catalog,
    token: String,
    options: ClusterOptions,
    gateways: Vec<(Gateway, Router)>,
    workers: Vec<Host>,
    directory: tempfile::TempDir,
}

/// A host and the worker on it.
struct Host {
    directory: PathBuf,
    vms: FakeHost,
    network: FakeNetwork,
    id: WorkerId,
    running: Option<(Worker, Runtime)>,
}

/// An answer of a gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON, or null where it is none.
    pub body: Value,
}

impl Cluster {
    /// Starts one. Its machines' VMs end with the current runtime.
    ///
    /// # Errors
    /// When a part of it can't begin.
    pub async fn new(options: ClusterOptions) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let catalog =
            Catalog::new(Arc::new(SqliteStore::open(&directory.path().join("catalog.db"))?));
        let token = catalog.ensure_root_token().await?.context("the token of a new catalog")?;
        let mut cluster = Self {
            network: Network::default(),
            catalog,
            token,
            gateways: Vec::new(),
            workers: Vec::new(),
            directory,
            options: options.clone(),
        };
        for number in 0..options.workers {
            let directory = cluster.directory.path().join(format!("worker-{number}"));
            let (vms, network) = (FakeHost::on(Handle::current()), FakeNetwork::default());
            let host =
                Host { directory, vms, network, id: WorkerId::from_trusted(""), running: None };
            cluster.workers.push(host);
            cluster.start(number).await?;
        }
        for _ in 0..options.gateways {
            cluster.add_gateway().await?;
        }
        Ok(cluster)
    }

    /// Adds a gateway, as one that is started later.
    ///
    /// # Errors
    /// When it can't begin.
    pub async fn add_gateway(&mut self) -> Result<()> {
        let port = self.network.of(Node::Gateway(u8::try_from(self.gateways.len())?));
        let gateway = Gateway::new(GatewayParts {
            bus: Arc::new(port.clone()),
            streams: Arc::new(port),
            catalog: self.catalog.clone(),
            region: RegionCode::from_trusted("local"),
            regions: Vec::new(),
            workers: self.workers.iter().map(|host| host.id.clone()).collect(),
            settings: self.options.settings.clone(),
        });
        let gateway = gateway.await?;
        let router = gateway.router();
        self.gateways.push((gateway, router));
        Ok(())
    }

    /// Starts a worker that is not there, over what it has left.
    ///
    /// # Errors
    /// When it can't begin.
    pub async fn start(&mut self, number: u8) -> Result<()> {
        self.start_with(number, None).await
    }

    /// The same with something that befalls its steps.
    ///
    /// # Errors
    /// When it can't begin.
    pub async fn start_with(&mut self, number: u8, hook: Option<Arc<dyn StepHook>>) -> Result<()> {
        let host = &mut self.workers[usize::from(number)];
        let node = Node::Worker(number);
        host.network.forget();
        let drivers = fake::drivers(&host.directory, 50, &host.vms, &host.network, FakeImages)?;
        let config = WorkerConfig { memory_mib: Some(16 * 1024), ..fake::config(&host.directory) };
        let parts = WorkerParts { bus: Arc::new(self.network.of(node)), drivers, hook };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        match runtime.spawn(Worker::start(config, parts)).await? {
            Ok(worker) => {
                host.id = worker.id().clone();
                self.network.connect(&host.id, node, worker.streams(), runtime.handle().clone());
                host.running = Some((worker, runtime));
                Ok(())
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error.into())
            }
        }
    }

    /// A worker is gone from one instant to the next. Its VMs go on.
    ///
    /// # Errors
    /// When it is not there, or does not end.
    pub async fn kill(&mut self, number: u8) -> Result<()> {
        let host = &mut self.workers[usize::from(number)];
        let (worker, runtime) = host.running.take().context("the worker is not there")?;
        self.network.disconnect(&host.id);
        drop(worker);
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(crate::DEADLINE)).await?;
        // A commit that was on its way may still come; the write-ahead log goes when nobody has the
        // database open.
        let log = host.directory.join("worker/worker.db-wal");
        let closed = async {
            while log.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(crate::DEADLINE, closed).await.context("its database is still open")
    }

    /// Id of a worker.
    pub fn worker(&self, number: u8) -> &WorkerId {
        &self.workers[usize::from(number)].id
    }

    /// The VMs of a worker's host.
    pub fn vms(&self, number: u8) -> &FakeHost {
        &self.workers[usize::from(number)].vms
    }

    /// Which worker has this id.
    pub fn number_of(&self, worker: &str) -> Option<u8> {
        let position = self.workers.iter().position(|host| host.id.as_str() == worker)?;
        u8::try_from(position).ok()
    }

    /// Sends a request to a gateway: `GET /path`, with a body unless that is null.
    ///
    /// # Errors
    /// When the request can't be made, or its answer not be read.
    pub async fn call(&self, gateway: u8, line: &str, body: Value) -> Result<Answer> {
        self.call_with(gateway, line, body, &[]).await
    }

    /// The same with more header fields.
    ///
    /// # Errors
    /// When the request can't be made, or its answer not be read.
    pub async fn call_with(
        &self,
        gateway: u8,
        line: &str,
        body: Value,
        fields: &[(&str, &str)],
    ) -> Result<Answer> {
        let (method, path) = line.split_once(' ').context("method and path")?;
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("authorization", format!("Bearer {}", self.token));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let router = self.gateways[usize::from(gateway)].1.clone();
        let response = router.oneshot(request.body(body)?).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
    }

    /// Asks a gateway until the answer is as wanted.
    ///
    /// # Errors
    /// When it never is.
    pub async fn until(
        &self,
        gateway: u8,
        line: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = async {
            loop {
                last = self.call(gateway, line, Value::Null).await?.body;
                if wanted(&last) {
                    return Ok::<_, anyhow::Error>(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = tokio::time::timeout(crate::DEADLINE, found).await;
        found.with_context(|| format!("{line} is never as wanted: {last:#}"))??;
        Ok(last)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for host in &mut self.workers {
            if let Some((worker, runtime)) = host.running.take() {
                drop(worker);
                runtime.shutdown_background();
            }
        }
    }
}
