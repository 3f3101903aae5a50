//! Machines with volumes.

use std::time::Duration;

use axum::body::Body;
use caddis_api::{ApiError, ErrorCode, MachineId, MachineState, VolumeId};
use caddis_bus::message::WorkerRequest;
use caddis_gateway::Settings;
use serde_json::{Value, json};

use crate::support::{Answer, FakeWorker, Fixture, TIMEOUT};

async fn with_app() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    fixture
}

async fn volume(fixture: &Fixture, id: &VolumeId) -> Value {
    fixture.call(&format!("GET /v1/apps/a/volumes/{id}")).await.ok()
}

async fn second_host(fixture: &Fixture, region: &str) -> (FakeWorker, Vec<caddis_bus::Serving>) {
    let second = FakeWorker::named("W2", fixture.worker.bus.clone());
    let serving = second.serve(region).await;
    let known = async {
        while !fixture.call("GET /v1/platform/status").await.text.contains("\"W2\"") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, known).await.unwrap();
    (second, serving)
}

fn id(answer: &Value) -> MachineId {
    answer["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_machine_gets_the_volume_that_it_names_by_id_or_by_name() {
    let fixture = with_app().await;
    for mount in [
        |id: &VolumeId| json!({ "volume": id, "path": "/data", "own": [1] }),
        |_: &VolumeId| json!({ "volume": "data", "path": "/data", "own": [1] }),
        |_: &VolumeId| json!({ "volume": null, "name": "data", "path": "/data", "own": [1] }),
    ] {
        let volume_id = fixture.volume("a", "data").await;
        let made = fixture.machine_with("a", json!([mount(&volume_id)])).await.ok();
        assert_eq!(
            made["config"]["mounts"],
            json!([{ "volume": volume_id, "name": "data", "path": "/data", "size_gb": 3,
                "encrypted": true, "own": [1] }])
        );
        // At once, also in lists.
        let list = fixture.call("GET /v1/apps/a/volumes").await.ok();
        let shown = list.as_array().unwrap().iter().find(|row| row["id"] == json!(volume_id));
        assert_eq!(shown.unwrap()["attached_machine_id"], made["id"]);
        let refused = fixture.call(&format!("DELETE /v1/apps/a/volumes/{volume_id}")).await;
        assert_eq!(refused.status, 412, "{}", refused.text);
    }
}

#[tokio::test]
async fn a_volume_is_free_when_its_machine_is_gone() {
    let fixture = with_app().await;
    let volume_id = fixture.volume("a", "data").await;
    let mounts = json!([{ "volume": volume_id, "path": "/data" }]);
    let machine = id(&fixture.machine_with("a", mounts.clone()).await.ok());
    fixture.call(&format!("DELETE /v1/apps/a/machines/{machine}?force=true")).await.ok();
    assert_eq!(volume(&fixture, &volume_id).await["attached_machine_id"], Value::Null);
    fixture.machine_with("a", mounts).await.ok();
}

#[tokio::test]
async fn a_machine_may_have_two_volumes() {
    let fixture = with_app().await;
    let (one, other) = (fixture.volume("a", "data").await, fixture.volume("a", "data").await);
    let mounts = json!([{ "name": "data", "path": "/a" }, { "volume": "data", "path": "/b" }]);
    let made = fixture.machine_with("a", mounts).await.ok();
    let mut got: Vec<_> = made["config"]["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["volume"].clone())
        .collect();
    got.sort_by_key(ToString::to_string);
    let mut expected = [json!(one), json!(other)];
    expected.sort_by_key(ToString::to_string);
    assert_eq!(got, expected);
}

#[tokio::test]
async fn why_a_machine_gets_no_volume_is_said() {
    let fixture = with_app().await;
    fixture.app("b").await;
    let (_second, _serving) = second_host(&fixture, "far").await;
    let of_another = fixture.volume("b", "data").await;
    let used = fixture.volume("a", "used").await;
    let machine =
        fixture.machine_with("a", json!([{ "volume": used, "path": "/data" }])).await.ok();
    let deleted = fixture.volume("a", "gone").await;
    fixture.call(&format!("DELETE /v1/apps/a/volumes/{deleted}")).await.ok();
    let far = json!({ "name": "far", "region": "far" });
    let far = fixture.post("/v1/apps/a/volumes", far).await.ok()["id"].clone();
    let near = fixture.volume("a", "near").await;
    let attached = format!("volume {used} is already attached to machine {}", id(&machine));
    for (mounts, region, status, text) in [
        (json!([{ "path": "/a" }]), None, 400, "a volume is required"),
        (json!([{ "volume": near, "path": "/" }]), None, 400, "other than /"),
        (json!([{ "volume": near, "path": "/proc" }]), None, 400, "belongs to the system"),
        (json!([{ "volume": "vol_9", "path": "/a" }]), None, 400, "the app has no volume vol_9"),
        (json!([{ "volume": of_another, "path": "/a" }]), None, 400, "the app has no volume"),
        (json!([{ "volume": used, "path": "/a" }]), None, 412, attached.as_str()),
        (json!([{ "volume": deleted, "path": "/a" }]), None, 412, "is pending_destroy"),
        (
            json!([{ "volume": "used", "path": "/a" }]),
            None,
            412,
            "no unattached volume 'used' in region local, far",
        ),
        (
            json!([{ "volume": "near", "path": "/a" }]),
            Some("far"),
            412,
            "no unattached volume 'near' in region far, create one first",
        ),
        (json!([{ "volume": near, "path": "/a" }]), Some("far"), 400, "use the region of the"),
        (
            json!([{ "volume": near, "path": "/a" }, { "volume": far, "path": "/b" }]),
            None,
            412,
            "are not on one host",
        ),
        (
            json!([{ "volume": "near", "path": "/a" }, { "name": "near", "path": "/b" }]),
            None,
            412,
            "not enough unattached volumes for 'near'",
        ),
    ] {
        let body = json!({ "region": region,
            "config": { "image": "nginx", "mounts": mounts } });
        let answer = fixture.post("/v1/apps/a/machines", body).await;
        assert_eq!(answer.status, status, "{mounts}: {}", answer.text);
        assert!(answer.error().contains(text), "{mounts}: {}", answer.error());
    }
    assert_eq!(fixture.worker.state().machines.len(), 1);
}

#[tokio::test]
async fn a_machine_is_made_where_its_volume_is_and_nowhere_else() {
    let fixture = with_app().await;
    let (second, _serving) = second_host(&fixture, "far").await;
    let made = fixture.post("/v1/apps/a/volumes", json!({ "name": "data", "region": "far" })).await;
    let volume_id = made.ok()["id"].clone();
    let mounts = json!([{ "volume": volume_id, "path": "/data" }]);
    let error = ApiError::new(ErrorCode::InsufficientCapacity, "there is no memory left");
    second.state().create_errors.push_back(error);
    let refused = fixture.machine_with("a", mounts.clone()).await;
    assert_eq!(refused.status, 412, "{}", refused.text);
    assert_eq!(refused.json()["status"], "volume_placement_capacity");
    let text = format!(
        "insufficient resources to create new machine with existing volume id '{}': there is no \
         memory left",
        volume_id.as_str().unwrap()
    );
    assert_eq!(refused.error(), text);
    assert_eq!(fixture.machine_with("a", mounts).await.ok()["region"], "far");
    assert_eq!((fixture.worker.state().machines.len(), second.state().machines.len()), (0, 1));
}

#[tokio::test]
async fn of_several_hosts_with_a_volume_of_the_name_the_next_is_tried_when_one_is_full() {
    let fixture = with_app().await;
    let (second, _serving) = second_host(&fixture, "local").await;
    for _ in 0..2 {
        fixture.volume("a", "data").await;
    }
    assert_eq!((fixture.worker.state().volumes.len(), second.state().volumes.len()), (1, 1));
    // Whichever is asked first.
    let full = || ApiError::new(ErrorCode::InsufficientCapacity, "full");
    fixture.worker.state().create_errors.push_back(full());
    let mounts = json!([{ "name": "data", "path": "/data" }]);
    fixture.machine_with("a", mounts.clone()).await.ok();
    fixture.worker.state().create_errors.clear();
    fixture.machine_with("a", mounts.clone()).await.ok();
    let refused = fixture.machine_with("a", mounts).await;
    assert!(refused.error().contains("no unattached volume 'data'"), "{}", refused.text);
}

#[tokio::test]
async fn of_two_machines_that_want_one_volume_at_once_one_gets_it() {
    let fixture = with_app().await;
    let volume_id = fixture.volume("a", "data").await;
    let by_id = json!([{ "volume": volume_id, "path": "/data" }]);
    let both = |one: Answer, other: Answer| {
        let mut answers = [one, other];
        answers.sort_by_key(|answer| answer.status);
        answers
    };
    let [got, refused] = both(
        fixture.machine_with("a", by_id.clone()).await,
        fixture.machine_with("a", by_id.clone()).await,
    );
    assert_eq!((got.status.as_u16(), refused.status.as_u16()), (200, 412));
    let machine = id(&got.ok());
    fixture.call(&format!("DELETE /v1/apps/a/machines/{machine}?force=true")).await.ok();
    let by_name = json!([{ "name": "data", "path": "/data" }]);
    for mounts in [by_id, by_name] {
        // Both see that it is free.
        volume(&fixture, &volume_id).await;
        let (one, other) = tokio::join!(
            fixture.machine_with("a", mounts.clone()),
            fixture.machine_with("a", mounts.clone())
        );
        let [got, refused] = both(one, other);
        assert_eq!((got.status.as_u16(), refused.status.as_u16()), (200, 412), "{}", refused.text);
        let machine = id(&got.ok());
        assert_eq!(volume(&fixture, &volume_id).await["attached_machine_id"], json!(machine));
        fixture.call(&format!("DELETE /v1/apps/a/machines/{machine}?force=true")).await.ok();
    }
}

#[tokio::test]
async fn a_volume_that_was_taken_meanwhile_is_passed_over_for_the_next_of_its_name() {
    let fixture = with_app().await;
    let ids = [fixture.volume("a", "data").await, fixture.volume("a", "data").await];
    let first = ids.iter().min().unwrap();
    // Nobody was told.
    fixture.worker.state().volumes.get_mut(first).unwrap().volume.attached_machine_id =
        Some("00000000000001".parse().unwrap());
    fixture.worker.state().changed(first).unwrap();
    let made = fixture.machine_with("a", json!([{ "name": "data", "path": "/data" }])).await.ok();
    let other = ids.iter().max().unwrap();
    assert_eq!(made["config"]["mounts"][0]["volume"], json!(other));
    let by_id = fixture.machine_with("a", json!([{ "volume": first, "path": "/data" }])).await;
    assert_eq!(by_id.status, 412);
}

#[tokio::test]
async fn many_machines_that_want_any_volume_of_a_name_each_get_one() {
    let fixture = with_app().await;
    for _ in 0..6 {
        fixture.volume("a", "data").await;
    }
    let mounts = json!([{ "name": "data", "path": "/data" }]);
    let made = (0..6).map(|_| fixture.machine_with("a", mounts.clone()));
    let mut got = std::collections::BTreeSet::new();
    for answer in futures::future::join_all(made).await {
        got.insert(answer.ok()["config"]["mounts"][0]["volume"].to_string());
    }
    assert_eq!(got.len(), 6);
}

#[tokio::test]
async fn a_create_that_was_cut_short_finds_its_machine_with_its_volume() {
    let fixture = with_app().await;
    fixture.volume("a", "data").await;
    let body = json!({ "config": { "image": "nginx",
        "mounts": [{ "name": "data", "path": "/data" }] } });
    let send = async || {
        let request = fixture.request("POST /v1/apps/a/machines").header("idempotency-key", "k");
        fixture.send(request.body(Body::from(body.to_string())).unwrap()).await
    };
    let first = send().await.ok();
    let path = fixture.directory.path().join("catalog.db");
    let catalog = rusqlite::Connection::open(path).unwrap();
    catalog.execute("UPDATE requests SET status = NULL, body = NULL", []).unwrap();
    assert_eq!(send().await.ok()["id"], first["id"]);
    assert_eq!(fixture.worker.state().machines.len(), 1);
}

#[tokio::test]
async fn a_machine_whose_answer_never_came_gets_no_second_one_with_another_volume() {
    let fixture = with_app().await;
    for _ in 0..2 {
        fixture.volume("a", "data").await;
    }
    let settings = Settings { create_deadline: Duration::from_millis(300), ..Settings::default() };
    let impatient = fixture.restarted_with(settings).await;
    // It is asked twice.
    fixture.worker.state().silent_creates = 2;
    let config = json!({ "image": "nginx", "mounts": [{ "name": "data", "path": "/data" }] });
    let body = json!({ "config": config }).to_string();
    let request = fixture.request("POST /v1/apps/a/machines").body(Body::from(body)).unwrap();
    let silent = Fixture::send_to(&impatient.router(), request).await;
    assert_eq!(silent.status, 504, "{}", silent.text);
    let state = fixture.worker.state();
    assert_eq!(state.machines.len(), 1);
    let machine = state.machines.keys().next().unwrap();
    assert!(silent.error().contains(machine.as_str()), "{}", silent.text);
    let holders = state.volumes.values().map(|record| record.volume.attached_machine_id.as_ref());
    assert_eq!(holders.flatten().collect::<Vec<_>>(), [machine]);
}

#[tokio::test]
async fn an_update_moves_a_mount_and_never_changes_its_volume() {
    let fixture = with_app().await;
    let volume_id = fixture.volume("a", "data").await;
    let other = fixture.volume("a", "data").await;
    let made = fixture.machine_with("a", json!([{ "volume": volume_id, "path": "/data" }])).await;
    let machine = id(&made.ok());
    fixture.worker.turn(&machine, MachineState::Started, "start").await;
    let line = format!("/v1/apps/a/machines/{machine}");
    let update = async |mounts: Value| {
        fixture.post(&line, json!({ "config": { "image": "nginx", "mounts": mounts } })).await
    };
    fixture
        .put(&format!("/v1/apps/a/volumes/{volume_id}/extend"), json!({ "size_gb": 9 }))
        .await
        .ok();
    for mounts in [
        json!([{ "volume": volume_id, "path": "/other", "size_gb": 1 }]),
        json!([{ "name": "data", "path": "/other" }]),
    ] {
        assert_eq!(
            update(mounts.clone()).await.ok()["config"]["mounts"][0]["size_gb"],
            9,
            "{mounts}"
        );
    }
    for mounts in [
        json!([]),
        Value::Null,
        json!([{ "volume": other, "path": "/data" }]),
        json!([{ "volume": "other", "path": "/data" }]),
        json!([{ "volume": volume_id, "path": "/a" }, { "volume": other, "path": "/b" }]),
    ] {
        let refused = update(mounts.clone()).await;
        assert_eq!(refused.status, 400, "{mounts}");
        assert_eq!(
            refused.error(),
            "invalid config.mounts, the volume of a machine can't be changed"
        );
    }
    let updates = |request: &&WorkerRequest| matches!(request, WorkerRequest::Update { .. });
    assert_eq!(fixture.worker.state().requests.iter().filter(updates).count(), 2);
}
