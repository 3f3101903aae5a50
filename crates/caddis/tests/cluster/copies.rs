//! A machine that was placed elsewhere runs there alone.

use caddis_api::{MachineId, RegionCode};
use caddis_bus::message::{Action, WorkerReply, WorkerRequest};
use caddis_testkit::cluster::{Cluster, ClusterOptions};
use serde_json::{Value, json};

use crate::support::{MACHINES, ask, cluster, config, create, started_on, until_state};

/// Waits until a worker's copy is stopped.
async fn until_copy_rests(cluster: &Cluster, number: u8, id: &MachineId) -> Value {
    loop {
        let get = WorkerRequest::Get { machine: id.clone() };
        match ask(cluster, number, "look", get).await.unwrap() {
            WorkerReply::Machine { record } if record.machine.state.as_str() == "stopped" => {
                return json!(record.machine);
            }
            WorkerReply::Machine { .. } => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    }
}

/// That its copy was stopped for good, and the machine runs on the other host.
async fn is_alone_on(cluster: &Cluster, id: &str, number: u8, stale: u8) {
    let machine: MachineId = id.parse().unwrap();
    let copy =
        tokio::time::timeout(caddis_testkit::DEADLINE, until_copy_rests(cluster, stale, &machine))
            .await
            .unwrap();
    let told = copy["events"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["type"] == "supersede")
        .unwrap();
    assert_eq!(told["details"]["placement_epoch"], 2);
    assert_eq!(cluster.vms(stale).running(), Vec::<String>::new());
    let start = WorkerRequest::Act { machine: machine.clone(), nonce: None, action: Action::Start };
    let refused = ask(cluster, stale, "start-copy", start).await.unwrap_err();
    assert!(refused.message.contains("was placed on another host"), "{}", refused.message);

    until_state(cluster, id, "started").await;
    assert_eq!(cluster.vms(number).running(), [id.to_owned()]);
    let all = cluster.call(0, &format!("GET {MACHINES}"), Value::Null).await.unwrap().body;
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert!(
        !all[0]["events"].to_string().contains("supersede"),
        "what the copy tells is not the machine's"
    );
}

fn local() -> RegionCode {
    RegionCode::from_trusted("local")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_earlier_placement_is_stopped_as_soon_as_the_later_one_is_heard_of() {
    let cluster = cluster(ClusterOptions::default()).await;
    let id = started_on(&cluster, 0, config()).await;
    let machine = id.parse().unwrap();
    let moved =
        cluster.catalog.move_machine(&machine, 1, cluster.worker(1), &local()).await.unwrap();
    assert_eq!(moved.epoch, 2);
    create(&cluster, 1, &machine, moved.epoch, config()).await.unwrap();
    is_alone_on(&cluster, &id, 1, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_alone_tells_a_host_that_its_machine_was_placed_elsewhere() {
    let mut cluster = cluster(ClusterOptions::default()).await;
    let id = started_on(&cluster, 0, config()).await;
    let machine: MachineId = id.parse().unwrap();
    cluster.kill(0).await.unwrap();
    cluster.catalog.move_machine(&machine, 1, cluster.worker(1), &local()).await.unwrap();
    // The other host does not have it yet.
    cluster.start(0).await.unwrap();
    tokio::time::timeout(caddis_testkit::DEADLINE, until_copy_rests(&cluster, 0, &machine))
        .await
        .unwrap();
    assert_eq!(cluster.vms(0).running(), Vec::<String>::new());
    // Destroyed for good, it takes nothing of the machine with it.
    let destroy = WorkerRequest::Act {
        machine: machine.clone(),
        nonce: None,
        action: Action::Destroy { force: true },
    };
    ask(&cluster, 0, "destroy-copy", destroy).await.unwrap();
    cluster
        .until(0, &format!("GET {MACHINES}/{id}"), |machine| machine["state"] == "destroyed")
        .await
        .unwrap();
    let placement = cluster.catalog.placement(&machine).await.unwrap().unwrap();
    assert_eq!(
        (placement.released, placement.epoch, &placement.worker),
        (false, 2, cluster.worker(1))
    );
    create(&cluster, 1, &machine, 2, config()).await.unwrap();
    until_state(&cluster, &id, "started").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_away_while_its_machine_was_placed_elsewhere_then_stops_its_copy() {
    let mut cluster = cluster(ClusterOptions::default()).await;
    // One that would be started again by itself.
    let mut always = config();
    always["restart"] = json!({ "policy": "always" });
    let id = started_on(&cluster, 0, always.clone()).await;
    cluster.kill(0).await.unwrap();
    let machine = id.parse().unwrap();
    cluster.catalog.move_machine(&machine, 1, cluster.worker(1), &local()).await.unwrap();
    create(&cluster, 1, &machine, 2, always).await.unwrap();
    cluster
        .until(0, &format!("GET {MACHINES}/{id}"), |machine| machine["host_status"] == "ok")
        .await
        .unwrap();
    assert_eq!(
        cluster.vms(0).running(),
        std::slice::from_ref(&id),
        "its VM went on without its worker"
    );
    cluster.start(0).await.unwrap();
    is_alone_on(&cluster, &id, 1, 0).await;
    // It is not taken up again either.
    cluster.kill(0).await.unwrap();
    cluster.start(0).await.unwrap();
    is_alone_on(&cluster, &id, 1, 0).await;
}
