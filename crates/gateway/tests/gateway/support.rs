//! The real router over the real catalog and bus, and a scripted worker.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod contract;
pub mod facts;
pub mod peers;
pub mod table;
pub mod worker;

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use caddis_api::{
    AppName, MachineId, MachineState, RegionCode, VolumeId,
    traffic::{AppTraffic, MachineTraffic, TrafficDecision},
};
use caddis_bus::{InProcessBus, Serving, stream::InProcessStreams};
use caddis_catalog::{Access, Catalog, NewVolume, PERSONAL, SqliteStore, TokenRecord, TokenScope};
use caddis_gateway::{Gateway, GatewayParts, Settings, TrafficInfo, TrafficSettings};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub use contract::CONTRACT;
pub use worker::FakeWorker;

/// Generous, for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn error(&self) -> String {
        let body = self.json();
        assert_eq!(body["request_id"], self.headers["fly-request-id"].to_str().unwrap());
        assert_eq!(self.headers["content-type"], "application/json");
        body["error"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }
}

pub struct Fixture {
    pub worker: FakeWorker,
    pub catalog: Catalog,
    pub gateway: Gateway,
    pub router: Router,
    pub token: String,
    pub serving: Vec<Serving>,
    pub directory: tempfile::TempDir,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with(Self::settings(), |_| {}).await
    }

    /// With egress addresses, and with WireGuard.
    pub fn settings() -> Settings {
        let pools = ["203.0.113.64/28", "2001:db8:1::e:0/112"];
        let egress_addresses = pools.iter().map(|pool| pool.parse().unwrap()).collect();
        let traffic = TrafficSettings { egress_addresses, ..TrafficSettings::default() };
        Settings { traffic, wireguard: Some(Arc::new(peers::Known)), ..Settings::default() }
    }

    pub async fn with(settings: Settings, prepare: impl FnOnce(&FakeWorker)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("catalog.db")).unwrap();
        Self::over(Catalog::new(Arc::new(store)), directory, settings, prepare).await
    }

    /// One with this catalog.
    pub async fn over(
        catalog: Catalog,
        directory: tempfile::TempDir,
        settings: Settings,
        prepare: impl FnOnce(&FakeWorker),
    ) -> Self {
        let token = catalog.ensure_root_token().await.unwrap().unwrap();
        let worker = FakeWorker::new(InProcessBus::new());
        prepare(&worker);
        let serving = worker.serve("local").await;
        let gateway = gateway(&worker, &catalog, settings).await;
        let router = gateway.router();
        Self { worker, catalog, gateway, router, token, serving, directory }
    }

    /// A second gateway over the same catalog and worker, as after a restart.
    pub async fn restarted(&self) -> Gateway {
        self.restarted_with(Settings::default()).await
    }

    pub async fn restarted_with(&self, settings: Settings) -> Gateway {
        gateway(&self.worker, &self.catalog, settings).await
    }

    /// Sends a request. The answer must be one that the OpenAPI document promises.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        Self::send_to(&self.router, request).await
    }

    /// The same, to another gateway.
    pub async fn send_to(router: &Router, request: Request<Body>) -> Answer {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let media = parts.headers.get("content-type").map_or("", |value| value.to_str().unwrap());
        CONTRACT.check((&method, &path), parts.status, media, &text);
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub fn request(&self, line: &str) -> axum::http::request::Builder {
        self.request_by(&self.token, line)
    }

    /// The same with another token.
    pub fn request_by(&self, token: &str, line: &str) -> axum::http::request::Builder {
        let (method, uri) = line.split_once(' ').unwrap();
        Request::builder()
            .method(method)
            .uri(uri)
            .header("authorization", format!("Bearer {token}"))
    }

    /// Has a token, which is its own name, be good for one app.
    pub fn accept(&self, token: &str, app: &str, access: Access) {
        let scope = TokenScope::App { name: AppName::from_trusted(app), access };
        let record =
            TokenRecord { name: token.to_owned(), organization: PERSONAL.to_owned(), scope };
        self.catalog.accept_token(token, record);
    }

    /// `GET /path`, without a body.
    pub async fn call(&self, line: &str) -> Answer {
        self.send(self.request(line).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, body: impl ToString) -> Answer {
        self.send(self.request(&format!("POST {path}")).body(Body::from(body.to_string())).unwrap())
            .await
    }

    pub async fn put(&self, path: &str, body: impl ToString) -> Answer {
        let request = self.request(&format!("PUT {path}"));
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    pub async fn with_nonce(&self, line: &str, nonce: &str) -> Answer {
        let request = self.request(line).header("fly-machine-lease-nonce", nonce);
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub async fn app(&self, name: &str) {
        let answer = self.post("/v1/apps", json!({ "name": name, "org_slug": "personal" })).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
    }

    pub async fn machine(&self, app: &str, name: &str) -> MachineId {
        let answer = self
            .post(
                &format!("/v1/apps/{app}/machines"),
                json!({ "name": name, "config": { "image": "nginx" } }),
            )
            .await;
        answer.ok()["id"].as_str().unwrap().parse().unwrap()
    }

    pub async fn volume(&self, app: &str, name: &str) -> VolumeId {
        let made = self.post(&format!("/v1/apps/{app}/volumes"), json!({ "name": name })).await;
        made.ok()["id"].as_str().unwrap().parse().unwrap()
    }

    /// Has a volume of the app `a` with this id be there.
    pub async fn volume_of_id(&self, id: &str) {
        let new = NewVolume {
            id: Some(id.parse().unwrap()),
            app: AppName::from_trusted("a"),
            name: "data".to_owned(),
            worker: self.worker.id.clone(),
            region: RegionCode::from_trusted("local"),
        };
        self.catalog.place_volume(new).await.unwrap();
        self.worker.add_volume("a", id);
        self.worker.announce("local").await;
        let line = format!("GET /v1/apps/a/volumes/{id}");
        let known = async {
            while self.call(&line).await.status != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, known).await.unwrap();
    }

    pub async fn machine_with(&self, app: &str, mounts: Value) -> Answer {
        let config = json!({ "image": "nginx", "mounts": mounts });
        self.post(&format!("/v1/apps/{app}/machines"), json!({ "config": config })).await
    }

    /// Whether the catalog has it as deleted.
    #[expect(clippy::disallowed_methods, reason = "looks at what is behind the API")]
    pub async fn is_deleted(&self, volume: &VolumeId) -> bool {
        self.catalog.volume(volume).await.unwrap().unwrap().deleted
    }

    /// Whether the catalog has the machine's name as free.
    pub async fn is_released(&self, machine: &MachineId) -> bool {
        self.catalog.placement(machine).await.unwrap().is_none_or(|placement| placement.released)
    }

    /// An app `a` with a machine `m` that runs.
    pub async fn started(&self) -> MachineId {
        self.app("a").await;
        let id = self.machine("a", "m").await;
        self.worker.turn(&id, MachineState::Started, "start").await;
        self.call(&format!("GET /v1/apps/a/machines/{id}/wait")).await.ok();
        id
    }

    /// Waits until `GET` of the app is 404, by waiting for the machines and asking again as the
    /// catalog moves on.
    #[expect(clippy::disallowed_methods, reason = "looks at what is behind the API")]
    pub async fn until_gone(&self, app: &str) {
        let gone = async {
            while self.catalog.app(app).await.unwrap().is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, gone).await.unwrap();
    }
}

/// A proxy that knows of the machines of the app `a`.
struct KnownTraffic(FakeWorker);

impl fmt::Debug for KnownTraffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownTraffic")
    }
}

impl TrafficInfo for KnownTraffic {
    fn traffic(&self, app: &str) -> Option<AppTraffic> {
        let decision = TrafficDecision {
            what: "start".to_owned(),
            why: "a request came".to_owned(),
            at: "2026-03-31T06:08:08.000Z".to_owned(),
        };
        let known = MachineTraffic { waiting: 3, decision: Some(decision), ..Default::default() };
        let state = self.0.state();
        let machines = state.machines.keys().map(|id| (id.clone(), known.clone())).collect();
        let errors = [("PR01".to_owned(), 2)].into();
        let known = AppTraffic { waiting: 3, errors, machines, ..AppTraffic::default() };
        (app == "a").then_some(known)
    }
}

async fn gateway(worker: &FakeWorker, catalog: &Catalog, settings: Settings) -> Gateway {
    let parts = GatewayParts {
        bus: Arc::new(worker.bus.clone()),
        streams: Arc::new(InProcessStreams::new(worker.id.clone(), Arc::new(worker.clone()))),
        catalog: catalog.clone(),
        region: RegionCode::from_trusted("local"),
        regions: Vec::new(),
        workers: vec![worker.id.clone()],
        settings: Settings {
            traffic: TrafficSettings {
                info: Some(Arc::new(KnownTraffic(worker.clone()))),
                ..settings.traffic.clone()
            },
            ..settings
        },
    };
    Gateway::new(parts).await.unwrap()
}
