//! Making machines, and what is left when it fails.

use std::time::Duration;

use caddis_api::{ApiError, AppName, ErrorCode, MachineState, RegionCode, WorkerId};
use caddis_bus::message::{CreateMachine, Offer, WorkerRequest};
use caddis_gateway::Settings;
use serde_json::{Value, json};

use crate::support::{Answer, Fixture, TIMEOUT};

fn body(name: &str) -> Value {
    json!({"name": name, "config": {"image": "nginx"}})
}

async fn create(fixture: &Fixture, body: &Value) -> Answer {
    fixture.post("/v1/apps/a/machines", body).await
}

fn sent(fixture: &Fixture) -> CreateMachine {
    let state = fixture.worker.state();
    let mut creates = state.requests.iter().filter_map(|request| match request {
        WorkerRequest::Create(create) => Some((**create).clone()),
        _ => None,
    });
    creates.next_back().unwrap()
}

#[tokio::test]
async fn a_machine_comes_back_as_its_worker_shows_it() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let config = json!({"image": "nginx", "env": {"A": "b"}, "unknown": {"kept": true}});
    let request = json!({"name": "m", "region": "", "config": config, "skip_launch": true,
        "skip_service_registration": true, "lease_ttl": 30, "skip_secrets": false,
        "min_secrets_version": null});
    let machine = create(&fixture, &request).await.ok();
    assert_eq!((&machine["name"], &machine["state"]), (&json!("m"), &json!("creating")));
    assert_eq!((&machine["region"], &machine["cordoned"]), (&json!("local"), &json!(true)));
    assert_eq!(machine["config"]["unknown"], json!({"kept": true}));
    assert_eq!(
        machine["config"]["guest"],
        json!({"cpu_kind": "shared", "cpus": 1, "memory_mb": 256})
    );
    assert!(machine["nonce"].is_string());
    assert!(machine["private_ip"].as_str().unwrap().starts_with("fdaa:"));
    let create = sent(&fixture);
    assert!(create.skip_launch && create.cordoned);
    assert_eq!(create.lease, Some((30, "root@tokens.caddis".to_owned())));
    assert_eq!(
        (create.org.as_str(), create.app.as_str(), create.placement_epoch),
        ("personal", "a", 1)
    );
    assert!(create.network.ends_with("/48"));
    let read = fixture.call(&format!("GET /v1/apps/a/machines/{}", create.id)).await.ok();
    assert_eq!(read["state"], "creating");
    assert!(read.get("nonce").is_none(), "only its creator gets the nonce");
}

#[tokio::test]
async fn names_are_made_up_and_unique_in_the_app_while_the_machine_lives() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    fixture.app("b").await;
    assert!(!create(&fixture, &body("")).await.ok()["name"].as_str().unwrap().is_empty());
    let id = fixture.machine("a", "m").await;
    fixture.machine("b", "m").await;
    let taken = create(&fixture, &body("m")).await;
    assert_eq!(taken.status, 409);
    assert_eq!(
        taken.error(),
        format!(
            "already_exists: unique machine name violation, machine ID {id} already exists with \
             name \"m\""
        )
    );
    fixture.call(&format!("DELETE /v1/apps/a/machines/{id}?kill=true")).await.ok();
    assert_ne!(create(&fixture, &body("m")).await.ok()["id"], json!(id));
}

#[tokio::test]
async fn of_concurrent_creates_with_one_name_one_succeeds() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let body = body("m");
    let answers = futures::future::join_all((0..6).map(|_| create(&fixture, &body))).await;
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort();
    assert_eq!(statuses, [200, 409, 409, 409, 409, 409]);
    assert_eq!(fixture.worker.state().machines.len(), 1);
}

#[tokio::test]
async fn a_create_that_the_worker_refuses_leaves_nothing_behind() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let error = ApiError::new(ErrorCode::ImageUnavailable, "image nginx does not exist");
    fixture.worker.state().create_errors.push_back(error);
    let refused = create(&fixture, &body("m")).await;
    assert_eq!(
        (refused.status.as_u16(), refused.error().as_str()),
        (422, "image nginx does not exist")
    );
    assert!(fixture.catalog.placements(None).await.unwrap().is_empty());
    create(&fixture, &body("m")).await.ok();
}

#[tokio::test]
async fn without_room_the_answer_says_what_is_free() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    fixture.worker.state().offer = Some(Offer {
        worker: WorkerId::from_trusted("W1"),
        fits: false,
        drains: false,
        shortage: Some("not enough memory".to_owned()),
        free_memory_mib: 700,
        free_cpus: 3,
        free_disk_gib: 80,
        free_volume_gib: None,
        has_image: true,
    });
    let request = json!({"config": {"image": "nginx", "guest": {"cpus": 1, "memory_mb": 2048}}});
    let refused = create(&fixture, &request).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["status"]),
        (422, &json!("insufficient_capacity"))
    );
    let text = refused.error();
    for part in [
        "could not find a candidate host",
        "2048 MiB",
        "700 MiB",
        "not enough memory",
        "512 MiB and 80 GiB it would fit",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(fixture.catalog.placements(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn unknown_regions_are_refused_and_expressions_taken() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let request = |region: &str| json!({"region": region, "config": {"image": "nginx"}});
    let refused = create(&fixture, &request("atlantis")).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["retryable"]), (422, &json!(false)));
    assert!(refused.error().contains("atlantis") && refused.error().contains("local"));
    for region in ["local", "any", "atlantis,any"] {
        assert_eq!(create(&fixture, &request(region)).await.ok()["region"], "local", "{region}");
    }
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_machine() {
    let settings = Settings { create_deadline: Duration::from_millis(300), ..Settings::default() };
    let fixture = Fixture::with(settings, |worker| worker.state().silent_creates = 1).await;
    fixture.app("a").await;
    let machine = create(&fixture, &body("m")).await.ok();
    let state = fixture.worker.state();
    assert_eq!(state.machines.len(), 1);
    assert_eq!(machine["id"], json!(state.machines.keys().next().unwrap()));
}

#[tokio::test]
async fn a_machine_whose_answer_never_came_keeps_its_name() {
    let settings = Settings { create_deadline: Duration::from_millis(100), ..Settings::default() };
    let fixture = Fixture::with(settings, |worker| worker.state().silent_creates = 2).await;
    fixture.app("a").await;
    let silent = create(&fixture, &body("m")).await;
    assert_eq!(silent.status, 504);
    let id = fixture.worker.state().machines.keys().next().unwrap().clone();
    assert!(silent.error().contains(id.as_str()));
    assert_eq!(create(&fixture, &body("m")).await.status, 409);
    assert_eq!(fixture.call(&format!("GET /v1/apps/a/machines/{id}")).await.ok()["name"], "m");
}

#[tokio::test]
async fn a_placement_that_was_never_made_is_given_up_at_the_next_start() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let place = caddis_catalog::NewPlacement {
        app: AppName::from_trusted("a"),
        name: Some("m".to_owned()),
        worker: fixture.worker.id.clone(),
        region: RegionCode::from_trusted("local"),
        request: None,
    };
    fixture.catalog.place(place).await.unwrap();
    let settings = Settings { create_deadline: Duration::ZERO, ..Settings::default() };
    let _gateway = fixture.restarted_with(settings).await;
    let freed = async {
        while !fixture.catalog.placements(None).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, freed).await.unwrap();
}

#[tokio::test]
async fn names_of_machines_destroyed_while_the_gateway_was_away_are_freed() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    fixture.worker.state().mute = true;
    fixture.worker.turn(&id, MachineState::Destroyed, "destroy").await;
    let _gateway = fixture.restarted().await;
    let freed = async {
        while !fixture.catalog.placements(None).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, freed).await.unwrap();
}

#[tokio::test]
async fn secrets_that_are_not_there_are_not_run_without() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let ask = |minimum: u64| json!({"config": {"image": "nginx"}, "min_secrets_version": minimum});
    for path in ["/v1/apps/a/machines".to_owned(), format!("/v1/apps/a/machines/{id}")] {
        let refused = fixture.post(&path, ask(1)).await;
        assert_eq!(refused.status, 412, "{}", refused.text);
        assert!(refused.error().contains("min_secrets_version"));
        fixture.post(&path, ask(0)).await.ok();
    }
}

#[tokio::test]
async fn what_has_no_effect_is_said_when_it_is_sent() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let sent = json!({"config": {"image": "nginx", "standbys": ["d8d8d8d8d8d8d8"],
        "guest": {"cpu": 1}}, "image": "x"});
    for path in ["/v1/apps/a/machines".to_owned(), format!("/v1/apps/a/machines/{id}")] {
        let machine = fixture.post(&path, &sent).await.ok();
        let told: Vec<_> =
            machine["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(told[0], "image is not known and has no effect; did you mean config.image?");
        assert!(told[1].starts_with("config.standbys is stored"), "{machine}");
        assert!(told[2].ends_with("did you mean cpus?") && told.len() == 3, "{machine}");
        assert_eq!(machine["config"]["standbys"], sent["config"]["standbys"]);
    }
    let read = fixture.call(&format!("GET /v1/apps/a/machines/{id}")).await.ok();
    assert!(read.get("warnings").is_none());
}
