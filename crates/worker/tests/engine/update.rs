//! New versions, and the user's own words.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use std::time::Duration;

use caddis_api::{ApiError, ErrorCode, LeaseNonce, MachineId, MachineState, VersionId};
use caddis_bus::message::{Action, UpdateMachine, VersionRecord, WorkerReply, WorkerRequest};
use caddis_guest_protocol::fake::Behaviour;
use caddis_vmm::fake::Faults;
use serde_json::{Value, json};

use crate::{
    sabotage::Fault,
    support::{Fixture, config},
};

const STOP: Action = Action::Stop { signal: None, timeout: None };

fn update(more: Value) -> UpdateMachine {
    UpdateMachine {
        config: config(more),
        expected: None,
        skip_launch: false,
        cordoned: false,
        lease: None,
        version: None,
    }
}

async fn try_update(
    fixture: &Fixture,
    machine: &MachineId,
    update: UpdateMachine,
) -> Result<VersionId, ApiError> {
    update_with(fixture, machine, None, update).await
}

async fn update_with(
    fixture: &Fixture,
    machine: &MachineId,
    nonce: Option<LeaseNonce>,
    update: UpdateMachine,
) -> Result<VersionId, ApiError> {
    let request =
        WorkerRequest::Update { machine: machine.clone(), nonce, update: Box::new(update) };
    match fixture.ask(request).await? {
        WorkerReply::Updated { record, .. } => Ok(record.machine.version),
        other => panic!("{other:?}"),
    }
}

async fn versions(fixture: &Fixture, machine: &MachineId) -> Vec<VersionRecord> {
    match fixture.ask(WorkerRequest::Versions { machine: machine.clone() }).await.unwrap() {
        WorkerReply::Versions { versions } => versions,
        other => panic!("{other:?}"),
    }
}

fn env(version: &VersionRecord) -> Value {
    version.config.field("env").unwrap_or(Value::Null)
}

/// `type status` of the events, oldest first.
async fn story(fixture: &Fixture, machine: &MachineId) -> Vec<String> {
    let events = fixture.events(machine).await;
    events.iter().rev().map(|event| format!("{} {}", event.kind, event.status)).collect()
}

#[tokio::test]
async fn a_running_machine_runs_the_new_version() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let old = versions(&fixture, &machine).await[0].version.clone();
    let before = story(&fixture, &machine).await.len();
    let new = try_update(&fixture, &machine, update(json!({ "env": { "A": "1" } }))).await.unwrap();
    let record = fixture.until(&machine, MachineState::Started).await;
    assert_eq!((&record.machine.version, &record.machine.instance_id), (&new, &new));
    assert!(new > old, "versions rise");
    assert_eq!(fixture.host.launches(), 2);
    assert_eq!(fixture.host.running(), [machine.to_string()]);
    let guest = fixture.host.guest(machine.as_str()).unwrap();
    assert!(
        guest.spec().unwrap().env.contains(&("A".to_owned(), "1".to_owned())),
        "it is told of the new one"
    );
    let expected = ["update replacing", "exit stopped", "launch created", "start started"];
    assert_eq!(story(&fixture, &machine).await[before..], expected);
    let exit = &fixture.exits(&machine).await[0].exit_event;
    assert_eq!((exit.requested_stop, exit.restarting), (true, true));
    let all = versions(&fixture, &machine).await;
    let ids: Vec<_> = all.iter().map(|version| version.version.clone()).collect();
    assert_eq!(ids, [new, old]);
    assert_eq!((env(&all[0]), env(&all[1])), (json!({ "A": "1" }), Value::Null));
}

#[tokio::test]
async fn a_machine_that_rests_goes_on_resting() {
    let fixture = Fixture::new().await;
    let stopped = fixture.started().await;
    fixture.act(&stopped, STOP).await.unwrap();
    fixture.until(&stopped, MachineState::Stopped).await;
    let suspended = fixture.started().await;
    fixture.act(&suspended, Action::Suspend).await.unwrap();
    fixture.until(&suspended, MachineState::Suspended).await;
    for machine in [&stopped, &suspended] {
        let new =
            try_update(&fixture, machine, update(json!({ "env": { "A": "1" } }))).await.unwrap();
        let record = fixture.until(machine, MachineState::Stopped).await;
        assert_eq!(record.machine.version, new);
        fixture.assert_nothing_runs().await;
        assert!(
            !fixture.file(machine, "memory.snapshot").exists(),
            "what was saved is of the old version"
        );
    }
    fixture.act(&suspended, Action::Start).await.unwrap();
    let record = fixture.until(&suspended, MachineState::Started).await;
    assert_eq!(record.machine.start_kind.as_deref(), Some("template"));

    // `skip_launch` has one that runs rest.
    let skip = UpdateMachine { skip_launch: true, ..update(json!({})) };
    try_update(&fixture, &suspended, skip).await.unwrap();
    fixture.until(&suspended, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn what_can_not_be_had_leaves_the_machine_as_it_was() {
    let fixture = Fixture::new().await;
    let (running, resting) = (fixture.started().await, fixture.started().await);
    fixture.act(&resting, STOP).await.unwrap();
    fixture.until(&resting, MachineState::Stopped).await;
    for (machine, state) in [(&running, MachineState::Started), (&resting, MachineState::Stopped)] {
        let old = versions(&fixture, machine).await;
        try_update(&fixture, machine, update(json!({ "image": "broken" }))).await.unwrap();
        let failed = |r: &caddis_bus::message::MachineRecord| {
            r.machine.operation.is_none() && r.machine.events.as_ref().unwrap()[0].kind == "update"
        };
        let record = fixture.until_that(machine, failed).await;
        assert_eq!(record.machine.state, state);
        let event = &record.machine.events.as_ref().unwrap()[0];
        assert!(event.told().to_string().contains("told to fail"), "{event:?}");
        assert_eq!(versions(&fixture, machine).await, old, "it never became one");
    }
    assert_eq!(fixture.host.launches(), 2, "the old version goes on");
    assert!(fixture.exits(&running).await.is_empty());
}

#[tokio::test]
async fn updates_are_guarded() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let current = versions(&fixture, &machine).await[0].version.clone();
    let stale = UpdateMachine { expected: Some(VersionId::generate()), ..update(json!({})) };
    let refused = try_update(&fixture, &machine, stale).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Aborted);
    assert!(refused.message.contains("version mismatch"), "{refused}");
    for (bad, text) in [
        (update(json!({ "image": "missing" })), "was not found"),
        (update(json!({ "guest": { "cpus": 3 } })), "config.guest.cpus"),
        (update(json!({ "init": { "exec": [] } })), "has no program to run"),
        (update(json!({ "mounts": [{ "volume": "vol_1", "path": "/data" }] })), "mounts"),
        (
            update(json!({ "guest": { "cpu_kind": "shared", "cpus": 8, "memory_mb": 16384 } })),
            "could not reserve",
        ),
    ] {
        let refused = try_update(&fixture, &machine, bad).await.unwrap_err();
        assert!(refused.message.contains(text), "{text}: {refused}");
    }
    let action = Action::AcquireLease {
        ttl_seconds: 60,
        owner: "me".to_owned(),
        description: String::new(),
    };
    let WorkerReply::Lease { lease } = fixture.act(&machine, action).await.unwrap() else {
        panic!()
    };
    let refused = try_update(&fixture, &machine, update(json!({}))).await.unwrap_err();
    assert!(refused.message.contains("lease currently held by me"), "{refused}");
    assert!(
        update_with(&fixture, &machine, Some(LeaseNonce::random()), update(json!({})))
            .await
            .is_err()
    );
    assert_eq!(versions(&fixture, &machine).await[0].version, current);
    assert_eq!(
        (fixture.host.launches(), fixture.exits(&machine).await.len()),
        (1, 0),
        "nothing was touched"
    );
    let right = UpdateMachine { expected: Some(current), ..update(json!({})) };
    update_with(&fixture, &machine, Some(lease.nonce), right).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(fixture.host.launches(), 2);
}

#[tokio::test]
async fn what_comes_while_a_machine_is_replaced_has_one_outcome() {
    let fixture = Fixture::new().await;
    let guest = Behaviour { boot_delay: Duration::from_millis(50), ..Behaviour::default() };
    fixture.host.set_faults(Faults {
        launch_delay: Duration::from_millis(50),
        guest,
        ..Faults::default()
    });
    let machine = fixture.started().await;
    try_update(&fixture, &machine, update(json!({}))).await.unwrap();
    let second = try_update(&fixture, &machine, update(json!({}))).await.unwrap_err();
    assert_eq!(second.message, "aborted: machine update failed due to concurrent update");
    // A start waits for it.
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(fixture.host.launches(), 2);
    // A stop breaks it off, and the new version stays.
    let new = try_update(&fixture, &machine, update(json!({}))).await.unwrap();
    fixture.act(&machine, STOP).await.unwrap();
    let record = fixture.until(&machine, MachineState::Stopped).await;
    assert_eq!(record.machine.version, new);
    fixture.assert_nothing_runs().await;
    // An update of one that starts.
    fixture.act(&machine, Action::Start).await.unwrap();
    let newer = try_update(&fixture, &machine, update(json!({}))).await.unwrap();
    let record = fixture.until(&machine, MachineState::Started).await;
    assert_eq!(record.machine.version, newer);
    // A destroy by force.
    try_update(&fixture, &machine, update(json!({}))).await.unwrap();
    fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&machine, MachineState::Destroyed).await;
    fixture.assert_nothing_runs().await;
}

/// Ends the worker after ever longer times, wherever the update is then; the next one finishes it.
#[tokio::test]
async fn an_update_is_finished_by_the_next_worker() {
    let mut fixture = Fixture::new().await;
    let guest = Behaviour { boot_delay: Duration::from_millis(5), ..Behaviour::default() };
    fixture.host.set_faults(Faults {
        launch_delay: Duration::from_millis(5),
        guest,
        ..Faults::default()
    });
    let machine = fixture.started().await;
    for (number, wait) in [0, 1, 2, 4, 7, 11, 16, 25].into_iter().enumerate() {
        let new =
            try_update(&fixture, &machine, update(json!({ "env": { "N": number.to_string() } })))
                .await
                .unwrap();
        tokio::time::sleep(Duration::from_millis(wait)).await;
        fixture.end().await;
        fixture.start().await;
        let record = fixture.until(&machine, MachineState::Started).await;
        assert_eq!(record.machine.version, new, "after {wait} ms");
        assert_eq!(fixture.host.running(), [machine.to_string()], "one VM, after {wait} ms");
        let exits = fixture.exits(&machine).await.len();
        assert_eq!(exits, number + 1, "one exit each, after {wait} ms");
        assert_eq!(versions(&fixture, &machine).await.len(), number + 2);
    }
}

#[tokio::test]
async fn a_drain_in_the_middle_of_an_update_brings_back_what_was_to_run() {
    let mut fixture = Fixture::new().await;
    let guest = Behaviour { boot_delay: Duration::from_millis(300), ..Behaviour::default() };
    let (running, resting) = (fixture.started().await, fixture.started().await);
    fixture.act(&resting, STOP).await.unwrap();
    fixture.until(&resting, MachineState::Stopped).await;
    fixture.host.set_faults(Faults { guest, ..Faults::default() });
    let new = try_update(&fixture, &running, update(json!({}))).await.unwrap();
    try_update(&fixture, &resting, update(json!({}))).await.unwrap();
    fixture.ask(WorkerRequest::Drain { deadline_ms: 30_000 }).await.unwrap();
    fixture.assert_nothing_runs().await;
    fixture.end().await;
    fixture.boot_id = "second".to_owned();
    fixture.start().await;
    let record = fixture.until(&running, MachineState::Started).await;
    assert_eq!(record.machine.version, new);
    fixture.until(&resting, MachineState::Stopped).await;
    assert_eq!(fixture.host.running(), [running.to_string()]);
}

#[tokio::test]
async fn room_follows_the_configuration() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let sized =
        |memory: u64| json!({ "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": memory } });
    try_update(&fixture, &machine, update(sized(1024))).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    // 1024 of the 2048 MiB are left.
    let refused = fixture.try_create(&["sleep", "inf"], sized(1280)).await.unwrap_err();
    assert!(refused.message.contains("1024 of 2048 free"), "{refused}");
    try_update(&fixture, &machine, update(sized(512))).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    fixture.try_create(&["sleep", "inf"], sized(1536)).await.unwrap();
    let refused = try_update(&fixture, &machine, update(sized(768))).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Aborted);
    assert!(refused.message.contains("could not reserve resource for machine"), "{refused}");
    try_update(&fixture, &machine, update(sized(256))).await.unwrap();
}

#[tokio::test]
async fn metadata_is_merged_without_a_new_version() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let version = versions(&fixture, &machine).await[0].version.clone();
    let set = |pairs: &[(&str, Option<&str>)], expected: Option<VersionId>| Action::SetMetadata {
        changes: pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)))
            .collect(),
        expected,
    };
    // Not kept out by a lease.
    let lease = Action::AcquireLease {
        ttl_seconds: 60,
        owner: "me".to_owned(),
        description: String::new(),
    };
    fixture.act(&machine, lease).await.unwrap();
    fixture.act(&machine, set(&[("a", Some("1")), ("b", Some("2"))], None)).await.unwrap();
    fixture
        .act(
            &machine,
            set(&[("a", None), ("b", Some("3")), ("c", Some(""))], Some(version.clone())),
        )
        .await
        .unwrap();
    let record = fixture
        .until_that(&machine, |r| {
            r.machine.config.as_ref().unwrap().fields()["metadata"]["b"] == "3"
        })
        .await;
    assert_eq!(record.machine.config.unwrap().fields()["metadata"], json!({ "b": "3" }));
    assert_eq!((record.machine.version, fixture.host.launches()), (version, 1));
    let stale =
        fixture.act(&machine, set(&[("b", None)], Some(VersionId::generate()))).await.unwrap_err();
    assert_eq!(stale.code, ErrorCode::FailedPrecondition);
    let large = "x".repeat(100_000);
    assert!(fixture.act(&machine, set(&[("b", Some(&large))], None)).await.is_err());
}

#[tokio::test]
async fn an_update_that_comes_again_makes_no_second_version() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let wanted = UpdateMachine { version: Some(VersionId::generate()), ..update(json!({})) };
    let first = try_update(&fixture, &machine, wanted.clone()).await.unwrap();
    assert_eq!(Some(&first), wanted.version.as_ref());
    fixture.until(&machine, MachineState::Started).await;
    let other = try_update(&fixture, &machine, update(json!({}))).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    // Also after another one.
    assert_eq!(try_update(&fixture, &machine, wanted).await.unwrap(), other);
    assert_eq!(fixture.until(&machine, MachineState::Started).await.machine.version, other);
    assert_eq!(versions(&fixture, &machine).await.len(), 3);
}

#[tokio::test]
async fn what_was_noted_during_an_update_that_comes_to_nothing_stays() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    fixture.injector.arm(Fault::Waits, ("update".to_owned(), "pull".to_owned()));
    try_update(&fixture, &machine, update(json!({ "image": "broken" }))).await.unwrap();
    fixture.injector.waiting().await;
    let changes = [("noted".to_owned(), Some("meanwhile".to_owned()))].into();
    fixture.act(&machine, Action::SetMetadata { changes, expected: None }).await.unwrap();
    fixture.injector.release();
    let record = fixture.until(&machine, MachineState::Started).await;
    let config = record.machine.config.unwrap().fields();
    assert_eq!(
        (&config["image"], &config["metadata"]["noted"]),
        (&json!("image"), &json!("meanwhile"))
    );
}

#[tokio::test]
async fn versions_rise_whatever_id_is_asked_for() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let early: VersionId = VersionId::from_trusted("01HQ73A7BFFDF1B6WMGHFZZ4E7");
    let made =
        try_update(&fixture, &machine, UpdateMachine { version: Some(early), ..update(json!({})) })
            .await
            .unwrap();
    fixture.until(&machine, MachineState::Started).await;
    let kept: Vec<_> =
        versions(&fixture, &machine).await.into_iter().map(|kept| kept.version).collect();
    assert_eq!(kept.len(), 2);
    assert!(kept[0] == made && kept[0] > kept[1], "{kept:?}");
}
