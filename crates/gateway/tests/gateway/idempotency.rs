//! Requests that may be sent again.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, http::Request};
use caddis_api::{MachineState, UnixMillis};
use caddis_bus::message::{Action, WorkerRequest};
use caddis_catalog::{Catalog, IdempotencyState, KeyedRequest, MemoryStore, REQUEST_LEASE};
use caddis_gateway::Settings;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::{Answer, Fixture, TIMEOUT};

const MACHINES: &str = "/v1/apps/a/machines";

fn keyed(fixture: &Fixture, path: &str, key: &str, body: &Value) -> Request<Body> {
    let request = fixture.request(&format!("POST {path}")).header("idempotency-key", key);
    request.body(Body::from(if body.is_null() { String::new() } else { body.to_string() })).unwrap()
}

async fn post(fixture: &Fixture, path: &str, key: &str, body: &Value) -> Answer {
    fixture.send(keyed(fixture, path, key, body)).await
}

fn machine() -> Value {
    json!({ "config": { "image": "nginx" } })
}

/// How many machines the worker was asked to make, the same one counted once.
fn made(fixture: &Fixture) -> usize {
    fixture.worker.state().machines.len()
}

#[tokio::test]
async fn the_same_request_is_carried_out_once_and_answered_the_same() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let first = post(&fixture, MACHINES, "k", &machine()).await;
    assert!(!first.headers.contains_key("idempotency-replayed"));
    let again = post(&fixture, MACHINES, "k", &machine()).await;
    assert_eq!(
        (again.status, &again.headers["idempotency-replayed"]),
        (first.status, &"true".parse().unwrap())
    );
    assert_eq!(again.headers["content-type"], "application/json");
    assert_ne!(again.headers["fly-request-id"], first.headers["fly-request-id"]);
    assert_eq!(again.text, first.text);
    assert_ne!(post(&fixture, MACHINES, "other", &machine()).await.ok()["id"], first.json()["id"]);
    assert_eq!(made(&fixture), 2);
    // It outlives the gateway.
    let router = fixture.restarted().await.router();
    let fixture = Fixture { router, ..fixture };
    assert_eq!(post(&fixture, MACHINES, "k", &machine()).await.text, first.text);
}

#[tokio::test]
async fn two_at_once_are_one() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let body = machine();
    let (one, other) =
        tokio::join!(post(&fixture, MACHINES, "k", &body), post(&fixture, MACHINES, "k", &body));
    assert_eq!(one.ok()["id"], other.ok()["id"]);
    assert_eq!(made(&fixture), 1);
}

#[tokio::test]
async fn a_key_belongs_to_one_request() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    post(&fixture, MACHINES, "k", &machine()).await.ok();
    let stop = format!("{MACHINES}/{id}/stop");
    for (path, body) in [
        (MACHINES, json!({ "config": { "image": "other" } })),
        (&stop, Value::Null),
        ("/v1/apps", machine()),
    ] {
        let refused = post(&fixture, path, "k", &body).await;
        assert_eq!(refused.status, 422, "{path}");
        assert!(refused.error().contains("used for a different request"), "{}", refused.text);
    }
    for key in ["", " ", &"x".repeat(256), "ä"] {
        let refused = post(&fixture, MACHINES, key, &machine()).await;
        assert_eq!(refused.status, 400, "{key:?}");
        assert!(refused.error().contains("idempotency-key"));
    }
    assert_eq!(made(&fixture), 2, "the one that was there and the one that was made");
}

#[tokio::test]
async fn what_failed_may_be_tried_again() {
    let fixture = Fixture::new().await;
    assert_eq!(post(&fixture, MACHINES, "k", &machine()).await.status, 404);
    fixture.app("a").await;
    post(&fixture, MACHINES, "k", &machine()).await.ok();
    let app = json!({ "name": "b", "org_slug": "personal" });
    let first = post(&fixture, "/v1/apps", "app", &app).await;
    assert_eq!((first.status.as_u16(), &first.json()["name"]), (201, &json!("b")));
    assert_eq!(post(&fixture, "/v1/apps", "app", &app).await.text, first.text);
    assert_eq!(post(&fixture, "/v1/apps", "another", &app).await.status, 422, "the name is taken");
}

#[tokio::test]
async fn a_machine_is_made_once_when_its_worker_answered_too_late() {
    let settings = Settings { create_deadline: Duration::from_millis(200), ..Settings::default() };
    let fixture = Fixture::with(settings, |worker| worker.state().silent_creates = 2).await;
    fixture.app("a").await;
    assert_eq!(post(&fixture, MACHINES, "k", &machine()).await.status, 504);
    let made_first = fixture.worker.state().machines.keys().next().cloned().unwrap();
    let again = post(&fixture, MACHINES, "k", &machine()).await.ok();
    assert_eq!(again["id"], made_first.as_str());
    assert_eq!(made(&fixture), 1);
}

#[tokio::test]
async fn a_machine_is_made_once_when_the_server_was_killed() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let made_first = post(&fixture, MACHINES, "k", &machine()).await.ok()["id"].clone();
    forget_answers(&fixture);
    let again = post(&fixture, MACHINES, "k", &machine()).await.ok();
    assert_eq!(again["id"], made_first);
    // Also when it is gone by then.
    forget_answers(&fixture);
    let id = made_first.as_str().unwrap().parse().unwrap();
    fixture.worker.turn(&id, MachineState::Destroyed, "destroy").await;
    fixture.call(&format!("GET {MACHINES}/{id}/wait?state=destroyed")).await.ok();
    let again = post(&fixture, MACHINES, "k", &machine()).await.ok();
    assert_eq!((&again["id"], &again["state"]), (&made_first, &json!("destroyed")));
    assert_eq!(made(&fixture), 1);
}

#[tokio::test]
async fn what_may_have_been_done_is_done_again_only_where_that_comes_to_the_same() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let restart = format!("{MACHINES}/{id}/restart");
    post(&fixture, &restart, "r", &Value::Null).await.ok();
    let update = format!("{MACHINES}/{id}");
    post(&fixture, &update, "u", &machine()).await.ok();
    let cordon = format!("{MACHINES}/{id}/cordon");
    post(&fixture, &cordon, "c", &Value::Null).await.ok();
    forget_answers(&fixture);
    let refused = post(&fixture, &restart, "r", &Value::Null).await;
    assert_eq!(refused.status, 409);
    assert!(refused.error().contains("interrupted"), "{}", refused.text);
    post(&fixture, &cordon, "c", &Value::Null).await.ok();
    post(&fixture, &update, "u", &machine()).await.ok();
    let state = fixture.worker.state();
    let restarts = state.requests.iter().filter(|request| {
        matches!(request, WorkerRequest::Act { action: Action::Restart { .. }, .. })
    });
    assert_eq!(restarts.count(), 1);
    let versions: Vec<_> = state
        .requests
        .iter()
        .filter_map(|request| match request {
            WorkerRequest::Update { update, .. } => Some(update.version.clone().unwrap()),
            _ => None,
        })
        .collect();
    assert_eq!(versions.len(), 2);
    assert_eq!(versions[0], versions[1], "so that the worker knows it for the same");
}

#[tokio::test]
async fn keys_of_others_are_others() {
    let fixture = Fixture::new().await;
    let request = |caller: &str, id: &str| KeyedRequest {
        caller: caller.to_owned(),
        key: "k".to_owned(),
        id: id.to_owned(),
        fingerprint: [0; 32],
    };
    for (caller, id, expected) in [
        ("a", "1", IdempotencyState::New),
        ("b", "2", IdempotencyState::New),
        ("a", "3", IdempotencyState::Interrupted { id: "1".to_owned() }),
    ] {
        // Nothing of it is being carried out any more.
        fixture.catalog.give_up_request("1", "1").await.unwrap();
        assert_eq!(fixture.catalog.begin_request(request(caller, id)).await.unwrap(), expected);
    }
}

/// A catalog in memory, whose clock the test moves.
fn catalog_in_memory(clock: Arc<AtomicU64>) -> Catalog {
    let started = UnixMillis::now();
    let now = move || started + Duration::from_millis(clock.load(Ordering::SeqCst));
    Catalog::with_clock(Arc::new(MemoryStore::default()), Arc::new(now))
}

async fn over_memory(clock: &Arc<AtomicU64>) -> Fixture {
    let (catalog, directory) = (catalog_in_memory(clock.clone()), tempfile::tempdir().unwrap());
    let fixture = Fixture::over(catalog, directory, Settings::default(), |_| {}).await;
    fixture.app("a").await;
    fixture
}

/// Has the next create wait for what is returned.
fn hold_create(fixture: &Fixture) -> Arc<Notify> {
    let gate = Arc::new(Notify::new());
    fixture.worker.state().create_gate = Some(gate.clone());
    gate
}

/// Until the worker has a create to carry out.
async fn until_asked_to_create(fixture: &Fixture) {
    let asked = async {
        while fixture.worker.state().create_gate.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, asked).await.unwrap();
}

// The clock is paused: time passes when nothing else can go on.
#[tokio::test(start_paused = true)]
async fn two_gateways_that_get_one_key_at_once_make_one_machine() {
    let fixture = over_memory(&Arc::default()).await;
    let other = fixture.restarted().await;
    let (gate, router) = (hold_create(&fixture), other.router());
    let body = machine();
    let (one, two, ()) = tokio::join!(
        post(&fixture, MACHINES, "k", &body),
        Fixture::send_to(&router, keyed(&fixture, MACHINES, "k", &body)),
        async {
            // The second has looked for the answer of the first by then.
            tokio::time::sleep(Duration::from_secs(10)).await;
            gate.notify_one();
        }
    );
    assert_eq!((one.status.as_u16(), &one.text), (200, &two.text));
    assert!(!one.headers.contains_key("idempotency-replayed"));
    assert_eq!(two.headers["idempotency-replayed"], "true");
    assert_eq!(made(&fixture), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_another_gateway_for_too_long_is_told_when_to_come_back() {
    let fixture = over_memory(&Arc::default()).await;
    let other = fixture.restarted().await;
    let (gate, router) = (hold_create(&fixture), other.router());
    let body = machine();
    let (one, ()) = tokio::join!(post(&fixture, MACHINES, "k", &body), async {
        let told = Fixture::send_to(&router, keyed(&fixture, MACHINES, "k", &body)).await;
        assert_eq!(told.status, 409);
        assert!(told.error().contains("still in progress"), "{}", told.text);
        let seconds: u64 = told.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=REQUEST_LEASE.as_secs()).contains(&seconds), "{seconds}");
        gate.notify_one();
    });
    let two = Fixture::send_to(&router, keyed(&fixture, MACHINES, "k", &body)).await;
    assert_eq!((one.status.as_u16(), &one.text), (200, &two.text));
    assert_eq!(made(&fixture), 1);
}

#[tokio::test]
async fn a_gateway_that_stood_still_while_another_took_over_makes_no_second_machine() {
    let clock = Arc::<AtomicU64>::default();
    let fixture = over_memory(&clock).await;
    let other = fixture.restarted().await;
    let (gate, router) = (hold_create(&fixture), other.router());
    let body = machine();
    let (one, two) = tokio::join!(post(&fixture, MACHINES, "k", &body), async {
        until_asked_to_create(&fixture).await;
        clock.fetch_add(REQUEST_LEASE.as_millis() as u64, Ordering::SeqCst);
        let two = Fixture::send_to(&router, keyed(&fixture, MACHINES, "k", &body)).await;
        gate.notify_one();
        two
    });
    assert_eq!(one.ok()["id"], two.ok()["id"]);
    assert_eq!(made(&fixture), 1);
}

#[tokio::test]
async fn what_reached_nobody_may_be_tried_again() {
    let mut fixture = Fixture::new().await;
    let id = fixture.started().await;
    let restart = format!("{MACHINES}/{id}/restart");
    fixture.serving.clear();
    let refused = post(&fixture, &restart, "r", &Value::Null).await;
    assert_eq!(refused.status, 504);
    assert!(refused.error().contains("nothing was done"), "{}", refused.text);
    fixture.serving = fixture.worker.serve("local").await;
    post(&fixture, &restart, "r", &Value::Null).await.ok();
}

#[tokio::test]
async fn what_may_have_been_done_before_is_not_forgotten_when_it_reaches_nobody() {
    let mut fixture = Fixture::new().await;
    let id = fixture.started().await;
    let update = format!("{MACHINES}/{id}");
    post(&fixture, &update, "u", &machine()).await.ok();
    forget_answers(&fixture);
    fixture.serving.clear();
    assert_eq!(post(&fixture, &update, "u", &machine()).await.status, 504);
    fixture.serving = fixture.worker.serve("local").await;
    post(&fixture, &update, "u", &machine()).await.ok();
    let state = fixture.worker.state();
    let versions: HashSet<_> = state
        .requests
        .iter()
        .filter_map(|request| match request {
            WorkerRequest::Update { update, .. } => Some(update.version.clone().unwrap()),
            _ => None,
        })
        .collect();
    assert_eq!(versions.len(), 1, "so that the worker knows it for the same");
}

/// As if the server had been killed after it did its work and before it noted that.
fn forget_answers(fixture: &Fixture) {
    let catalog = rusqlite::Connection::open(fixture.directory.path().join("catalog.db")).unwrap();
    catalog
        .execute("UPDATE requests SET status = NULL, content_type = NULL, body = NULL", [])
        .unwrap();
}
