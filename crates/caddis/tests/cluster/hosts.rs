//! Hosts fall silent, leave, return, and are drained.

use caddis_testkit::cluster::{ClusterOptions, Node};
use serde_json::{Value, json};

use crate::support::{MACHINES, cluster, config, started_on, until_state};

/// State of each host, in the order of the workers.
fn states(cluster: &caddis_testkit::cluster::Cluster, status: &Value) -> Vec<String> {
    let hosts = status["hosts"].as_array().unwrap();
    let state = |number: u8| {
        let host = hosts.iter().find(|host| host["id"] == cluster.worker(number).as_str()).unwrap();
        host["state"].as_str().unwrap().to_owned()
    };
    (0..hosts.len() as u8).map(state).collect()
}

const STATUS: &str = "GET /v1/platform/status";

#[tokio::test(flavor = "multi_thread")]
async fn a_last_delta_that_was_lost_is_made_up_for_by_the_next_heartbeat() {
    let cluster = cluster(ClusterOptions::default()).await;
    let id = started_on(&cluster, 0, config()).await;
    cluster.network.mute(Node::Worker(0), true);
    cluster.vms(0).crash(&id, caddis_vmm::VmExit::Ended);
    let worker = cluster.worker(0).clone();
    // The worker itself knows.
    let own = || async {
        let get = caddis_bus::message::WorkerRequest::Get { machine: id.parse().unwrap() };
        match crate::support::ask(&cluster, 0, "look", get).await.unwrap() {
            caddis_bus::message::WorkerReply::Machine { record } => {
                record.machine.state.as_str().to_owned()
            }
            other => panic!("{other:?}"),
        }
    };
    while own().await != "stopped" {
        tokio::task::yield_now().await;
    }
    let shown = cluster.call(0, &format!("GET {MACHINES}/{id}"), Value::Null).await.unwrap();
    assert_eq!(shown.body["state"], "started", "nobody has told it");
    cluster.network.mute(Node::Worker(0), false);
    until_state(&cluster, &id, "stopped").await;
    assert_eq!(cluster.worker(0), &worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_left_is_shown_as_such_its_machines_stay_listed_and_it_may_return() {
    let mut cluster = cluster(ClusterOptions { gateways: 2, ..ClusterOptions::default() }).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(started_on(&cluster, number, config()).await);
    }
    cluster.kill(1).await.unwrap();
    for gateway in 0..2 {
        let is_gone = |status: &Value| {
            let is_told = status["warnings"].to_string().contains("no heartbeat from host");
            is_told && states(&cluster, status) == ["ok", "unreachable", "ok"]
        };
        cluster.until(gateway, STATUS, is_gone).await.unwrap();
        let all =
            cluster.call(gateway, &format!("GET {MACHINES}"), Value::Null).await.unwrap().body;
        let mut shown: Vec<_> = all
            .as_array()
            .unwrap()
            .iter()
            .map(|m| (m["id"].clone(), m["host_status"].clone()))
            .collect();
        shown.sort_by_key(|(id, _)| ids.iter().position(|known| id == known));
        let expected = ["ok", "unreachable", "ok"].map(|status| json!(status));
        assert_eq!(shown.into_iter().map(|(_, status)| status).collect::<Vec<_>>(), expected);
    }
    // Nothing was done, and that is known.
    let stop =
        cluster.call(0, &format!("POST {MACHINES}/{}/stop", ids[1]), Value::Null).await.unwrap();
    assert_eq!(stop.status, 504, "{}", stop.body);
    assert!(stop.body["error"].as_str().unwrap().contains("nothing was done"), "{}", stop.body);
    // A gateway that begins now knows the other hosts.
    let stop =
        cluster.call(1, &format!("POST {MACHINES}/{}/stop", ids[2]), Value::Null).await.unwrap();
    assert_eq!(stop.status, 200, "{}", stop.body);

    cluster.start(1).await.unwrap();
    for gateway in 0..2 {
        let is_back =
            |machine: &Value| machine["host_status"] == "ok" && machine["state"] == "started";
        cluster.until(gateway, &format!("GET {MACHINES}/{}", ids[1]), is_back).await.unwrap();
    }
    assert_eq!(cluster.vms(1).launches(), 1, "its VM went on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_cut_off_from_a_host_says_so_and_another_one_serves_its_machines() {
    let cluster =
        cluster(ClusterOptions { gateways: 2, workers: 2, ..ClusterOptions::default() }).await;
    let id = started_on(&cluster, 0, config()).await;
    let line = format!("GET {MACHINES}/{id}");
    cluster.until(1, &line, |machine| machine["state"] == "started").await.unwrap();
    cluster.network.cut(Node::Gateway(0), Node::Worker(0));
    cluster.until(0, &line, |machine| machine["host_status"] == "unreachable").await.unwrap();
    let other = cluster.call(1, &line, Value::Null).await.unwrap();
    assert_eq!(other.body["host_status"], "ok");
    let stopped =
        cluster.call(1, &format!("POST {MACHINES}/{id}/stop"), Value::Null).await.unwrap();
    assert_eq!(stopped.status, 200, "{}", stopped.body);
    cluster.until(1, &line, |machine| machine["state"] == "stopped").await.unwrap();
    let stale = cluster.call(0, &line, Value::Null).await.unwrap();
    assert_eq!(stale.body["state"], "started", "as it was when it was last heard of");
    cluster.network.heal();
    until_state(&cluster, &id, "stopped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_stops_the_machines_of_its_host_and_no_others() {
    let cluster = cluster(ClusterOptions::default()).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(started_on(&cluster, number, config()).await);
    }
    let path = format!("POST /v1/hosts/{}/drain", cluster.worker(1));
    let drained = cluster.call(0, &path, json!({ "timeout_seconds": 60 })).await.unwrap();
    assert_eq!((drained.status, &drained.body["stopped"]), (200, &json!(1)));
    until_state(&cluster, &ids[1], "stopped").await;
    for number in [0, 2] {
        until_state(&cluster, &ids[number], "started").await;
        assert_eq!(cluster.vms(number as u8).running().len(), 1);
    }
    cluster
        .until(0, STATUS, |status| states(&cluster, status) == ["ok", "draining", "ok"])
        .await
        .unwrap();
    // New ones go elsewhere.
    for _ in 0..3 {
        let (_, number) = crate::support::started(&cluster, config()).await;
        assert_ne!(number, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_bus_runs_its_machines_and_serves_when_there_is_one() {
    let mut cluster = cluster(ClusterOptions { workers: 1, ..ClusterOptions::default() }).await;
    let mut always = config();
    always["restart"] = json!({ "policy": "always" });
    let id = started_on(&cluster, 0, always).await;
    cluster.kill(0).await.unwrap();
    cluster.network.take_bus(Node::Worker(0));
    cluster.start(0).await.unwrap();
    cluster.vms(0).crash(&id, caddis_vmm::VmExit::Ended);
    let restarted = async {
        while cluster.vms(0).launches() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(caddis_testkit::DEADLINE, restarted)
        .await
        .expect("its restart policy needs no bus");
    let line = format!("GET {MACHINES}/{id}");
    cluster.until(0, &line, |machine| machine["host_status"] == "unreachable").await.unwrap();
    cluster.network.heal();
    let is_back = |machine: &Value| {
        machine["host_status"] == "ok"
            && machine["state"] == "started"
            && machine["events"].to_string().contains("exit")
    };
    cluster.until(0, &line, is_back).await.unwrap();
    let stop = cluster.call(0, &format!("POST {MACHINES}/{id}/stop"), Value::Null).await.unwrap();
    assert_eq!(stop.status, 200, "{}", stop.body);
    until_state(&cluster, &id, "stopped").await;
}
