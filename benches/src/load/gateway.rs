//! The real gateway, with authentication and all, over a worker that has machines and can do
//! nothing with them.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use caddis_api::{ApiError, MachineId, RegionCode, WorkerId};
use caddis_bus::{
    Bus as _, Handler, InProcessBus,
    message::{
        self, ANNOUNCE_INTERVAL, ANNOUNCEMENTS, Announcement, Envelope, MachineRecord, WorkerReply,
        WorkerRequest, WorkerResult,
    },
    stream::{InProcessStreams, StreamService},
};
use caddis_catalog::{Catalog, SqliteStore};
use caddis_gateway::{Gateway, GatewayParts, Settings};
use serde_json::json;
use tokio::net::TcpListener;

use super::{Listening, announce, input_ends};

const WORKER: &str = "01K00000000000000000000000";
const APP: &str = "bench";

/// Serves so many machines until standard input ends.
///
/// # Errors
/// When it can't listen.
pub async fn serve(machines: usize) -> Result<()> {
    // What is logged of a request costs time in `caddis serve` too.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .with_writer(std::io::stderr)
        .init();
    let directory = tempfile::tempdir()?;
    let catalog = Catalog::new(Arc::new(SqliteStore::open(&directory.path().join("catalog.db"))?));
    let token = catalog.ensure_root_token().await?.context("a new catalog without a token")?;
    let (bus, worker) = (InProcessBus::new(), WorkerId::from_trusted(WORKER));
    let stub = Arc::new(Stub { machines });
    let _serving = bus.serve(&message::worker_subject(&worker), stub.clone()).await?;
    let announcing = (bus.clone(), worker.clone());
    tokio::spawn(async move {
        let (bus, worker) = announcing;
        let announcement = Announcement {
            worker,
            region: RegionCode::from_trusted("local"),
            incarnation: String::new(),
            sequence: 0,
            draining: false,
            volumes: 0,
        };
        let mut interval = tokio::time::interval(ANNOUNCE_INTERVAL);
        loop {
            interval.tick().await;
            let _ = bus.publish(ANNOUNCEMENTS, message::encode(&announcement)).await;
        }
    });
    let gateway = Gateway::new(GatewayParts {
        bus: Arc::new(bus),
        streams: Arc::new(InProcessStreams::new(worker.clone(), stub)),
        catalog,
        region: RegionCode::from_trusted("local"),
        regions: Vec::new(),
        workers: vec![worker],
        settings: Settings::default(),
    })
    .await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let path = format!("/v1/apps/{APP}/machines/{}", id(machines / 2));
    announce(&Listening { port: listener.local_addr()?.port(), path, token })?;
    Ok(gateway.serve(listener, input_ends()).await?)
}

/// Machines per page of a listing: what a message takes.
const PAGE: usize = 200;

/// Lists machines, and refuses all else.
struct Stub {
    machines: usize,
}

impl Stub {
    fn answer(&self, request: WorkerRequest) -> WorkerResult {
        let WorkerRequest::List { after } = request else {
            return Err(ApiError::internal("this worker only lists"));
        };
        let begin = after.map_or(0, |after| {
            usize::from_str_radix(after.as_str(), 16).unwrap_or(self.machines) + 1
        });
        let end = self.machines.min(begin.saturating_add(PAGE));
        let records: Result<_, _> = (begin..end).map(record).collect();
        let records = records.map_err(ApiError::internal)?;
        Ok(WorkerReply::Machines {
            records,
            more: end < self.machines,
            incarnation: String::new(),
            sequence: 0,
        })
    }
}

#[async_trait]
impl Handler for Stub {
    async fn handle(&self, request: Bytes) -> Bytes {
        let envelope = message::decode::<Envelope>(WORKER, &request);
        let answer =
            envelope.map_err(ApiError::internal).and_then(|envelope| self.answer(envelope.request));
        message::encode(&answer)
    }
}

#[async_trait]
impl StreamService for Stub {
    async fn call(&self, _: Request<Body>) -> Response<Body> {
        Response::new(Body::empty())
    }
}

fn id(number: usize) -> MachineId {
    MachineId::from_trusted(format!("{number:014x}"))
}

/// A machine that was created and started, as its worker publishes it.
fn record(number: usize) -> Result<MachineRecord, serde_json::Error> {
    let version = format!("01K{number:023}");
    let event =
        |number: usize, kind: &str, status: &str, source: &str, details: serde_json::Value| {
            let id = format!("01K{number:023}");
            json!({
                "id": id, "type": kind, "status": status, "source": source,
                "timestamp": 1_774_937_288_000_u64, "details": details,
            })
        };
    let timing = json!([
        { "where": "host", "step": "prepare_root", "ms": 1.2 },
        { "where": "guest", "step": "mount", "ms": 40.5 },
    ]);
    let started = json!({ "start_kind": "template", "timing": timing });
    serde_json::from_value(json!({
        "worker": WORKER,
        "epoch": 1,
        "config_revision": 1,
        "revision": 4,
        "app": APP,
        "launched": true,
        "lease": null,
        "machine": {
            "id": id(number),
            "name": format!("quiet-river-{number}"),
            "state": "started",
            "region": "local",
            "image_ref": {
                "registry": "registry.example.com",
                "repository": "team/web",
                "tag": "1",
                "digest": format!("sha256:{number:064x}"),
                "labels": null,
            },
            "instance_id": version,
            "version": version,
            "private_ip": "fdaa:0:1:a7b:1::2",
            "private_ipv4": "10.201.0.2",
            "created_at": "2026-03-31T06:08:08Z",
            "updated_at": "2026-03-31T06:08:08Z",
            "config": {
                "image": "registry.example.com/team/web:1",
                "env": { "PORT": "8080", "DATABASE_URL": "postgres://db.internal/web" },
                "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 256 },
                "restart": { "policy": "on-failure", "max_retries": 10 },
                "metadata": { "process_group": "web" },
            },
            "events": [
                event(3, "start", "started", "flyd", started),
                event(2, "start", "starting", "flyd", json!(null)),
                event(1, "launch", "created", "flyd", json!(null)),
                event(0, "launch", "creating", "user", json!(null)),
            ],
            "host_status": "ok",
            "isolation": "emulated",
            "start_kind": "template",
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_machines_follow_each_other_to_the_last() {
        let machines = 2 * PAGE + 1;
        let stub = Stub { machines };
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let reply = stub.answer(WorkerRequest::List { after }).unwrap();
            let WorkerReply::Machines { records, more, .. } = reply else { panic!("{reply:?}") };
            after = records.last().map(|last| last.machine.id.clone());
            seen.extend(records.into_iter().map(|record| record.machine.id));
            if !more {
                break;
            }
        }
        assert_eq!(seen, (0..machines).map(id).collect::<Vec<_>>());
    }
}
