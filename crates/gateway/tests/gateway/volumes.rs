//! Volumes of apps.

use std::time::Duration;

use axum::body::Body;
use caddis_api::{
    ApiError, ErrorCode, MachineState, VolumeId, WorkerId,
    volume::{VolumeState, zone_of},
};
use caddis_bus::message::{Offer, VolumeAction, WorkerRequest};
use caddis_catalog::Access;
use caddis_gateway::Settings;
use serde_json::{Value, json};

use crate::support::{Answer, FakeWorker, Fixture, TIMEOUT};

const VOLUMES: &str = "/v1/apps/a/volumes";

async fn with_app() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    fixture
}

fn one(id: &VolumeId) -> String {
    format!("{VOLUMES}/{id}")
}

/// Asks until the answer is as wanted.
async fn until(fixture: &Fixture, line: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let found = async {
        loop {
            let answer = fixture.call(line).await;
            if wanted(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, found)
        .await
        .unwrap_or_else(|_| panic!("{line} is never as wanted"))
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|volume| volume["id"].as_str().unwrap()).collect()
}

/// What the worker was asked for clients: listings come at any time.
fn asked(fixture: &Fixture) -> usize {
    let for_clients = |request: &&WorkerRequest| {
        matches!(
            request,
            WorkerRequest::CreateVolume(_)
                | WorkerRequest::ActOnVolume { .. }
                | WorkerRequest::GetVolume { .. }
                | WorkerRequest::TakeSnapshot { .. }
                | WorkerRequest::ListSnapshots { .. }
                | WorkerRequest::GetSnapshot { .. }
                | WorkerRequest::DeleteSnapshot { .. }
                | WorkerRequest::Create(_)
        )
    };
    fixture.worker.state().requests.iter().filter(for_clients).count()
}

#[tokio::test]
async fn a_volume_is_made_as_asked_and_with_defaults() {
    let fixture = with_app().await;
    let made = fixture.post(VOLUMES, json!({ "name": "data" })).await.ok();
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("vol_") && id.len() == 20, "{id}");
    assert_eq!(made["zone"], zone_of(&fixture.worker.id));
    for (field, value) in [
        ("name", json!("data")),
        ("size_gb", json!(3)),
        ("encrypted", json!(true)),
        ("fstype", json!("ext4")),
        ("snapshot_retention", json!(5)),
        ("auto_backup_enabled", json!(true)),
        ("attached_machine_id", Value::Null),
        ("attached_alloc_id", Value::Null),
        ("region", json!("local")),
        ("type", json!("local")),
        ("host_status", json!("ok")),
    ] {
        assert_eq!(made[field], value, "{field}");
    }
    assert_eq!(fixture.call(&format!("GET {VOLUMES}/{id}")).await.ok(), made);
    let other = json!({ "name": "raw", "size_gb": 10, "encrypted": false, "fstype": "raw",
        "snapshot_retention": 9, "auto_backup_enabled": false, "region": "local" });
    let made = fixture.post(VOLUMES, other.clone()).await.ok();
    for (field, value) in other.as_object().unwrap() {
        assert_eq!(made[field], *value, "{field}");
    }
    assert_eq!(fixture.call("GET /v1/apps/a").await.ok()["volume_count"], 2);
    let status = fixture.call("GET /v1/platform/status").await.ok();
    assert_eq!(
        (&status["hosts"][0]["volumes"], &status["hosts"][0]["free_volume_gb"]),
        (&json!(2), &json!(1000))
    );
}

#[tokio::test]
async fn what_clients_send_with_nulls_is_accepted() {
    let fixture = with_app().await;
    let sent = json!({ "name": "data", "region": "local", "size_gb": 1, "encrypted": true,
        "require_unique_zone": true, "unique_zone_app_wide": null, "snapshot_retention": null,
        "auto_backup_enabled": null, "fstype": null, "snapshot_id": null,
        "source_volume_id": null, "compute": null, "compute_image": "" });
    let made = fixture.post(VOLUMES, sent).await.ok();
    assert_eq!((&made["size_gb"], &made["snapshot_retention"]), (&json!(1), &json!(5)));
    assert_eq!(made.get("warnings"), None);
    let line = format!("{VOLUMES}/{}", made["id"].as_str().unwrap());
    let unchanged = json!({ "snapshot_retention": null, "auto_backup_enabled": null });
    assert_eq!(fixture.put(&line, unchanged).await.ok()["snapshot_retention"], 5);
}

#[tokio::test]
async fn fields_that_nobody_knows_are_told() {
    let fixture = with_app().await;
    let made = fixture.post(VOLUMES, json!({ "name": "data", "size": 9 })).await.ok();
    let warning = "size is not known and has no effect; did you mean size_gb?";
    assert_eq!((&made["warnings"], &made["size_gb"]), (&json!([warning]), &json!(3)));
    let line = format!("{VOLUMES}/{}", made["id"].as_str().unwrap());
    let updated = fixture.put(&line, json!({ "size_gb": 9 })).await.ok();
    let warning = "size_gb is not known and has no effect; use extend";
    assert_eq!((&updated["warnings"], &updated["size_gb"]), (&json!([warning]), &json!(3)));
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_and_nothing_is_made() {
    let fixture = with_app().await;
    let id = fixture.volume("a", "data").await;
    let before = asked(&fixture);
    for (body, status, text) in [
        (json!({}), 400, "invalid name, use 1 to 30 letters, digits and underscores"),
        (json!({ "name": "my-data" }), 400, "invalid name"),
        (json!({ "name": "a".repeat(31) }), 400, "invalid name"),
        (json!({ "name": "a", "size_gb": 501 }), 400, "must be between 1 and 500"),
        (json!({ "name": "a", "size_gb": -1 }), 400, "invalid size_gb"),
        (json!({ "name": "a", "snapshot_retention": 61 }), 400, "between 1 and 60 days"),
        (json!({ "name": "a", "fstype": "xfs" }), 400, "use ext4 or raw"),
        (json!({ "name": "a", "size_gb": 1_u64 << 40 }), 400, "must be between 1 and 500"),
        (json!({ "name": "a", "snapshot_id": "vol_1" }), 400, "'vol_1' is no ID of a snapshot"),
        (
            json!({ "name": "a", "snapshot_id": "vs_1", "source_volume_id": id }),
            400,
            "excludes source_volume_id",
        ),
        (
            json!({ "name": "a", "source_volume_id": id, "fstype": "raw" }),
            400,
            "invalid fstype 'raw', the source has ext4",
        ),
        (
            json!({ "name": "a", "source_volume_id": id, "encrypted": false }),
            400,
            "invalid encrypted, the source is encrypted, and so will the new one be",
        ),
        (json!({ "name": "a", "source_volume_id": "vol_9" }), 400, "has no volume 'vol_9'"),
        (json!({ "name": "a", "source_volume_id": "x" }), 400, "has no volume 'x'"),
        (json!({ "name": "a", "source_volume_id": id, "size_gb": 2 }), 400, "can't be smaller"),
        (json!({ "name": "a", "region": "nowhere" }), 422, "unknown region 'nowhere'"),
        (json!({ "name": "a", "compute": { "cpus": 3 } }), 400, "invalid config.guest.cpus"),
    ] {
        let answer = fixture.post(VOLUMES, &body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.error().contains(text), "{body}: {}", answer.error());
    }
    let missing = fixture.post("/v1/apps/other/volumes", json!({ "name": "a" })).await;
    assert_eq!(
        (missing.status.as_u16(), missing.error().contains("Could not find App")),
        (404, true)
    );
    assert_eq!(fixture.call(&format!("GET {VOLUMES}/x")).await.error(), "invalid volume ID, 'x'");
    let unknown = fixture.call(&format!("GET {VOLUMES}/vol_1")).await;
    assert_eq!((unknown.status.as_u16(), unknown.error()), (404, "volume not found".to_owned()));
    for (size, text) in [(3, "has 3 GB already"), (2, "only be made larger"), (501, "1 and 500")] {
        let answer = fixture.put(&format!("{}/extend", one(&id)), json!({ "size_gb": size })).await;
        assert_eq!(answer.status, 400);
        assert!(answer.error().contains(text), "{}", answer.error());
    }
    let answer = fixture.put(&one(&id), json!({ "snapshot_retention": 0 })).await;
    assert!(answer.error().contains("invalid snapshot_retention"));
    assert_eq!(asked(&fixture), before, "no worker was asked");
}

#[tokio::test]
async fn a_volume_is_updated_extended_deleted_and_undeleted() {
    let fixture = with_app().await;
    let id = fixture.volume("a", "data").await;
    let updated = fixture.put(&one(&id), json!({ "snapshot_retention": 14 })).await.ok();
    assert_eq!((&updated["snapshot_retention"], &updated["size_gb"]), (&json!(14), &json!(3)));
    let extended =
        fixture.put(&format!("{}/extend", one(&id)), json!({ "size_gb": 10 })).await.ok();
    assert_eq!(
        (&extended["volume"]["size_gb"], &extended["needs_restart"]),
        (&json!(10), &json!(false))
    );
    let deleted = fixture.call(&format!("DELETE {}", one(&id))).await.ok();
    assert_eq!(deleted["state"], "pending_destroy");
    assert!(deleted["deleted_until"].is_string());
    assert!(fixture.is_deleted(&id).await);
    // It is in lists until it is gone, and counted no more.
    let list = fixture.call(&format!("GET {VOLUMES}")).await.ok();
    assert_eq!(list[0]["state"], "pending_destroy");
    assert_eq!(fixture.call("GET /v1/apps/a").await.ok()["volume_count"], 0);
    let of_all = fixture.call("GET /v1/orgs/personal/volumes").await.ok();
    assert_eq!(of_all["volumes"], json!([]));
    let again = fixture.call(&format!("DELETE {}", one(&id))).await.ok();
    assert_eq!(again["state"], "pending_destroy");
    let undeleted = fixture.call(&format!("POST {}/undelete", one(&id))).await.ok();
    assert_eq!(
        (&undeleted["state"], &undeleted["deleted_until"]),
        (&json!("created"), &Value::Null)
    );
    let restored = async {
        while fixture.is_deleted(&id).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, restored).await.unwrap();
}

#[tokio::test]
async fn a_volume_is_purged_at_once_whether_it_was_deleted_before_or_not() {
    let fixture = with_app().await;
    for delete_before in [false, true] {
        let id = fixture.volume("a", "data").await;
        if delete_before {
            fixture.call(&format!("DELETE {}", one(&id))).await.ok();
        }
        let purged = fixture.call(&format!("DELETE {}?purge=true", one(&id))).await.ok();
        assert_eq!(
            (&purged["state"], &purged["deleted_until"]),
            (&json!("destroyed"), &Value::Null)
        );
        assert!(fixture.is_deleted(&id).await);
    }
    let id = fixture.volume("a", "data").await;
    let unclear = fixture.call(&format!("DELETE {}?purge=maybe", one(&id))).await;
    assert_eq!(unclear.status, 400);
    assert!(!fixture.is_deleted(&id).await);
}

#[tokio::test]
async fn the_first_of_several_volumes_is_refused_where_there_is_no_room_for_all() {
    let fixture = with_app().await;
    let before = asked(&fixture);
    // Its host has 1000 GiB left after the first.
    let body = |count: u32| json!({ "name": "data", "size_gb": 100, "count": count });
    let refused = fixture.post(VOLUMES, body(12)).await;
    assert_eq!(refused.status, 422);
    assert_eq!(refused.json()["status"], "insufficient_capacity");
    let text = "there is room for 11 volumes of 100 GiB, not for 12; deleted ones keep their space";
    assert!(refused.error().contains(text), "{}", refused.error());
    assert_eq!(asked(&fixture), before, "no worker was asked");
    let made = fixture.post(VOLUMES, body(11)).await.ok();
    assert_eq!((&made["size_gb"], made.get("warnings")), (&json!(100), None));
    assert_eq!(fixture.call("GET /v1/apps/a").await.ok()["volume_count"], 1);
}

#[tokio::test]
async fn a_volume_that_can_not_be_undeleted_stays_deleted() {
    let fixture = with_app().await;
    let id = fixture.volume("a", "data").await;
    fixture.call(&format!("DELETE {}", one(&id))).await.ok();
    fixture.worker.state().volume_errors.push_back(ApiError::precondition("the volume is gone"));
    let refused = fixture.call(&format!("POST {}/undelete", one(&id))).await;
    assert_eq!(refused.status, 412);
    assert!(fixture.is_deleted(&id).await);
}

#[tokio::test]
async fn lists_have_pages_and_summaries_and_the_newest_last() {
    let fixture = with_app().await;
    let mut made = Vec::new();
    for number in 0..5 {
        let id = fixture.volume("a", "data").await;
        {
            let mut state = fixture.worker.state();
            let created_at = format!("2026-03-31T06:08:0{}.000Z", (number + 3) % 5);
            state.volumes.get_mut(&id).unwrap().volume.created_at = created_at.clone();
            state.changed(&id).unwrap();
            made.push((created_at, id.to_string()));
        }
        fixture.call(&format!("GET {}", one(&id))).await.ok();
    }
    made.sort();
    let made: Vec<_> = made.iter().map(|(_, id)| id.as_str()).collect();
    let all = fixture.call(&format!("GET {VOLUMES}")).await.ok();
    assert_eq!(ids(&all), made);
    assert!(all[0]["blocks"].is_number());
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = fixture.call(&format!("GET {VOLUMES}?summary=true&limit=2{cursor}")).await;
        let next = page.headers.get("fly-next-cursor").cloned();
        let page = page.ok();
        assert_eq!(page[0].get("blocks"), None);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        let Some(next) = next else { break };
        cursor = format!("&cursor={}", next.to_str().unwrap());
    }
    assert_eq!(seen, ids(&all));
    assert_eq!(fixture.call(&format!("GET {VOLUMES}?limit=1001")).await.status, 400);
    assert_eq!(fixture.call(&format!("GET {VOLUMES}?cursor=x")).await.status, 400);
}

#[tokio::test]
async fn the_volumes_of_an_organization_are_listed_by_time_of_their_change() {
    let fixture = with_app().await;
    fixture.app("b").await;
    let (one, other) = (fixture.volume("a", "data").await, fixture.volume("b", "data").await);
    {
        let mut state = fixture.worker.state();
        state.volumes.get_mut(&one).unwrap().updated_at =
            caddis_api::UnixMillis::new(1_700_000_000_500);
        state.changed(&one).unwrap();
    }
    let line = "GET /v1/orgs/personal/volumes";
    fixture.call(&format!("GET {VOLUMES}/{one}")).await.ok();
    let first = fixture.call(&format!("{line}?limit=1")).await.ok();
    assert_eq!(first["volumes"][0]["id"], json!(other));
    assert_eq!(
        (&first["volumes"][0]["app_name"], &first["last_updated_at"]),
        (&json!("b"), &json!("2023-11-14T22:13:20.000Z"))
    );
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = fixture.call(&format!("{line}?limit=1&cursor={cursor}")).await.ok();
    assert_eq!((&second["volumes"][0]["id"], second.get("next_cursor")), (&json!(one), None));
    let later = format!("{line}?updated_after=2023-11-14T22:13:20Z");
    assert_eq!(fixture.call(&later).await.ok()["volumes"].as_array().unwrap().len(), 1);
    for (query, count) in [
        ("state=created", 2),
        ("state=extending,hydrating", 0),
        ("region=local", 2),
        ("region=far", 0),
        ("summary=true", 2),
    ] {
        let found = fixture.call(&format!("{line}?{query}")).await.ok();
        assert_eq!(found["volumes"].as_array().unwrap().len(), count, "{query}");
    }
    assert_eq!(fixture.call(&format!("{line}?state=gone")).await.status, 400);
    fixture.call(&format!("DELETE {VOLUMES}/{one}")).await.ok();
    for (query, count) in [("", 1), ("include_deleted=true", 2), ("state=pending_destroy", 1)] {
        let found = fixture.call(&format!("{line}?{query}")).await.ok();
        assert_eq!(found["volumes"].as_array().unwrap().len(), count, "{query}");
    }
    fixture.accept("reader", "b", Access::Read);
    let request = fixture.request_by("reader", line).body(Body::empty()).unwrap();
    let seen = fixture.send(request).await.ok();
    assert_eq!(seen["volumes"].as_array().unwrap().len(), 1, "of its app alone");
}

#[tokio::test]
async fn a_volume_of_another_app_is_none_in_the_own_app() {
    let fixture = with_app().await;
    fixture.app("b").await;
    let id = fixture.volume("b", "data").await;
    let before = asked(&fixture);
    for (method, path, body) in [
        ("GET", "", ""),
        ("PUT", "", "{}"),
        ("DELETE", "", ""),
        ("PUT", "/extend", r#"{"size_gb": 10}"#),
        ("POST", "/undelete", ""),
        ("GET", "/snapshots", ""),
        ("POST", "/snapshots", ""),
        ("GET", "/snapshots/vs_1", ""),
        ("DELETE", "/snapshots/vs_1", ""),
    ] {
        let request = fixture.request(&format!("{method} {}{path}", one(&id)));
        let answer = fixture.send(request.body(Body::from(body)).unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.error()), (404, "volume not found".to_owned()));
    }
    let copy = json!({ "name": "data", "source_volume_id": id });
    let answer = fixture.post(VOLUMES, copy).await;
    assert!(answer.error().contains("the app has no volume"), "{}", answer.text);
    assert_eq!(asked(&fixture), before);
}

#[tokio::test]
async fn a_copy_goes_to_the_host_of_its_source_with_what_that_is() {
    let fixture = with_app().await;
    let second = FakeWorker::named("W2", fixture.worker.bus.clone());
    let _serving = second.serve("far").await;
    let source = json!({ "name": "data", "region": "local", "size_gb": 7, "encrypted": false,
        "fstype": "raw" });
    let source = fixture.post(VOLUMES, source).await.ok();
    until(&fixture, "GET /v1/platform/regions", |answer| answer.text.contains("far")).await;
    let id = source["id"].as_str().unwrap();
    let copy = json!({ "name": "copy", "source_volume_id": id, "require_unique_zone": true });
    let copy = fixture.post(VOLUMES, copy).await.ok();
    assert_eq!(copy["state"], "hydrating");
    for field in ["size_gb", "encrypted", "fstype", "zone"] {
        assert_eq!(copy[field], source[field], "{field}");
    }
    let larger = json!({ "name": "copy", "source_volume_id": id, "size_gb": 9 });
    assert_eq!(fixture.post(VOLUMES, larger).await.ok()["size_gb"], 9);
    let elsewhere = json!({ "name": "copy", "source_volume_id": id, "region": "far" });
    let refused = fixture.post(VOLUMES, elsewhere).await;
    assert_eq!(refused.status, 422);
    assert!(refused.error().contains("a copy of a volume is made on its host, in local"));
    fixture.call(&format!("DELETE {VOLUMES}/{id}")).await.ok();
    let deleted = json!({ "name": "copy", "source_volume_id": id });
    let refused = fixture.post(VOLUMES, deleted).await;
    assert_eq!(refused.status, 412);
    assert!(refused.error().contains("is pending_destroy, it can't be copied"));
}

#[tokio::test]
async fn volumes_of_one_name_are_on_different_hosts_where_there_are_several() {
    let fixture = with_app().await;
    let second = FakeWorker::named("W2", fixture.worker.bus.clone());
    let _serving = second.serve("local").await;
    until(&fixture, "GET /v1/platform/status", |answer| answer.text.contains("\"W2\"")).await;
    let make = async |body: Value| fixture.post(VOLUMES, body).await;
    let zone = |answer: Answer| answer.ok()["zone"].as_str().unwrap().to_owned();
    let first = zone(make(json!({ "name": "data" })).await);
    let other = zone(make(json!({ "name": "data" })).await);
    assert_ne!(first, other);
    let refused = make(json!({ "name": "data" })).await;
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert_eq!(refused.json()["status"], "insufficient_capacity");
    assert!(refused.error().contains("require_unique_zone"), "{}", refused.error());
    // Before the first of several is made.
    let refused = make(json!({ "name": "several", "count": 3 })).await;
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert!(
        refused.error().contains("need as many hosts with room; there is room on 2"),
        "{}",
        refused.error()
    );
    make(json!({ "name": "several", "count": 3, "require_unique_zone": false })).await.ok();
    make(json!({ "name": "data", "require_unique_zone": false })).await.ok();
    make(json!({ "name": "other" })).await.ok();
    let app_wide = json!({ "name": "third", "unique_zone_app_wide": true });
    let refused = make(app_wide).await;
    assert_eq!(refused.status, 422);
    assert!(refused.error().contains("(unique_zone_app_wide)"), "{}", refused.error());
}

#[tokio::test]
async fn one_host_has_several_volumes_of_a_name_unless_a_zone_of_its_own_is_insisted_on() {
    let fixture = with_app().await;
    for _ in 0..2 {
        fixture.volume("a", "data").await;
    }
    let insisted = json!({ "name": "data", "require_unique_zone": true });
    assert_eq!(fixture.post(VOLUMES, insisted.clone()).await.status, 422);
    for volume in ids(&fixture.call(&format!("GET {VOLUMES}")).await.ok()) {
        fixture.call(&format!("DELETE {VOLUMES}/{volume}")).await.ok();
    }
    for setting in ["require_unique_zone", "unique_zone_app_wide"] {
        let several = json!({ "name": "several", setting: true, "count": 2 });
        let refused = fixture.post(VOLUMES, several).await;
        assert_eq!(refused.status, 422);
        assert!(refused.error().contains(&format!("({setting})")), "{}", refused.error());
    }
    fixture.post(VOLUMES, insisted).await.ok();
}

#[tokio::test]
async fn a_host_without_room_gets_none() {
    let fixture = with_app().await;
    let full = Offer {
        worker: fixture.worker.id.clone(),
        fits: false,
        drains: false,
        shortage: Some("volumes".to_owned()),
        free_memory_mib: 1024,
        free_cpus: 4,
        free_disk_gib: 80,
        free_volume_gib: Some(2),
        has_image: false,
    };
    fixture.worker.state().offer = Some(full);
    let refused = fixture.post(VOLUMES, json!({ "name": "data", "size_gb": 10 })).await;
    assert_eq!(refused.status, 422);
    let text = "could not find a candidate host: the volume needs 10 GiB; host W1 in local has not \
                enough free: volumes";
    assert_eq!(refused.error(), text);
    // One that finds out when it is asked.
    fixture.worker.state().offer = None;
    let error = ApiError::new(ErrorCode::InsufficientCapacity, "no space for volumes");
    fixture.worker.state().volume_errors.push_back(error);
    let refused = fixture.post(VOLUMES, json!({ "name": "data" })).await;
    assert_eq!(
        (refused.status.as_u16(), refused.error()),
        (422, "no space for volumes".to_owned())
    );
    assert_eq!(fixture.call(&format!("GET {VOLUMES}")).await.ok(), json!([]));
    fixture.call("DELETE /v1/apps/a").await;
    fixture.until_gone("a").await;
}

#[tokio::test]
async fn the_same_request_makes_one_volume() {
    let fixture = with_app().await;
    let send = async || {
        let request = fixture.request(&format!("POST {VOLUMES}")).header("idempotency-key", "k");
        fixture.send(request.body(Body::from(r#"{"name": "data"}"#)).unwrap()).await
    };
    let first = send().await.ok();
    assert_eq!(send().await.ok(), first);
    // As if the answer had never been kept.
    let path = fixture.directory.path().join("catalog.db");
    let catalog = rusqlite::Connection::open(path).unwrap();
    catalog.execute("UPDATE requests SET status = NULL, body = NULL", []).unwrap();
    assert_eq!(send().await.ok()["id"], first["id"]);
    assert_eq!(fixture.worker.state().volumes.len(), 1);
}

#[tokio::test]
async fn changes_that_nobody_asked_for_are_seen_by_the_next_announcement() {
    let fixture = with_app().await;
    let id = fixture.volume("a", "data").await;
    {
        let mut state = fixture.worker.state();
        state.volumes.get_mut(&id).unwrap().volume.bytes_used = 77;
        state.changed(&id).unwrap();
    }
    fixture.worker.announce("local").await;
    let list = format!("GET {VOLUMES}");
    until(&fixture, &list, |answer| answer.json()[0]["bytes_used"] == 77).await;
    let second = FakeWorker::named("W2", fixture.worker.bus.clone());
    let _serving = second.serve("far").await;
    until(&fixture, "GET /v1/platform/regions", |answer| answer.text.contains("far")).await;
    let far = json!({ "name": "far", "region": "far" });
    let far: VolumeId =
        fixture.post(VOLUMES, far).await.ok()["id"].as_str().unwrap().parse().unwrap();
    // An announcement of what is known asks for no listing. Announcements from before, which the
    // gateway may hear late, do.
    let settled = async {
        for round in 1_u64.. {
            let lists = fixture.worker.state().volume_lists;
            fixture.worker.announce("local").await;
            // What another worker announces is heard after it.
            {
                let mut state = second.state();
                state.volumes.get_mut(&far).unwrap().volume.bytes_used = round;
                state.changed(&far).unwrap();
            }
            second.announce("far").await;
            let is_known = |answer: &Answer| {
                let list = answer.json();
                let mut shown = list.as_array().unwrap().iter();
                shown.any(|one| one["id"] == json!(far) && one["bytes_used"] == round)
            };
            until(&fixture, &list, is_known).await;
            if fixture.worker.state().volume_lists == lists {
                return;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, settled).await.expect("each announcement asks for a listing");
    // It is gone, and its worker began anew.
    {
        let mut state = fixture.worker.state();
        state.volumes.remove(&id);
        (state.incarnation, state.volume_revision, state.sequence) = ("second".to_owned(), 0, 0);
    }
    fixture.worker.announce("local").await;
    until(&fixture, &list, |answer| ids(&answer.json()) == [far.to_string()]).await;
}

#[tokio::test]
async fn volumes_that_were_there_before_are_known_at_the_first_request() {
    let fixture = with_app().await;
    for _ in 0..5 {
        fixture.volume("a", "data").await;
    }
    let gateway = fixture.restarted().await;
    let again = Fixture { router: gateway.router(), ..fixture };
    let list = again.call(&format!("GET {VOLUMES}")).await.ok();
    assert_eq!(list.as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn volumes_of_a_host_that_is_silent_are_shown_as_such() {
    let settings = Settings {
        suspected_after: Duration::from_millis(300),
        unreachable_after: Duration::from_millis(900),
        ..Settings::default()
    };
    let fixture = Fixture::with(settings, |_| {}).await;
    fixture.app("a").await;
    let id = fixture.volume("a", "data").await;
    fixture.worker.state().mute = true;
    let list = format!("GET {VOLUMES}");
    until(&fixture, &list, |answer| answer.json()[0]["host_status"] == "unreachable").await;
    let shown = fixture.call(&format!("GET {}", one(&id))).await.ok();
    assert_eq!(
        (&shown["host_status"], &shown["state"]),
        (&json!("unreachable"), &json!("created"))
    );
    let config = json!({ "image": "nginx", "mounts": [{ "volume": "data", "path": "/data" }] });
    let refused = fixture.post("/v1/apps/a/machines", json!({ "config": config })).await;
    assert_eq!(refused.status, 504, "{}", refused.text);
    assert!(refused.error().contains("can't be reached"), "{}", refused.error());
}

#[tokio::test]
async fn an_app_takes_its_volumes_along() {
    let fixture = with_app().await;
    let (free, used) = (fixture.volume("a", "free").await, fixture.volume("a", "used").await);
    let machine = fixture.machine_with("a", json!([{ "volume": used, "path": "/data" }])).await;
    let machine = machine.ok()["id"].as_str().unwrap().parse().unwrap();
    fixture.worker.turn(&machine, MachineState::Started, "start").await;
    assert_eq!(fixture.call("DELETE /v1/apps/a").await.status, 202);
    fixture.until_gone("a").await;
    let state = fixture.worker.state();
    for id in [free, used] {
        assert!(state.volumes[&id].volume.state.is_deleted(), "{id}");
    }
}

#[tokio::test]
async fn a_later_app_of_the_same_name_does_not_see_what_is_left() {
    let fixture = with_app().await;
    let id = fixture.volume("a", "data").await;
    assert_eq!(fixture.call("DELETE /v1/apps/a").await.status, 202);
    fixture.until_gone("a").await;
    fixture.app("a").await;
    assert_eq!(fixture.call(&format!("GET {VOLUMES}")).await.ok(), json!([]));
    assert_eq!(fixture.call(&format!("GET {}", one(&id))).await.status, 404);
    assert_eq!(fixture.call(&format!("POST {}/undelete", one(&id))).await.status, 404);
    let of_all = "GET /v1/orgs/personal/volumes?include_deleted=true";
    assert_eq!(fixture.call(of_all).await.ok()["volumes"], json!([]));
}

#[tokio::test]
async fn a_volume_that_was_placed_and_never_made_keeps_no_app() {
    let settings = Settings { create_deadline: Duration::from_millis(20), ..Settings::default() };
    let fixture = Fixture::with(settings, |_| {}).await;
    fixture.app("a").await;
    let new = caddis_catalog::NewVolume {
        id: None,
        app: "a".parse().unwrap(),
        name: "data".to_owned(),
        worker: WorkerId::from_trusted("W1"),
        region: caddis_api::RegionCode::from_trusted("local"),
    };
    let placed = fixture.catalog.place_volume(new).await.unwrap();
    // A listing finds that it is not there.
    fixture.worker.state().volume_revision += 1;
    fixture.worker.announce("local").await;
    let given_up = async {
        while !fixture.is_deleted(&placed.id).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, given_up).await.unwrap();
}

#[tokio::test]
async fn a_placed_volume_that_many_listings_miss_is_asked_for_once() {
    let settings = Settings { create_deadline: Duration::from_millis(250), ..Settings::default() };
    let fixture = Fixture::with(settings, |_| {}).await;
    fixture.app("a").await;
    let new = caddis_catalog::NewVolume {
        id: None,
        app: "a".parse().unwrap(),
        name: "data".to_owned(),
        worker: WorkerId::from_trusted("W1"),
        region: caddis_api::RegionCode::from_trusted("local"),
    };
    let placed = fixture.catalog.place_volume(new).await.unwrap();
    for _ in 0..5 {
        let lists = fixture.worker.state().volume_lists;
        fixture.worker.state().volume_revision += 1;
        fixture.worker.announce("local").await;
        let listed = async {
            while fixture.worker.state().volume_lists == lists {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, listed).await.unwrap();
    }
    let given_up = async {
        while !fixture.is_deleted(&placed.id).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, given_up).await.unwrap();
    let state = fixture.worker.state();
    let looks = state.requests.iter().filter(
        |request| matches!(request, WorkerRequest::GetVolume { volume } if *volume == placed.id),
    );
    assert_eq!(looks.count(), 1);
}

#[tokio::test]
async fn a_volume_that_can_not_be_deleted_keeps_no_name_of_a_machine() {
    let fixture = with_app().await;
    fixture.app("b").await;
    let id = fixture.volume("a", "data").await;
    let machine = fixture.machine("b", "m").await;
    assert_eq!(fixture.call("DELETE /v1/apps/a").await.status, 202);
    fixture.until_gone("a").await;
    // It is back without its app, and can't be deleted for now.
    let deletes = || {
        let state = fixture.worker.state();
        let of_it = state.requests.iter().filter(|request| {
            matches!(request, WorkerRequest::ActOnVolume { volume, action: VolumeAction::Delete }
                if *volume == id)
        });
        of_it.count()
    };
    let before = deletes();
    {
        let mut state = fixture.worker.state();
        let refusal = || ApiError::new(ErrorCode::Unavailable, "not now");
        state.volume_errors.extend(std::iter::repeat_with(refusal).take(1000));
        let volume = &mut state.volumes.get_mut(&id).unwrap().volume;
        (volume.state, volume.deleted_until) = (VolumeState::Created, None);
        state.changed(&id).unwrap();
    }
    fixture.worker.announce("local").await;
    let tried = async {
        while deletes() == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, tried).await.expect("nobody deletes the volume");
    fixture.worker.turn(&machine, MachineState::Destroyed, "destroy").await;
    let released = async {
        while !fixture.is_released(&machine).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, released).await.expect("the machine keeps its name");
    fixture.worker.state().volume_errors.clear();
    let deleted = async {
        while !fixture.worker.state().volumes[&id].volume.state.is_deleted() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, deleted).await.expect("the volume is deleted in the end");
}

#[tokio::test]
async fn the_worker_is_asked_for_what_was_asked_of_the_gateway() {
    let fixture = with_app().await;
    let id = fixture.volume("a", "data").await;
    fixture.put(&format!("{}/extend", one(&id)), json!({ "size_gb": 9 })).await.ok();
    let state = fixture.worker.state();
    let extended = state.requests.iter().any(|request| {
        matches!(request, WorkerRequest::ActOnVolume { volume, action: VolumeAction::Extend {
            size_gb: 9 } } if *volume == id)
    });
    assert!(extended);
    let made = state.requests.iter().find_map(|request| match request {
        WorkerRequest::CreateVolume(create) => Some(create.clone()),
        _ => None,
    });
    let made = made.unwrap();
    assert_eq!((made.id, made.app.as_str(), made.source), (id, "a", None));
}
