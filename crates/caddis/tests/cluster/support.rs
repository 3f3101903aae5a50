//! Machines on hosts of the test's choice.

use caddis_api::{AppName, MachineId, RawConfig, RegionCode};
use caddis_bus::{
    Bus as _,
    message::{
        CreateMachine, Envelope, WorkerRequest, WorkerResult, decode, encode, worker_subject,
    },
};
use caddis_testkit::{
    DEADLINE,
    cluster::{Cluster, ClusterOptions, Node},
};
use serde_json::{Value, json};

pub const MACHINES: &str = "/v1/apps/app/machines";

/// A cluster with the app `app`.
pub async fn cluster(options: ClusterOptions) -> Cluster {
    let cluster = Cluster::new(options).await.unwrap();
    let app = json!({ "app_name": "app", "org_slug": "personal" });
    assert_eq!(cluster.call(0, "POST /v1/apps", app).await.unwrap().status, 201);
    cluster
}

/// A configuration of a machine that runs until it is stopped.
pub fn config() -> Value {
    json!({ "image": "image", "init": { "exec": ["sleep", "inf"] }, "restart": { "policy": "no" } })
}

/// Makes a machine where the gateway places it, and waits until it runs. Its id, and the number of
/// its host.
pub async fn started(cluster: &Cluster, config: Value) -> (String, u8) {
    let made =
        cluster.call(0, &format!("POST {MACHINES}"), json!({ "config": config })).await.unwrap();
    assert_eq!(made.status, 200, "{}", made.body);
    let id = made.body["id"].as_str().unwrap().to_owned();
    until_state(cluster, &id, "started").await;
    let placement = cluster.catalog.placements(None).await.unwrap();
    let placement =
        placement.into_iter().find(|placement| placement.machine.as_str() == id).unwrap();
    (id, cluster.number_of(placement.worker.as_str()).unwrap())
}

/// Makes a machine on this host, and waits until it runs.
pub async fn started_on(cluster: &Cluster, number: u8, config: Value) -> String {
    let placement = caddis_catalog::NewPlacement {
        app: AppName::from_trusted("app"),
        name: None,
        worker: cluster.worker(number).clone(),
        region: RegionCode::from_trusted("local"),
        request: None,
    };
    let placement = cluster.catalog.place(placement).await.unwrap();
    let id = placement.machine.clone();
    create(cluster, number, &id, placement.epoch, config).await.unwrap();
    until_state(cluster, id.as_str(), "started").await;
    id.to_string()
}

/// Has a worker make a machine of this id.
pub async fn create(
    cluster: &Cluster,
    number: u8,
    id: &MachineId,
    epoch: u64,
    config: Value,
) -> WorkerResult {
    let create = CreateMachine {
        id: id.clone(),
        name: format!("m{}", &id.as_str()[10..]),
        app: AppName::from_trusted("app"),
        org: "personal".to_owned(),
        region: RegionCode::from_trusted("local"),
        config: RawConfig::from(config.as_object().unwrap().clone()),
        ipv6: (0xfdaa_0001_0002_u128 << 80 | u128::from_str_radix(id.as_str(), 16).unwrap()).into(),
        network: "fdaa:1:2::/48".to_owned(),
        placement_epoch: epoch,
        skip_launch: false,
        cordoned: false,
        lease: None,
    };
    ask(cluster, number, &format!("create-{id}-{epoch}"), WorkerRequest::Create(Box::new(create)))
        .await
}

/// Asks a worker over the bus, under this request id.
pub async fn ask(
    cluster: &Cluster,
    number: u8,
    request_id: &str,
    request: WorkerRequest,
) -> WorkerResult {
    let envelope = Envelope::new(request_id.to_owned(), DEADLINE, request);
    let subject = worker_subject(cluster.worker(number));
    let bus = cluster.network.of(Node::Gateway(0));
    let answer = bus.request(&subject, encode(&envelope), DEADLINE).await.unwrap();
    decode(&subject, &answer).unwrap()
}

/// Waits until every gateway shows a machine at rest in a state.
pub async fn until_state(cluster: &Cluster, id: &str, state: &str) -> Value {
    let line = format!("GET {MACHINES}/{id}");
    let is_settled = |machine: &Value| machine["state"] == state && machine["operation"].is_null();
    cluster.until(0, &line, is_settled).await.unwrap()
}
