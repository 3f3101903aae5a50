//! A host whose worker can be ended and started again, with VMs that go on meanwhile.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use caddis_api::{AppName, MachineId, MachineState, RawConfig, RegionCode, VersionId};
use caddis_bus::{
    Bus as _, InProcessBus,
    message::{
        Action, CreateMachine, DELTAS, Delta, Envelope, MachineRecord, WorkerReply, WorkerRequest,
        WorkerResult, decode, encode, worker_subject,
    },
};
use caddis_vmm::fake::{FakeHost, Faults};
use caddis_worker::{
    Worker, WorkerParts,
    fake::{self, FakeImages, FakeNetwork},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tokio::{runtime::Handle, sync::watch};

/// Generous: what takes longer is not measured but reported as failed.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Clients that each ask for one thing after the other.
pub const AT_ONCE: usize = 16;

/// The host, and what was last heard of its machines.
pub struct Host {
    directory: PathBuf,
    bus: InProcessBus,
    vms: FakeHost,
    network: FakeNetwork,
    heard: watch::Receiver<HashMap<MachineId, MachineState>>,
}

impl Host {
    /// An empty one.
    pub async fn new(directory: &Path) -> Result<Self> {
        let (bus, vms) = (InProcessBus::new(), FakeHost::on(Handle::current()));
        // As with real VMs one waits for each start.
        vms.set_faults(Faults { pool: true, ..Faults::default() });
        let (sender, heard) = watch::channel(HashMap::new());
        let mut deltas = bus.subscribe(DELTAS).await?;
        tokio::spawn(async move {
            while let Some(published) = deltas.recv().await {
                let Ok(Delta { record, .. }) = decode(DELTAS, &published.payload) else { return };
                let settled = record.machine.operation.is_none();
                let state = if settled { record.machine.state } else { MachineState::Creating };
                sender.send_modify(|heard| {
                    heard.insert(record.machine.id, state);
                });
            }
        });
        Ok(Self {
            directory: directory.to_owned(),
            bus,
            vms,
            network: FakeNetwork::default(),
            heard,
        })
    }

    /// Starts a worker over what an earlier one has left.
    pub async fn worker(&self) -> Result<Worker> {
        let config = fake::config(&self.directory);
        let drivers = fake::drivers(&self.directory, 1000, &self.vms, &self.network, FakeImages)?;
        let parts = WorkerParts { bus: Arc::new(self.bus.clone()), drivers, hook: None };
        Ok(Worker::start(config, parts).await?)
    }

    async fn ask(&self, worker: &Worker, request: WorkerRequest) -> Result<WorkerReply> {
        let subject = worker_subject(worker.id());
        let request_id = VersionId::generate().to_string();
        let answer = self
            .bus
            .request(&subject, encode(&Envelope::new(request_id, TIMEOUT, request)), TIMEOUT)
            .await?;
        decode::<WorkerResult>(&subject, &answer)?.map_err(|error| anyhow::anyhow!(error.message))
    }

    /// Makes machines that rest.
    pub async fn create(&self, worker: &Worker, machines: usize) -> Result<Vec<MachineId>> {
        stream::iter(0..machines)
            .map(|number| self.create_one(worker, number))
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn create_one(&self, worker: &Worker, number: usize) -> Result<MachineId> {
        let config = json!({
            "image": "registry.example.com/team/web:1",
            "env": { "PORT": "8080", "DATABASE_URL": "postgres://db.internal/web" },
            "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 256 },
            "init": { "exec": ["sleep", "inf"] },
            "restart": { "policy": "no" },
        });
        let serde_json::Value::Object(config) = config else {
            bail!("a configuration is an object")
        };
        let id = MachineId::random();
        let create = CreateMachine {
            id: id.clone(),
            name: format!("machine-{number}"),
            app: AppName::from_trusted("app"),
            org: "personal".to_owned(),
            region: RegionCode::from_trusted("local"),
            config: RawConfig::from(config),
            ipv6: (0xfdaa_0001_0002_u128 << 80 | number as u128).into(),
            network: "fdaa:1:2::/48".to_owned(),
            placement_epoch: 1,
            skip_launch: true,
            cordoned: false,
            lease: None,
        };
        self.ask(worker, WorkerRequest::Create(Box::new(create))).await?;
        self.until(&id, MachineState::Created).await?;
        Ok(id)
    }

    /// Starts a machine, until it runs.
    pub async fn start(&self, worker: &Worker, machine: &MachineId) -> Result<()> {
        self.act(worker, machine, Action::Start).await?;
        self.until(machine, MachineState::Started).await
    }

    /// Stops a machine, until its VM is gone.
    pub async fn stop(&self, worker: &Worker, machine: &MachineId) -> Result<()> {
        self.act(worker, machine, Action::Stop { signal: None, timeout: None }).await?;
        self.until(machine, MachineState::Stopped).await
    }

    async fn act(&self, worker: &Worker, machine: &MachineId, action: Action) -> Result<()> {
        self.ask(worker, WorkerRequest::Act { machine: machine.clone(), nonce: None, action })
            .await
            .map(drop)
    }

    /// Has a machine's guest answer.
    pub async fn reach(&self, worker: &Worker, machine: &MachineId) -> Result<()> {
        self.ask(worker, WorkerRequest::Processes { machine: machine.clone() }).await.map(drop)
    }

    /// What the worker has.
    pub async fn list(&self, worker: &Worker) -> Result<Vec<MachineRecord>> {
        let mut all: Vec<MachineRecord> = Vec::new();
        loop {
            let after = all.last().map(|record| record.machine.id.clone());
            match self.ask(worker, WorkerRequest::List { after }).await? {
                WorkerReply::Machines { records, more, .. } => {
                    all.extend(records);
                    if !more {
                        return Ok(all);
                    }
                }
                other => bail!("a list was answered with {other:?}"),
            }
        }
    }

    async fn until(&self, machine: &MachineId, state: MachineState) -> Result<()> {
        let mut heard = self.heard.clone();
        let reached = heard.wait_for(|heard| heard.get(machine) == Some(&state));
        let reached = tokio::time::timeout(TIMEOUT, reached).await;
        reached.with_context(|| format!("machine {machine} did not become {state}"))??;
        Ok(())
    }
}
