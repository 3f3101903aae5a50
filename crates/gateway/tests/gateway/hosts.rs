//! Hosts come, fall silent, and come back.

use std::time::Duration;

use axum::body::Body;
use caddis_api::MachineState;
use caddis_bus::message::WorkerRequest;
use caddis_gateway::Settings;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::support::{FakeWorker, Fixture, TIMEOUT};

/// Asks until the answer is as wanted.
async fn until(fixture: &Fixture, line: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = async {
        loop {
            let answer = fixture.call(line).await.json();
            if wanted(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, found)
        .await
        .unwrap_or_else(|_| panic!("{line} is never as wanted"))
}

#[tokio::test]
async fn a_last_change_that_was_lost_is_found_by_the_next_announcement() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    // Once announced, so that only what is lost afterwards is missing.
    fixture.worker.announce("local").await;
    fixture.worker.state().mute = true;
    fixture.worker.turn(&id, MachineState::Stopped, "exit").await;
    fixture.worker.state().mute = false;
    fixture.worker.announce("local").await;
    fixture.call(&format!("GET /v1/apps/a/machines/{id}/wait?state=stopped")).await.ok();
    let lists = fixture.worker.state().lists;
    fixture.worker.announce("local").await;
    fixture.worker.announce("local").await;
    let other = fixture.machine("a", "other").await;
    fixture.worker.turn(&other, MachineState::Started, "start").await;
    fixture.call(&format!("GET /v1/apps/a/machines/{other}/wait")).await.ok();
    assert_eq!(fixture.worker.state().lists, lists, "nothing more is missing");
}

#[tokio::test]
async fn a_host_that_is_silent_is_shown_as_such_and_keeps_its_machines() {
    let settings = Settings {
        suspected_after: Duration::from_millis(300),
        unreachable_after: Duration::from_millis(900),
        ..Settings::default()
    };
    let fixture = Fixture::with(settings, |_| {}).await;
    let id = fixture.started().await;
    let one = format!("GET /v1/apps/a/machines/{id}");
    fixture
        .worker
        .change(&id, |record| {
            record.machine.host_status = "unknown".to_owned();
            record.machine.host_status_reason = Some("guest_silent".to_owned());
        })
        .await;
    until(&fixture, &one, |machine| machine["host_status_reason"] == "guest_silent").await;
    let watch = fixture.request("GET /v1/apps/a/machines/watch").body(Body::empty()).unwrap();
    let mut lines =
        fixture.router.clone().oneshot(watch).await.unwrap().into_body().into_data_stream();
    fixture.worker.state().mute = true;
    until(&fixture, &one, |machine| machine["host_status"] == "unreachable").await;
    let told = async {
        while !String::from_utf8_lossy(&lines.next().await.unwrap().unwrap())
            .contains("\"unreachable\"")
        {}
    };
    tokio::time::timeout(TIMEOUT, told).await.expect("who watches is told, too");
    let shown = fixture.call(&one).await.ok();
    assert_eq!((&shown["host_status_reason"], &shown["state"]), (&Value::Null, &json!("started")));
    let all = fixture.call("GET /v1/apps/a/machines").await.ok();
    assert_eq!((all.as_array().unwrap().len(), &all[0]["host_status"]), (1, &json!("unreachable")));
    let status = fixture.call("GET /v1/platform/status").await.ok();
    assert_eq!(
        (&status["ok"], &status["hosts"][0]["state"]),
        (&json!(false), &json!("unreachable"))
    );
    assert_eq!(
        (
            &status["hosts"][0]["machines"],
            status["problems"].to_string().contains("no host can be reached")
        ),
        (&json!(1), true)
    );

    // With what its worker says of it.
    fixture.worker.state().mute = false;
    fixture.worker.announce("local").await;
    until(&fixture, &one, |machine| machine["host_status_reason"] == "guest_silent").await;
    fixture.worker.state().draining = true;
    until(&fixture, "GET /v1/platform/status", |status| status["hosts"][0]["state"] == "draining")
        .await;
}

#[tokio::test]
async fn a_host_that_announces_itself_is_listed_placed_on_and_drained_alone() {
    let fixture = Fixture::new().await;
    let first = fixture.started().await;
    let second = FakeWorker::named("W2", fixture.worker.bus.clone());
    // It had this one before anybody knew it.
    let mut record = fixture.worker.state().machines[&first].clone();
    record.worker = second.id.clone();
    record.machine.id = "00000000000002".parse().unwrap();
    second.state().machines.insert(record.machine.id.clone(), record);
    let _serving = second.serve("far").await;
    second.announce("far").await;
    until(&fixture, "GET /v1/apps/a/machines", |all| all.as_array().unwrap().len() == 2).await;
    let regions = fixture.call("GET /v1/platform/regions").await.ok();
    let codes: Vec<_> = regions["regions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|region| region["code"].as_str().unwrap())
        .collect();
    assert_eq!(codes, ["local", "far"]);
    let status = fixture.call("GET /v1/platform/status").await.ok();
    let hosts: Vec<_> = status["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| (&host["id"], &host["machines"]))
        .collect();
    assert_eq!(hosts, [(&json!("W1"), &json!(1)), (&json!("W2"), &json!(1))]);
    let body = json!({ "name": "n", "region": "far", "config": { "image": "nginx" } });
    let made = fixture.post("/v1/apps/a/machines", body).await.ok();
    assert!(second.state().machines.contains_key(&made["id"].as_str().unwrap().parse().unwrap()));

    fixture.post("/v1/hosts/W2/drain", "{}").await.ok();
    let drains = |worker: &FakeWorker| {
        worker
            .state()
            .requests
            .iter()
            .filter(|request| matches!(request, WorkerRequest::Drain { .. }))
            .count()
    };
    assert_eq!((drains(&fixture.worker), drains(&second)), (0, 1));
    let unknown = fixture.post("/v1/hosts/W3/drain", "{}").await;
    assert_eq!((unknown.status.as_u16(), unknown.error()), (404, "host not found: W3".to_owned()));
}
