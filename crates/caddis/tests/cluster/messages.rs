//! Messages are lost, late, repeated, and large.

use std::time::Duration;

use caddis_bus::message::{Action, WorkerReply, WorkerRequest};
use caddis_testkit::cluster::{Cluster, ClusterOptions, Node};
use serde_json::{Value, json};

use crate::support::{MACHINES, ask, cluster, config, started, started_on, until_state};

/// How many restarts events tell of. Each has one for its beginning and one for its end.
fn restarts(events: &Value) -> usize {
    events.as_array().unwrap().iter().filter(|event| event["type"] == "restart").count() / 2
}

/// Waits until a gateway knows that a machine runs after so many restarts. That it runs says
/// nothing: a gateway may not have heard yet of a restart that its worker has accepted.
async fn until_restarted(cluster: &Cluster, id: &str, number: usize) {
    let events = format!("GET {MACHINES}/{id}/events");
    cluster.until(0, &events, |events| restarts(events) >= number).await.unwrap();
    until_state(cluster, id, "started").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_started_again_does_not_repeat_what_it_had_accepted() {
    let mut cluster = cluster(ClusterOptions { workers: 1, ..ClusterOptions::default() }).await;
    let id = started_on(&cluster, 0, config()).await;
    let restart = || WorkerRequest::Act {
        machine: id.parse().unwrap(),
        nonce: None,
        action: Action::Restart { signal: None, timeout: None, force: true },
    };
    ask(&cluster, 0, "restart", restart()).await.unwrap();
    until_restarted(&cluster, &id, 1).await;
    assert_eq!(cluster.vms(0).launches(), 2);

    cluster.kill(0).await.unwrap();
    cluster.start(0).await.unwrap();
    // Its sender got no answer, and asks again.
    let again = ask(&cluster, 0, "restart", restart()).await.unwrap();
    assert!(matches!(again, WorkerReply::Done { .. }), "{again:?}");
    // Another request is another, and comes after whatever the one before may have begun.
    let stop = WorkerRequest::Act {
        machine: id.parse().unwrap(),
        nonce: None,
        action: Action::Stop { signal: None, timeout: None },
    };
    ask(&cluster, 0, "stop", stop).await.unwrap();
    until_state(&cluster, &id, "stopped").await;
    assert_eq!(cluster.vms(0).launches(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_arrive_twice_and_late_are_carried_out_once() {
    let cluster = cluster(ClusterOptions { gateways: 2, ..ClusterOptions::default() }).await;
    cluster.network.repeat();
    cluster.network.delay(Duration::from_millis(3));
    let mut launches = 0;
    for gateway in [0, 1, 0, 1] {
        let (id, number) = started(&cluster, config()).await;
        launches += 1;
        let restart = format!("POST {MACHINES}/{id}/restart");
        cluster
            .until(gateway, &format!("GET {MACHINES}/{id}"), |m| m["state"] == "started")
            .await
            .unwrap();
        let restarted = cluster.call(gateway, &restart, Value::Null).await.unwrap();
        assert_eq!(restarted.status, 200, "{}", restarted.body);
        launches += 1;
        until_restarted(&cluster, &id, 1).await;
        let events = format!("GET {MACHINES}/{id}/events");
        let events = cluster.call(gateway, &events, Value::Null).await.unwrap().body;
        assert_eq!(restarts(&events), 1, "on host {number}: {events:#}");
    }
    assert_eq!((0..3).map(|number| cluster.vms(number).launches()).sum::<usize>(), launches);
    assert_eq!((0..3).map(|number| cluster.vms(number).collisions()).sum::<usize>(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_clock_is_ahead_refuses_what_seems_late_to_it_and_names_the_clocks() {
    let cluster = cluster(ClusterOptions { workers: 1, ..ClusterOptions::default() }).await;
    let id = started_on(&cluster, 0, config()).await;
    let stop = format!("POST {MACHINES}/{id}/stop");
    cluster.network.skew(Node::Worker(0), 120_000);
    let refused = cluster.call(0, &stop, Value::Null).await.unwrap();
    assert_eq!(refused.status, 504, "{}", refused.body);
    assert!(
        refused.body["error"].as_str().unwrap().contains("compare the clocks"),
        "{}",
        refused.body
    );
    until_state(&cluster, &id, "started").await;
    // One that is behind, or ahead by less than is waited, does no harm.
    for ahead in [-3_600_000, 2000] {
        cluster.network.skew(Node::Worker(0), ahead);
        assert_eq!(cluster.call(0, &stop, Value::Null).await.unwrap().status, 200, "{ahead}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_configuration_goes_everywhere_a_small_one_goes() {
    let mut cluster =
        cluster(ClusterOptions { gateways: 2, workers: 1, ..ClusterOptions::default() }).await;
    let content = |bytes: usize| "A".repeat(bytes / 3 * 4);
    let with_files = |bytes: usize, more: &str| {
        let mut config = config();
        config["files"] = json!([{ "guest_path": "/data", "raw_value": content(bytes) }]);
        config["env"] = json!({ "MORE": more });
        config
    };
    let largest = 3 << 20;
    let (id, _) = started(&cluster, with_files(largest, "one")).await;
    let line = format!("GET {MACHINES}/{id}");
    let has = |text: &'static str| move |machine: &Value| machine["config"]["env"]["MORE"] == text;
    for gateway in 0..2 {
        let shown = cluster.until(gateway, &line, has("one")).await.unwrap();
        assert_eq!(
            shown["config"]["files"][0]["raw_value"].as_str().unwrap().len(),
            content(largest).len()
        );
    }
    // Versions of it together are many times what a message takes.
    for more in ["two", "three", "four"] {
        let body = json!({ "config": with_files(largest, more) });
        let updated = cluster.call(1, &format!("POST {MACHINES}/{id}"), body).await.unwrap();
        assert_eq!(
            updated.status,
            200,
            "{}",
            updated.body.to_string().chars().take(500).collect::<String>()
        );
        cluster.until(0, &line, has(more)).await.unwrap();
        until_state(&cluster, &id, "started").await;
    }
    let versions = cluster.call(0, &format!("{line}/versions"), Value::Null).await.unwrap();
    assert_eq!((versions.status, versions.body.as_array().map(Vec::len)), (200, Some(4)));
    // Its metadata changes without it.
    let metadata = json!({ "value": "x".repeat(60_000) });
    let set = cluster.call(0, &format!("POST {MACHINES}/{id}/metadata/k"), metadata).await.unwrap();
    assert!(set.status < 300, "{}", set.body);
    cluster
        .until(1, &line, |machine| machine["config"]["metadata"]["k"].is_string())
        .await
        .unwrap();
    // A gateway that comes later knows it, too.
    cluster.add_gateway().await.unwrap();
    cluster.until(2, &line, has("four")).await.unwrap();
}
