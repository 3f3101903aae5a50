//! Snapshots of volumes, and volumes that are made from them.

use axum::body::Body;
use caddis_api::{ApiError, SnapshotId, VolumeId, WorkerId, volume::SnapshotStatus};
use caddis_bus::message::{CreateVolume, SnapshotSource, WorkerRequest};
use caddis_catalog::Access;
use serde_json::{Value, json};

use crate::support::{Answer, FakeWorker, Fixture, TIMEOUT};

const VOLUMES: &str = "/v1/apps/a/volumes";

async fn with_volume() -> (Fixture, VolumeId) {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let id = fixture.volume("a", "data").await;
    (fixture, id)
}

fn snapshots(volume: &VolumeId) -> String {
    format!("{VOLUMES}/{volume}/snapshots")
}

/// Takes one, which is there.
async fn taken(fixture: &Fixture, volume: &VolumeId) -> SnapshotId {
    let taken = fixture.post(&snapshots(volume), "").await.ok();
    let id: SnapshotId = taken["id"].as_str().unwrap().parse().unwrap();
    become_of(fixture, &id, SnapshotStatus::Created);
    id
}

fn become_of(fixture: &Fixture, id: &SnapshotId, status: SnapshotStatus) {
    let mut state = fixture.worker.state();
    let record = state.snapshots.iter_mut().find(|record| record.snapshot.id == *id);
    record.unwrap().snapshot.status = status;
}

/// What the worker was told to make last.
fn made(fixture: &Fixture) -> CreateVolume {
    let state = fixture.worker.state();
    let made = state.requests.iter().rev().find_map(|request| match request {
        WorkerRequest::CreateVolume(create) => Some((**create).clone()),
        _ => None,
    });
    made.unwrap()
}

async fn restore(fixture: &Fixture, snapshot: &SnapshotId) -> Answer {
    fixture.post(VOLUMES, json!({ "name": "restored", "snapshot_id": snapshot })).await
}

#[tokio::test]
async fn snapshots_are_taken_listed_shown_and_deleted() {
    let (fixture, volume) = with_volume().await;
    let line = snapshots(&volume);
    assert_eq!(fixture.call(&format!("GET {line}")).await.ok(), json!([]));
    let first = fixture.post(&line, "").await.ok();
    let id = first["id"].as_str().unwrap();
    assert!(id.starts_with("vs_") && id.len() == 23, "{id}");
    for (field, value) in [
        ("status", json!("waiting")),
        ("volume_size", json!(3_u64 << 30)),
        ("retention_days", json!(5)),
        ("size", json!(0)),
    ] {
        assert_eq!(first[field], value, "{field}");
    }
    let second = fixture.post(&line, "").await.ok();
    let list = fixture.call(&format!("GET {line}")).await.ok();
    assert_eq!(list, json!([first, second]), "the newest last");
    let one = format!("{line}/{id}");
    assert_eq!(fixture.call(&format!("GET {one}")).await.ok(), first);
    let deleted = fixture.call(&format!("DELETE {one}")).await;
    assert_eq!((deleted.status.as_u16(), deleted.text.as_str()), (204, ""));
    assert_eq!(fixture.call(&format!("GET {line}")).await.ok(), json!([second]));
    for method in ["GET", "DELETE"] {
        let gone = fixture.call(&format!("{method} {one}")).await;
        assert_eq!((gone.status.as_u16(), gone.error()), (404, "snapshot not found".to_owned()));
        let wrong = fixture.call(&format!("{method} {line}/x")).await;
        assert_eq!(
            (wrong.status.as_u16(), wrong.error()),
            (400, "invalid snapshot ID, 'x'".to_owned())
        );
    }
}

#[tokio::test]
async fn what_the_worker_says_against_a_snapshot_is_the_answer() {
    let (fixture, volume) = with_volume().await;
    let refusal = ApiError::precondition("volume is pending_destroy");
    fixture.worker.state().volume_errors.push_back(refusal.clone());
    let refused = fixture.post(&snapshots(&volume), "").await;
    assert_eq!((refused.status.as_u16(), refused.error()), (412, refusal.message));
}

#[tokio::test]
async fn the_same_request_takes_one_snapshot() {
    let (fixture, volume) = with_volume().await;
    let line = format!("POST {}", snapshots(&volume));
    let send = async |key: &str| {
        let request = fixture.request(&line).header("idempotency-key", key);
        fixture.send(request.body(Body::empty()).unwrap()).await.ok()
    };
    let first = send("k").await;
    assert_eq!(send("k").await, first);
    // As if the answer had never been kept.
    let path = fixture.directory.path().join("catalog.db");
    let catalog = rusqlite::Connection::open(path).unwrap();
    catalog.execute("UPDATE requests SET status = NULL, body = NULL", []).unwrap();
    assert_eq!(send("k").await["id"], first["id"]);
    assert_eq!(fixture.worker.state().snapshots.len(), 1);
    assert_ne!(send("other").await["id"], first["id"]);
}

#[tokio::test]
async fn snapshots_of_a_volume_that_is_gone_are_there() {
    let (fixture, volume) = with_volume().await;
    let snapshot = taken(&fixture, &volume).await;
    fixture.call(&format!("DELETE {VOLUMES}/{volume}")).await.ok();
    fixture.worker.state().volumes.remove(&volume);
    fixture.worker.state().volume_revision += 1;
    fixture.worker.announce("local").await;
    let line = format!("GET {VOLUMES}/{volume}");
    let gone = async {
        while fixture.call(&line).await.status != 404 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, gone).await.unwrap();
    let list = fixture.call(&format!("GET {}", snapshots(&volume))).await.ok();
    assert_eq!(list[0]["id"], json!(snapshot));
    let one = format!("{}/{snapshot}", snapshots(&volume));
    assert_eq!(fixture.call(&format!("GET {one}")).await.ok(), list[0]);
    let refused = fixture.post(&snapshots(&volume), "").await;
    assert_eq!((refused.status.as_u16(), refused.error()), (404, "volume not found".to_owned()));
    restore(&fixture, &snapshot).await.ok();
    assert_eq!(made(&fixture).snapshot, Some(SnapshotSource { snapshot, volume }));
    assert_eq!(fixture.call(&format!("DELETE {one}")).await.status, 204);
    let never = fixture.call(&format!("GET {VOLUMES}/vol_9/snapshots")).await;
    assert_eq!((never.status.as_u16(), never.error()), (404, "volume not found".to_owned()));
}

#[tokio::test]
async fn a_volume_is_made_from_a_snapshot_as_its_volume_was() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let body = json!({ "name": "data", "size_gb": 7, "encrypted": false, "fstype": "raw" });
    let volume = fixture.post(VOLUMES, body).await.ok();
    let volume: VolumeId = volume["id"].as_str().unwrap().parse().unwrap();
    let snapshot = taken(&fixture, &volume).await;
    // As flyctl sends it.
    let body = json!({ "name": "restored", "snapshot_id": snapshot, "encrypted": true,
        "size_gb": null, "fstype": null, "source_volume_id": "" });
    let restored = fixture.post(VOLUMES, body).await.ok();
    for (field, value) in [
        ("state", json!("restoring")),
        ("size_gb", json!(7)),
        ("encrypted", json!(false)),
        ("fstype", json!("raw")),
        ("name", json!("restored")),
    ] {
        assert_eq!(restored[field], value, "{field}");
    }
    let made = made(&fixture);
    assert_eq!((made.source, made.org.as_str()), (None, "personal"));
    let source = SnapshotSource { snapshot: snapshot.clone(), volume };
    assert_eq!(made.snapshot, Some(source));
    let larger = json!({ "name": "b", "snapshot_id": snapshot, "size_gb": 9 });
    assert_eq!(fixture.post(VOLUMES, larger).await.ok()["size_gb"], 9);
    for (field, value, text) in [
        (
            "size_gb",
            json!(6),
            "invalid size_gb 6, the volume of the snapshot has 7 GB, the new one can't be smaller",
        ),
        ("fstype", json!("ext4"), "invalid fstype 'ext4', the volume of the snapshot has raw"),
    ] {
        let mut body = json!({ "name": "b", "snapshot_id": snapshot });
        body[field] = value;
        let refused = fixture.post(VOLUMES, body).await;
        assert_eq!(refused.status, 400);
        assert!(refused.error().starts_with(text), "{}", refused.error());
    }
    for status in [SnapshotStatus::Waiting, SnapshotStatus::Running, SnapshotStatus::Failed] {
        become_of(&fixture, &snapshot, status);
        let refused = restore(&fixture, &snapshot).await;
        assert_eq!(refused.status, 412);
        let text = format!("snapshot {snapshot} is {}, a volume can be", status.as_str());
        assert!(refused.error().contains(&text), "{}", refused.error());
    }
    let unknown = restore(&fixture, &"vs_none".parse().unwrap()).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.error()),
        (400, "invalid snapshot_id, the organization has no snapshot 'vs_none'".to_owned())
    );
}

#[tokio::test]
async fn the_same_request_restores_once() {
    let (fixture, volume) = with_volume().await;
    let snapshot = taken(&fixture, &volume).await;
    let send = async || {
        let request = fixture.request(&format!("POST {VOLUMES}")).header("idempotency-key", "k");
        let body = json!({ "name": "restored", "snapshot_id": snapshot });
        fixture.send(request.body(Body::from(body.to_string())).unwrap()).await.ok()
    };
    let first = send().await;
    let path = fixture.directory.path().join("catalog.db");
    let catalog = rusqlite::Connection::open(path).unwrap();
    catalog.execute("UPDATE requests SET status = NULL, body = NULL", []).unwrap();
    assert_eq!(send().await["id"], first["id"]);
    assert_eq!(fixture.worker.state().volumes.len(), 2);
}

#[tokio::test]
async fn a_snapshot_of_another_app_is_for_those_who_may_see_that_app() {
    let (fixture, volume) = with_volume().await;
    fixture.app("b").await;
    fixture.accept("deployer", "b", Access::Write);
    fixture.accept("reader", "a", Access::Read);
    let snapshot = taken(&fixture, &volume).await;
    let body = json!({ "name": "restored", "snapshot_id": snapshot });
    let send = async |token: &str, app: &str, body: &Value| {
        let line = format!("POST /v1/apps/{app}/volumes");
        let request = fixture.request_by(token, &line).body(Body::from(body.to_string()));
        fixture.send(request.unwrap()).await
    };
    let hidden = send("deployer", "b", &body).await;
    let unknown = json!({ "name": "restored", "snapshot_id": "vs_none" });
    let missing = send("deployer", "b", &unknown).await;
    assert_eq!(
        (hidden.status, hidden.error().replace(snapshot.as_str(), "-")),
        (missing.status, missing.error().replace("vs_none", "-"))
    );
    assert_eq!(hidden.status, 400);
    assert_eq!(send("reader", "a", &body).await.status, 403);
    send(&fixture.token, "b", &body).await.ok();
    let own = format!("/v1/apps/b/volumes/{volume}/snapshots");
    for line in [format!("GET {own}"), format!("GET {own}/{snapshot}"), format!("POST {own}")] {
        let answer = fixture.call(&line).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (404, "volume not found".to_owned()));
    }
    // The app is gone, and another has its name.
    assert_eq!(fixture.call("DELETE /v1/apps/a").await.status, 202);
    fixture.until_gone("a").await;
    fixture.app("a").await;
    fixture.accept("later", "a", Access::Write);
    assert_eq!(send("later", "a", &body).await.status, 400);
    let of_another = fixture.call(&format!("GET {}", snapshots(&volume))).await;
    assert_eq!(of_another.status, 404);
    send(&fixture.token, "a", &body).await.ok();
}

#[tokio::test]
async fn a_snapshot_of_one_volume_is_none_of_another() {
    let (fixture, volume) = with_volume().await;
    let other = fixture.volume("a", "other").await;
    let snapshot = taken(&fixture, &volume).await;
    for method in ["GET", "DELETE"] {
        let answer = fixture.call(&format!("{method} {}/{snapshot}", snapshots(&other))).await;
        assert_eq!(
            (answer.status.as_u16(), answer.error()),
            (404, "snapshot not found".to_owned())
        );
    }
    assert_eq!(fixture.worker.state().snapshots.len(), 1);
}

#[tokio::test]
async fn a_volume_goes_to_the_host_of_its_snapshot_where_it_can() {
    let (fixture, volume) = with_volume().await;
    let snapshot = taken(&fixture, &volume).await;
    let second = FakeWorker::named("W0", fixture.worker.bus.clone());
    let _serving = second.serve("local").await;
    let known = async {
        while !fixture.call("GET /v1/platform/status").await.text.contains("\"W0\"") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, known).await.unwrap();
    let worker = |answer: Value| -> WorkerId {
        let id: VolumeId = answer["id"].as_str().unwrap().parse().unwrap();
        let on = if second.state().volumes.contains_key(&id) { "W0" } else { "W1" };
        WorkerId::from_trusted(on)
    };
    assert_eq!(worker(restore(&fixture, &snapshot).await.ok()), fixture.worker.id);
    let elsewhere = json!({ "name": "data", "snapshot_id": snapshot, "require_unique_zone": true });
    assert_eq!(worker(fixture.post(VOLUMES, elsewhere).await.ok()), second.id);
    // One that does not answer may have it.
    second.state().silent_snapshots = true;
    let unknown = restore(&fixture, &"vs_none".parse().unwrap()).await;
    assert_eq!(unknown.status, 504, "{}", unknown.text);
    assert!(unknown.error().contains("host W0, which may have snapshot vs_none"));
    restore(&fixture, &snapshot).await.ok();
}
