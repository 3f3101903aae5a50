//! What machines with large configurations leave in the worker's memory.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use caddis_api::{ApiError, AppName, MachineId, MachineState, RawConfig, RegionCode};
use caddis_bus::{
    InProcessBus, WorkerClient,
    message::{Action, CreateMachine, WorkerReply, WorkerRequest, WorkerResult},
    stream::InProcessStreams,
};
use caddis_vmm::fake::FakeHost;
use caddis_worker::{
    Worker, WorkerParts,
    fake::{self, FakeImages, FakeNetwork},
};
use serde_json::{Value, json};

/// Counts the bytes that are allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TIMEOUT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

struct Site {
    client: WorkerClient,
    worker: Worker,
    _directory: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bus = Arc::new(InProcessBus::new());
        let (vms, network) = (FakeHost::default(), FakeNetwork::default());
        let drivers = fake::drivers(directory.path(), 20, &vms, &network, FakeImages).unwrap();
        let config = fake::config(directory.path());
        let parts = WorkerParts { bus: bus.clone(), drivers, hook: None };
        let worker = Worker::start(config, parts).await.unwrap();
        let streams = InProcessStreams::new(worker.id().clone(), worker.streams());
        let client = WorkerClient::new(bus, Arc::new(streams));
        Self { client, worker, _directory: directory }
    }

    async fn ask(&self, request: WorkerRequest) -> WorkerResult {
        self.client.ask(self.worker.id(), request, TIMEOUT).await.map_err(ApiError::from)
    }

    async fn get(&self, machine: &MachineId) -> caddis_api::Machine {
        match self.ask(WorkerRequest::Get { machine: machine.clone() }).await.unwrap() {
            WorkerReply::Machine { record } => record.machine,
            other => panic!("{other:?}"),
        }
    }

    async fn until(&self, machine: &MachineId, state: MachineState) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let shown = self.get(machine).await;
            if shown.state == state && shown.operation.is_none() {
                return;
            }
            assert!(Instant::now() < deadline, "not {state}: {:?}", shown.state);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn create(
        &self,
        number: u128,
        config: &RawConfig,
    ) -> Result<MachineId, caddis_api::ApiError> {
        let id = MachineId::random();
        let create = CreateMachine {
            id: id.clone(),
            name: format!("m{number}"),
            app: AppName::from_trusted("app"),
            org: "personal".to_owned(),
            region: RegionCode::from_trusted("local"),
            config: config.clone(),
            ipv6: (0xfdaa_0001_0002_u128 << 80 | number).into(),
            network: "fdaa:1:2::/48".to_owned(),
            placement_epoch: 1,
            skip_launch: false,
            cordoned: false,
            lease: None,
        };
        self.ask(WorkerRequest::Create(Box::new(create))).await.map(|_| id)
    }
}

fn config(more: Value) -> RawConfig {
    let mut config = json!({ "image": "image", "init": { "exec": ["sleep", "inf"] },
        "restart": { "policy": "no" } });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    RawConfig::from(config.as_object().unwrap().clone())
}

fn allocated() -> usize {
    ALLOCATED.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_are_in_memory_once_as_text_and_not_at_all_once_their_machines_are_gone() {
    let site = Site::new().await;
    // Many small values take most.
    let small: Vec<_> = (0..30_000).map(|_| 1).collect();
    let content = "A".repeat(5 * MIB);
    let files = json!([{ "guest_path": "/a", "raw_value": content }]);
    let large = config(json!({ "files": files, "unknown": small }));
    let text = large.size();
    // What the first of all leaves behind is not of its configuration.
    let first = site.create(1, &config(json!({}))).await.unwrap();
    site.until(&first, MachineState::Started).await;
    let before = allocated();

    let mut machines = Vec::new();
    for number in 0..6 {
        let machine = site.create(2 + number, &large).await.unwrap();
        site.until(&machine, MachineState::Started).await;
        machines.push(machine);
    }
    // One text per machine; beside them what requests that may come again were answered, which is
    // bounded in all, and what guests hold, which are fake here and in this process: the contents
    // of the files, as text.
    let (held, expected) = (allocated().saturating_sub(before), 6 * (text + 5 * MIB) + 8 * MIB);
    assert!(held < expected + 12 * MIB, "{} MiB of {}", held / MIB, expected / MIB);

    for machine in &machines {
        site.ask(WorkerRequest::Act {
            machine: machine.clone(),
            nonce: None,
            action: Action::Destroy { force: true },
        })
        .await
        .unwrap();
        site.until(machine, MachineState::Destroyed).await;
    }
    // Answers push each other out.
    for _ in 0..4 {
        site.ask(WorkerRequest::Act {
            machine: first.clone(),
            nonce: None,
            action: Action::GetLease,
        })
        .await
        .unwrap_err();
    }
    let left = allocated().saturating_sub(before);
    assert!(left < 20 * MIB, "{} MiB are left of six machines that are gone", left / MIB);
    // It is kept, though not in memory.
    assert_eq!(
        site.get(&machines[0]).await.config.unwrap().size(),
        text + r#","guest":{"cpu_kind":"shared","cpus":1,"memory_mb":256}"#.len()
    );
    site.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_more_unknown_fields_than_are_kept_is_refused() {
    let site = Site::new().await;
    let small: Vec<_> = (0..1_500_000).map(|_| 1).collect();
    let refused = site.create(1, &config(json!({ "unknown": small }))).await.unwrap_err();
    assert!(refused.code == caddis_api::ErrorCode::InvalidArgument, "{refused:?}");
    assert!(refused.message.contains("cannot exceed 65536"), "{}", refused.message);
    site.worker.shutdown().await;
}
