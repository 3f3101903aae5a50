//! Apps and regions.

use axum::http::{Request, StatusCode};
use caddis_api::MachineState;
use caddis_bus::message::{Action, WorkerRequest};
use serde_json::json;

use crate::support::Fixture;

#[tokio::test]
async fn an_app_is_made_shown_listed_and_deleted() {
    let fixture = Fixture::new().await;
    let made = fixture
        .post("/v1/apps", json!({"app_name": "a", "org_slug": "personal", "network": ""}))
        .await;
    assert_eq!(made.status, StatusCode::CREATED);
    let made = made.json();
    assert!(made["id"].is_string() && made["created_at"].is_u64());
    assert_eq!((&made["name"], &made["network"]), (&json!("a"), &json!("default")));
    let app = fixture.call("GET /v1/apps/a").await.ok();
    assert_eq!((&app["id"], &app["status"]), (&made["id"], &json!("pending")));
    assert_eq!(app["organization"]["slug"], "personal");
    let list = fixture.call("GET /v1/apps?org_slug=personal").await.ok();
    assert_eq!((&list["total_apps"], &list["apps"]), (&json!(1), &json!([app])));
    let deleted = fixture.call("DELETE /v1/apps/a?force=true").await;
    assert_eq!((deleted.status, deleted.text.as_str()), (StatusCode::ACCEPTED, ""));
    assert_eq!(fixture.call("GET /v1/apps/a").await.error(), "Could not find App \"a\"");
}

#[tokio::test]
async fn app_names_are_made_up_checked_and_unique() {
    let fixture = Fixture::new().await;
    let made = fixture
        .post("/v1/apps?wait=true", json!({"org_slug": "personal", "name": null}))
        .await
        .json();
    let name = made["name"].as_str().unwrap();
    let again = fixture.post("/v1/apps", json!({"org_slug": "personal", "name": name})).await;
    assert_eq!(again.status, 422);
    assert_eq!(
        (again.error().as_str(), &again.json()["status"]),
        ("Validation failed: Name has already been taken", &json!("name_taken"))
    );
    for (body, status, text) in [
        (
            json!({"org_slug": "personal", "name": "No_Good"}),
            422,
            "Validation failed: Name under 63 chars",
        ),
        (json!({"name": "x"}), 400, "org_slug"),
        (json!({"name": "x", "org_slug": "other"}), 404, "Could not find Organization"),
        (json!({"name": "x", "org_slug": "personal", "network": "a/b"}), 400, "network"),
    ] {
        let answer = fixture.post("/v1/apps", &body).await;
        assert_eq!(answer.status, status, "{body}");
        assert!(answer.error().contains(text), "{}", answer.text);
    }
}

#[tokio::test]
async fn the_same_idempotency_key_makes_one_app() {
    let fixture = Fixture::new().await;
    let body = json!({"org_slug": "personal", "idempotency_key": "k"});
    let first = fixture.post("/v1/apps", &body).await.json();
    assert_eq!(fixture.post("/v1/apps", &body).await.json(), first);
    let other = json!({"org_slug": "personal", "idempotency_key": "k", "name": "other"});
    assert_eq!(fixture.post("/v1/apps", &other).await.status, 422);
}

#[tokio::test]
async fn apps_come_in_pages() {
    let fixture = Fixture::new().await;
    for name in ["a", "b", "c"] {
        fixture.app(name).await;
    }
    let first = fixture.call("GET /v1/apps?org_slug=personal&limit=2").await.ok();
    assert_eq!((first["apps"].as_array().unwrap().len(), &first["total_apps"]), (2, &json!(3)));
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = fixture.call(&format!("GET /v1/apps?limit=2&cursor={cursor}")).await.ok();
    assert_eq!(second["apps"][0]["name"], "c");
    assert!(second.get("next_cursor").is_none());
    for query in ["limit=0", "limit=5001", "limit=x", "cursor=x", "limit=1&cursor=x"] {
        assert_eq!(fixture.call(&format!("GET /v1/apps?{query}")).await.status, 400, "{query}");
    }
}

#[tokio::test]
async fn deleting_an_app_destroys_its_machines_whoever_leases_them() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let lease = fixture.post(&format!("/v1/apps/a/machines/{id}/lease"), "").await;
    assert_eq!(lease.status, 201);
    assert_eq!(fixture.call("GET /v1/apps/a").await.ok()["machine_count"], 1);
    assert_eq!(fixture.call("DELETE /v1/apps/a").await.status, 202);
    fixture.until_gone("a").await;
    let destroyed = fixture.worker.state().requests.iter().any(|request| {
        matches!(
            request,
            WorkerRequest::Act { action: Action::Destroy { force: true }, machine, .. }
                if *machine == id
        )
    });
    assert!(destroyed);
    fixture.app("a").await;
}

#[tokio::test]
async fn a_deletion_that_was_cut_short_goes_on_at_the_next_start() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    fixture.catalog.begin_app_deletion("a").await.unwrap();
    let refused = fixture.post("/v1/apps/a/machines", json!({"config": {"image": "nginx"}})).await;
    assert_eq!(refused.status, 412, "{}", refused.text);
    let _gateway = fixture.restarted().await;
    fixture.until_gone("a").await;
    assert_eq!(fixture.worker.state().machines[&id].machine.state, MachineState::Destroyed);
}

#[tokio::test]
async fn regions_need_no_token_and_show_capacity() {
    let fixture = Fixture::new().await;
    let answer =
        fixture.send(Request::get("/v1/platform/regions").body("".into()).unwrap()).await.ok();
    assert_eq!(
        (&answer["nearest"], &answer["regions"][0]["code"]),
        (&json!("local"), &json!("local"))
    );
    assert_eq!(answer["regions"][0]["capacity"], 5);
}

#[tokio::test]
async fn health_tells_why_requests_would_fail() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    fixture.call("GET /v1/apps/a").await.ok();
    let healthy = fixture.call("GET /healthz").await;
    assert_eq!(
        (healthy.status.as_u16(), healthy.json()),
        (200, json!({"ok": true, "problems": [], "warnings": []}))
    );
    fixture.worker.state().warnings = vec!["no template".to_owned()];
    let warned = fixture.call("GET /healthz").await;
    assert_eq!(
        (warned.status.as_u16(), &warned.json()["warnings"]),
        (200, &json!(["no template"]))
    );
    fixture.worker.state().warnings.clear();
    fixture.worker.state().problems = vec!["the disk is full".to_owned()];
    let ill = fixture.send(Request::get("/healthz").body("".into()).unwrap()).await;
    assert_eq!(
        (ill.status.as_u16(), ill.json()),
        (503, json!({"ok": false, "problems": ["the disk is full"], "warnings": []}))
    );
}
