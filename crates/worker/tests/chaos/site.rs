//! A whole installation in one process, but for VMs, images and network: the real gateway on the
//! real catalog, the real worker on its real database, and between them a bus that may misbehave.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use caddis_api::{MachineState, RegionCode};
use caddis_bus::{
    AskWindow, Bus as _, InProcessBus,
    message::{
        Envelope, MachineRecord, Offer, Question, WorkerReply, WorkerRequest, WorkerResult, decode,
        encode, region_subject, worker_subject,
    },
    stream::InProcessStreams,
};
use caddis_catalog::{Catalog, SqliteStore};
use caddis_gateway::{Gateway, GatewayParts, Settings};
use caddis_vmm::{SlotPool, fake::FakeHost};
use caddis_worker::{
    Worker, WorkerConfig, WorkerParts,
    fake::{self, FakeImages, FakeNetwork},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt as _;

/// Generous, for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);
const MEMORY_MIB: u64 = 1 << 20;
/// How long the gateway waits for the worker, twice.
pub const DEADLINE: Duration = Duration::from_millis(750);
/// How long destroyed machines are remembered.
const RETENTION: Duration = Duration::from_secs(1);

pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

pub struct Site {
    pub host: FakeHost,
    pub network: FakeNetwork,
    slots: SlotPool,
    bus: InProcessBus,
    worker: Worker,
    router: Router,
    token: String,
    directory: tempfile::TempDir,
    next: AtomicU64,
    _gateway: Gateway,
}

impl Site {
    pub async fn new(bus: InProcessBus) -> Self {
        Self::keeping(bus, RETENTION).await
    }

    /// One that remembers destroyed machines for so long.
    pub async fn keeping(bus: InProcessBus, retention: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("catalog.db")).unwrap();
        let catalog = Catalog::new(Arc::new(store));
        let token = catalog.ensure_root_token().await.unwrap().unwrap();
        let (host, network) = (FakeHost::default(), FakeNetwork::default());
        let drivers = fake::drivers(directory.path(), 200, &host, &network, FakeImages).unwrap();
        let slots = fake::slots_of(directory.path(), 200).unwrap();
        let parts = WorkerParts { bus: Arc::new(bus.clone()), drivers, hook: None };
        let config = WorkerConfig {
            memory_mib: Some(MEMORY_MIB),
            destroyed_retention: retention,
            ..fake::config(directory.path())
        };
        let worker = Worker::start(config, parts).await.unwrap();
        let parts = GatewayParts {
            bus: Arc::new(bus.clone()),
            streams: Arc::new(InProcessStreams::new(worker.id().clone(), worker.streams())),
            catalog,
            region: RegionCode::from_trusted("local"),
            regions: Vec::new(),
            workers: vec![worker.id().clone()],
            settings: Settings {
                create_deadline: DEADLINE,
                request_deadline: DEADLINE,
                destroyed_retention: retention,
                ..Settings::default()
            },
        };
        let gateway = Gateway::new(parts).await.unwrap();
        let router = gateway.router();
        let next = AtomicU64::new(0);
        let site = Self {
            host,
            network,
            slots,
            bus,
            worker,
            router,
            token,
            directory,
            next,
            _gateway: gateway,
        };
        let app = json!({ "name": "app", "org_slug": "personal" }).to_string();
        assert_eq!(site.send("POST", "/v1/apps", None, &app).await.status, 201);
        site
    }

    /// Ends all of it, and gives what is left of the directory.
    pub async fn end(self) {
        self.worker.shutdown().await;
    }

    /// A request of a client.
    pub async fn send(&self, method: &str, path: &str, nonce: Option<&str>, body: &str) -> Answer {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("authorization", format!("Bearer {}", self.token));
        let request = match nonce {
            Some(nonce) => request.header("fly-machine-lease-nonce", nonce),
            None => request,
        };
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Answer { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
    }

    /// Asks the worker, as often as it takes.
    async fn ask(&self, request: WorkerRequest) -> WorkerReply {
        let subject = worker_subject(self.worker.id());
        let request_id = format!("test-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let payload = encode(&Envelope::new(request_id, TIMEOUT, request));
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.bus.request(&subject, payload.clone(), Duration::from_secs(1)).await {
                Ok(answer) => return decode::<WorkerResult>(&subject, &answer).unwrap().unwrap(),
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
        }
    }

    /// What the worker knows of all machines that are not forgotten.
    pub async fn machines(&self) -> Vec<MachineRecord> {
        let mut all: Vec<MachineRecord> = Vec::new();
        loop {
            let after = all.last().map(|record| record.machine.id.clone());
            match self.ask(WorkerRequest::List { after }).await {
                WorkerReply::Machines { records, more, .. } => {
                    all.extend(records);
                    if !more {
                        return all;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Memory promised to machines, MiB.
    pub async fn promised(&self) -> u64 {
        let question = Question::Place {
            cpus: 0,
            memory_mib: 0,
            disk_gib: 0,
            volume_gib: 0,
            image: "image".to_owned(),
        };
        let window = AskWindow { quiet: Duration::from_secs(1), deadline: Duration::from_secs(1) };
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let offers = self
                .bus
                .ask_all(
                    &region_subject(&RegionCode::from_trusted("local")),
                    encode(&question),
                    window,
                )
                .await
                .unwrap();
            if let Some(offer) = offers.first() {
                return MEMORY_MIB - decode::<Offer>("offer", offer).unwrap().free_memory_mib;
            }
            assert!(Instant::now() < deadline);
        }
    }

    /// No machine is in a transient state for longer than it may be.
    pub async fn assert_in_time(&self) {
        let now = jiff::Timestamp::now();
        for record in self.machines().await {
            let machine = record.machine;
            assert_eq!(machine.operation.is_none(), machine.state.is_settled(), "{machine:?}");
            if let Some(operation) = machine.operation {
                let deadline: jiff::Timestamp = operation.deadline.parse().unwrap();
                assert!(
                    now.duration_since(deadline).as_secs() < 30,
                    "{} is late: {operation:?}",
                    machine.id
                );
            }
        }
        assert_eq!(self.host.collisions(), 0, "a second VM of a machine was to be launched");
    }

    /// Waits until nothing is under way, and what the host holds is what the machines need.
    pub async fn settle(&self) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.assert_in_time().await;
            let machines = self.machines().await;
            let running =
                machines.iter().filter(|record| record.machine.state == MachineState::Started);
            let running: BTreeSet<_> =
                running.map(|record| record.machine.id.to_string()).collect();
            let vms: BTreeSet<_> = self.host.running().into_iter().collect();
            let (taps, slots) = (self.network.taps().len(), self.slots.list().unwrap().len());
            // A start hurries one that waits for its turn to be restarted.
            let waits = |record: &&MachineRecord| {
                record.machine.operation.as_ref().is_some_and(|o| o.step == "back_off")
            };
            for record in machines.iter().filter(waits) {
                self.send("POST", &(path(record.machine.id.as_str()) + "/start"), None, "").await;
            }
            let settled = machines.iter().all(|record| record.machine.operation.is_none());
            if settled && vms == running && [taps, slots] == [running.len(); 2] {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "settled: {settled}, to run: {running:?}, VMs: {vms:?}, {taps} taps, {slots} slots"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Destroys all machines, and waits until nothing is left of them, in memory and on the disk.
    pub async fn destroy_all(&self) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let machines = self.machines().await;
            if machines.is_empty() {
                break;
            }
            for record in
                machines.iter().filter(|record| record.machine.state != MachineState::Destroyed)
            {
                // Refused for as long as someone holds its lease.
                self.send(
                    "DELETE",
                    &format!("{}?force=true", path(record.machine.id.as_str())),
                    None,
                    "",
                )
                .await;
            }
            assert!(Instant::now() < deadline, "left: {machines:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The last change of one may have been lost; the gateway hears of it with the next that
        // comes.
        while self.listed().await > 0 {
            assert!(
                Instant::now() < deadline,
                "the gateway still shows {} machines",
                self.listed().await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.settle().await;
        assert_eq!(self.promised().await, 0, "something is promised to nobody");
        for place in ["machines", "logs"] {
            let left = || list(&self.directory.path().join("worker").join(place));
            // Files go after the machine that they are of, which nobody waits for.
            while !left().is_empty() {
                assert!(Instant::now() < deadline, "left in {place}: {:?}", left());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// How many machines the gateway shows that are not destroyed.
    async fn listed(&self) -> usize {
        self.send("GET", MACHINES, None, "").await.body.as_array().map_or(0, Vec::len)
    }

    /// How many machines the gateway knows, destroyed ones among them. It forgets when it hears of
    /// others.
    pub async fn shown(&self) -> usize {
        let list = self.send("GET", &format!("{MACHINES}?include_deleted=true"), None, "").await;
        list.body.as_array().unwrap().len()
    }

    /// Rows in the worker's tables of machines, events and versions.
    pub fn rows(&self) -> [i64; 3] {
        let database =
            rusqlite::Connection::open(self.directory.path().join("worker/worker.db")).unwrap();
        ["machines", "events", "versions"].map(|table| {
            database
                .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
                .unwrap()
        })
    }

    /// Bytes of both databases, with their logs.
    pub fn database_bytes(&self) -> u64 {
        let files = list(&self.directory.path().join("worker"))
            .into_iter()
            .chain(list(self.directory.path()));
        let files = files.filter(|path| path.to_string_lossy().contains(".db"));
        files.map(|path| path.metadata().map_or(0, |metadata| metadata.len())).sum()
    }
}

/// Where the app's machines are.
pub const MACHINES: &str = "/v1/apps/app/machines";

pub fn path(machine: &str) -> String {
    format!("{MACHINES}/{machine}")
}

fn list(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}
