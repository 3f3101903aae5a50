//! A host with a worker that can be ended and started again, as a server is.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use caddis_api::{
    ApiError, AppName, LeaseNonce, MachineId, MachineState, RawConfig, RegionCode,
    event::{ExitDetails, MachineEvent},
};
use caddis_bus::{
    Bus as _, InProcessBus,
    message::{
        Action, CreateMachine, DELTAS, Delta, Envelope, MachineRecord, WorkerReply, WorkerRequest,
        WorkerResult, decode, encode, worker_subject,
    },
};
use caddis_guest_protocol::host::Pace;
use caddis_view::{View, ViewSettings};
use caddis_vmm::{SlotPool, fake::FakeHost};
use caddis_worker::{
    Clock, Drivers, Worker, WorkerConfig, WorkerError, WorkerParts,
    fake::{self, FakeExports, FakeImages, FakeNetwork, FakeProber},
};
use serde_json::{Value, json};
use tokio::{
    runtime::{Handle, Runtime},
    sync::watch,
};

use crate::sabotage::FaultInjector;

mod checks;
mod snapshots;
mod volumes;

/// Generous, for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

pub use snapshots::restored;
pub use volumes::{mounted, new_volume};

const MEMORY_MIB: u64 = 2048;

/// A configuration of a machine that runs until it is stopped, with more.
pub fn config(more: Value) -> RawConfig {
    let mut config = json!({ "image": "image", "init": { "exec": ["sleep", "inf"] },
        "restart": { "policy": "no" } });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    RawConfig::from(config.as_object().unwrap().clone())
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.worker.take();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a listener on the bus has heard of the worker that spoke last.
struct Heard {
    incarnation: String,
    sequence: u64,
    records: HashMap<MachineId, MachineRecord>,
    /// Puts together what deltas tell one after the other.
    view: View,
}

impl Heard {
    fn of(incarnation: String) -> Self {
        let settings = ViewSettings {
            workers: Vec::new(),
            region: RegionCode::from_trusted("local"),
            suspected_after: TIMEOUT,
            unreachable_after: TIMEOUT,
            destroyed_retention: TIMEOUT,
        };
        Self { incarnation, sequence: 0, records: HashMap::new(), view: View::new(settings) }
    }
}

pub struct Fixture {
    directory: tempfile::TempDir,
    pub host: FakeHost,
    pub network: FakeNetwork,
    /// What health checks find.
    pub prober: FakeProber,
    pub slots: Option<SlotPool>,
    pub boot_id: String,
    /// The clock of the host.
    pub clock: Clock,
    /// How the next worker looks after its guests.
    pub pace: Pace,
    /// VMs that the next worker launches at once.
    pub launch_concurrency: usize,
    /// Space that the next worker has for volumes, GiB.
    pub volume_limit: Option<u64>,
    /// What snapshots find on volumes.
    pub exports: FakeExports,
    /// The `qemu-img` of the next worker, if not the host's.
    qemu_img: Option<PathBuf>,
    bus: InProcessBus,
    worker: Option<Worker>,
    /// What the worker runs in: its death is the end of this.
    runtime: Option<Runtime>,
    pub injector: Arc<FaultInjector>,
    heard: watch::Receiver<Heard>,
    next: AtomicU64,
}

impl Fixture {
    pub async fn new() -> Self {
        let bus = InProcessBus::new();
        let (sender, heard) = watch::channel(Heard::of(String::new()));
        let mut deltas = bus.subscribe(DELTAS).await.unwrap();
        tokio::spawn(async move {
            while let Some(published) = deltas.recv().await {
                let delta: Delta = decode(DELTAS, &published.payload).unwrap();
                sender.send_modify(|heard| {
                    if heard.incarnation != delta.incarnation {
                        *heard = Heard::of(delta.incarnation);
                    }
                    heard.sequence = delta.sequence;
                    let shown = heard.view.apply(delta.record.clone());
                    let record = shown.map_or(delta.record, |shown| shown.record.clone());
                    heard.records.insert(record.machine.id.clone(), record);
                });
            }
        });
        let mut fixture = Self {
            directory: tempfile::tempdir().unwrap(),
            host: FakeHost::on(Handle::current()),
            network: FakeNetwork::default(),
            prober: FakeProber::default(),
            slots: None,
            boot_id: "first".to_owned(),
            clock: Clock::default(),
            pace: Pace::default(),
            launch_concurrency: 1024,
            volume_limit: None,
            exports: FakeExports::default(),
            qemu_img: None,
            bus,
            worker: None,
            runtime: None,
            injector: Arc::default(),
            heard,
            next: AtomicU64::new(1),
        };
        fixture.start().await;
        fixture
    }

    /// Starts a worker over what an earlier one has left. A tap is there as long as its VM: of
    /// those that were attached the worker finds the ones it adopts.
    pub async fn start(&mut self) {
        self.try_start().await.unwrap();
    }

    /// The same, where it may be refused.
    pub async fn try_start(&mut self) -> Result<(), WorkerError> {
        let before = self.heard.borrow().incarnation.clone();
        self.network.forget();
        let config = WorkerConfig {
            memory_mib: Some(MEMORY_MIB),
            cpu_overcommit: 100.0,
            disk_overcommit: 100.0,
            restart_concurrency: 2,
            launch_concurrency: self.launch_concurrency,
            destroyed_retention: Duration::from_secs(60),
            boot_id: self.boot_id.clone(),
            clock: self.clock.clone(),
            guest_pace: self.pace,
            ..fake::config(self.directory.path())
        };
        let drivers =
            fake::drivers(self.directory.path(), 50, &self.host, &self.network, FakeImages)
                .unwrap();
        let Drivers { vmm, images, network, volumes, snapshots, .. } = drivers;
        drop(volumes);
        let volumes = fake::volumes(self.directory.path(), |config| {
            config.limit = self.volume_limit;
            if let Some(program) = &self.qemu_img {
                config.qemu_img.clone_from(program);
            }
        })
        .unwrap();
        let prober = Arc::new(self.prober.clone());
        let exports = Arc::new(self.exports.clone());
        let drivers = Drivers { vmm, images, network, prober, volumes, snapshots, exports };
        self.slots = Some(fake::slots_of(self.directory.path(), 50).unwrap());
        let parts = WorkerParts {
            bus: Arc::new(self.bus.clone()),
            drivers,
            hook: Some(self.injector.clone()),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let worker = runtime.spawn(Worker::start(config, parts)).await.unwrap();
        match worker {
            Ok(worker) => self.worker = Some(worker),
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        }
        self.runtime = Some(runtime);
        self.until_heard(&before).await;
        Ok(())
    }

    /// Waits until the listener knows what the worker took up: what it had heard of the one before
    /// may not be so.
    async fn until_heard(&self, before: &str) {
        let list = WorkerRequest::List { after: None };
        let Ok(WorkerReply::Machines { sequence, .. }) = self.ask(list).await else {
            panic!("no list")
        };
        let mut heard = self.heard.clone();
        let found = heard.wait_for(|heard| {
            sequence == 0 || heard.incarnation != before && heard.sequence >= sequence
        });
        tokio::time::timeout(TIMEOUT, found).await.unwrap().unwrap();
    }

    /// Ends the worker, wherever its machines are.
    pub async fn end(&mut self) {
        let (worker, runtime) = (self.worker.take().unwrap(), self.runtime.take().unwrap());
        runtime.spawn(worker.shutdown()).await.unwrap();
        runtime.shutdown_background();
    }

    /// Has the worker be gone from one instant to the next, as by `kill -9`: nothing it had begun
    /// is gone on with.
    pub async fn kill(&mut self) {
        let (worker, runtime) = (self.worker.take().unwrap(), self.runtime.take().unwrap());
        drop(worker);
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(TIMEOUT)).await.unwrap();
        // A commit that was on its way may still come, as it may when a process is killed in it.
        // SQLite removes the write-ahead log when nobody has the database open any more.
        let log = self.directory.path().join("worker/worker.db-wal");
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        while log.exists() {
            assert!(tokio::time::Instant::now() < deadline, "the database is still open");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Runs what the worker does for a request where the worker runs, so that it ends with it.
    async fn in_worker<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        self.runtime.as_ref().unwrap().spawn(work).await.unwrap()
    }

    /// Its stream endpoint.
    pub fn streams(&self) -> Arc<dyn caddis_bus::stream::StreamService> {
        self.worker.as_ref().unwrap().streams()
    }

    pub async fn ask(&self, request: WorkerRequest) -> WorkerResult {
        let id = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        self.ask_as(&id, request).await
    }

    pub async fn ask_as(&self, request_id: &str, request: WorkerRequest) -> WorkerResult {
        let mut envelope = Envelope::new(request_id.to_owned(), TIMEOUT, request);
        envelope.not_after = self.clock.unix_now() + TIMEOUT;
        self.ask_in(envelope).await
    }

    pub async fn ask_in(&self, envelope: Envelope) -> WorkerResult {
        self.ask_bytes(encode(&envelope)).await
    }

    pub async fn ask_bytes(&self, request: Bytes) -> WorkerResult {
        let subject = worker_subject(self.worker.as_ref().unwrap().id());
        let (bus, to) = (self.bus.clone(), subject.clone());
        let answer =
            self.in_worker(async move { bus.request(&to, request, TIMEOUT).await }).await.unwrap();
        let result: WorkerResult = decode(&subject, &answer).unwrap();
        if let Ok(
            WorkerReply::Created { record, .. }
            | WorkerReply::Started { record, .. }
            | WorkerReply::Updated { record, .. }
            | WorkerReply::Woken { record, .. }
            | WorkerReply::NotWoken { record, .. }
            | WorkerReply::Sleeping { record, .. }
            | WorkerReply::Done { record },
        ) = &result
        {
            // Who asks then reads no older state.
            self.until_that(&record.machine.id, |heard| heard.revision >= record.revision).await;
        }
        result
    }

    pub async fn act(&self, machine: &MachineId, action: Action) -> Result<WorkerReply, ApiError> {
        self.act_with(machine, None, action).await
    }

    pub async fn act_with(
        &self,
        machine: &MachineId,
        nonce: Option<LeaseNonce>,
        action: Action,
    ) -> Result<WorkerReply, ApiError> {
        self.ask(WorkerRequest::Act { machine: machine.clone(), nonce, action }).await
    }

    /// A machine that runs this, with more of a configuration.
    pub async fn try_create(&self, argv: &[&str], more: Value) -> Result<MachineId, ApiError> {
        self.create_with(argv, more, false).await
    }

    async fn create_with(
        &self,
        argv: &[&str],
        more: Value,
        skip_launch: bool,
    ) -> Result<MachineId, ApiError> {
        let id = MachineId::random();
        let mut config = config(more).fields();
        config
            .entry("init")
            .or_insert_with(|| json!({}))
            .as_object_mut()
            .unwrap()
            .insert("exec".to_owned(), json!(argv));
        self.create_as(&id, config.into(), skip_launch).await.map(|()| id)
    }

    /// Makes a machine of this id.
    pub async fn create_as(
        &self,
        id: &MachineId,
        config: RawConfig,
        skip_launch: bool,
    ) -> Result<(), ApiError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let create = CreateMachine {
            id: id.clone(),
            name: format!("m{number}"),
            app: AppName::from_trusted("app"),
            org: "personal".to_owned(),
            region: RegionCode::from_trusted("local"),
            config,
            ipv6: (0xfdaa_0001_0002_u128 << 80 | u128::from(number)).into(),
            network: "fdaa:1:2::/48".to_owned(),
            placement_epoch: 1,
            skip_launch,
            cordoned: false,
            lease: None,
        };
        self.ask(WorkerRequest::Create(Box::new(create))).await.map(drop)
    }

    /// A machine that was never booted.
    pub async fn create_resting(&self, more: Value) -> MachineId {
        let id = self.create_with(&["sleep", "inf"], more, true).await.unwrap();
        self.until(&id, MachineState::Created).await;
        id
    }

    /// The worker's database.
    pub fn database(&self) -> PathBuf {
        self.directory.path().join("worker/worker.db")
    }

    /// Has the time of all that is under way be over. Between two workers.
    pub fn let_deadlines_pass(&self) {
        let database = rusqlite::Connection::open(self.database()).unwrap();
        let text = "UPDATE machines SET record = json_set(record, '$.operation.deadline', 1)
                    WHERE record ->> '$.operation.deadline' IS NOT NULL";
        assert!(database.execute(text, []).unwrap() > 0, "nothing is under way");
    }

    pub async fn create(&self, argv: &[&str]) -> MachineId {
        self.try_create(argv, json!({})).await.unwrap()
    }

    /// A machine that runs until it is stopped.
    pub async fn started(&self) -> MachineId {
        let machine = self.create(&["sleep", "inf"]).await;
        self.until(&machine, MachineState::Started).await;
        machine
    }

    /// Waits until a machine is settled in a state.
    pub async fn until(&self, machine: &MachineId, state: MachineState) -> MachineRecord {
        self.until_that(machine, |record| {
            record.machine.state == state && record.machine.operation.is_none()
        })
        .await
    }

    pub async fn until_that(
        &self,
        machine: &MachineId,
        holds: impl Fn(&MachineRecord) -> bool,
    ) -> MachineRecord {
        self.until_named(machine, "", holds).await
    }

    /// What was last heard of a machine.
    pub fn record(&self, machine: &MachineId) -> Option<MachineRecord> {
        self.heard.borrow().records.get(machine).cloned()
    }

    pub async fn until_named(
        &self,
        machine: &MachineId,
        name: &str,
        holds: impl Fn(&MachineRecord) -> bool,
    ) -> MachineRecord {
        let mut heard = self.heard.clone();
        let found = heard.wait_for(|heard| heard.records.get(machine).is_some_and(&holds));
        if let Ok(heard) = tokio::time::timeout(TIMEOUT, found).await {
            return heard.unwrap().records[machine].clone();
        }
        panic!("{name}: not reached: {:#?}", self.heard.borrow().records.get(machine));
    }

    /// The exits of a machine, newest first.
    pub async fn exits(&self, machine: &MachineId) -> Vec<ExitDetails> {
        self.events(machine).await.iter().filter_map(|event| event.exit_details()).collect()
    }

    /// The events of a machine, newest first.
    pub async fn events(&self, machine: &MachineId) -> Vec<MachineEvent> {
        match self
            .ask(WorkerRequest::Events { machine: machine.clone(), limit: 100 })
            .await
            .unwrap()
        {
            WorkerReply::Events { events } => events,
            other => panic!("{other:?}"),
        }
    }

    /// A file of a machine.
    pub fn file(&self, machine: &MachineId, name: &str) -> PathBuf {
        self.directory.path().join("worker/machines").join(machine.as_str()).join(name)
    }
}
