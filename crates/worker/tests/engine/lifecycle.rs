//! What users ask for.

use std::time::Duration;

use caddis_api::{ErrorCode, MachineId, MachineState};
use caddis_bus::message::{
    Action, Envelope, MachineRecord, PROTOCOL, WorkerReply, WorkerRequest, encode,
};
use caddis_vmm::fake::Faults;
use serde_json::json;

use crate::support::{self, Fixture};

const STOP: Action = Action::Stop { signal: None, timeout: None };

#[tokio::test]
async fn a_machine_runs_stops_starts_and_goes_away() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    assert_eq!(fixture.host.running(), [machine.to_string()]);
    assert_eq!(fixture.network.taps().len(), 1);
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
    let exit = &fixture.exits(&machine).await[0].exit_event;
    assert_eq!((exit.exit_code, exit.guest_signal, exit.requested_stop), (130, 2, true));
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(fixture.host.launches(), 2);
    let refused = fixture.act(&machine, Action::Destroy { force: false }).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&machine, MachineState::Destroyed).await;
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn the_end_of_a_program_is_the_end_of_its_vm() {
    let fixture = Fixture::new().await;
    for (argv, code, oom) in
        [(&["exit", "3"][..], 3, false), (&["crash"], 139, false), (&["oom"], 137, true)]
    {
        let machine = fixture.create(argv).await;
        fixture.until(&machine, MachineState::Stopped).await;
        let exits = fixture.exits(&machine).await;
        let exit = &exits[0].exit_event;
        assert_eq!(
            (exits.len(), exit.exit_code, exit.oom_killed, exit.requested_stop),
            (1, code, oom, false)
        );
    }
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_child_that_is_killed_for_want_of_memory_is_an_event_and_no_cause_of_the_end() {
    let fixture = Fixture::new().await;
    let machine = fixture.create(&["oom-child"]).await;
    let told = |record: &MachineRecord| {
        let mut events = record.machine.events.iter().flatten();
        events.any(|event| event.kind == "oom" && event.told()["process"] == "child")
    };
    fixture.until_that(&machine, told).await;
    fixture.until(&machine, MachineState::Started).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    let exit = &fixture.exits(&machine).await[0].exit_event;
    assert_eq!((exit.oom_killed, exit.cause.as_deref(), exit.requested_stop), (false, None, true));
}

#[tokio::test]
async fn a_program_that_ignores_its_stop_signal_is_killed() {
    let fixture = Fixture::new().await;
    let config = json!({ "stop_config": { "signal": "SIGTERM", "timeout": "100ms" } });
    let machine = fixture.try_create(&["ignore-signals"], config).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    assert_eq!(fixture.exits(&machine).await[0].exit_event.guest_signal, 9);
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_stop_and_a_destroy_that_come_while_it_is_made_are_done_after() {
    let fixture = Fixture::new().await;
    let one = fixture.create(&["sleep", "inf"]).await;
    fixture.act(&one, STOP).await.unwrap();
    fixture.until(&one, MachineState::Stopped).await;
    let two = fixture.create(&["sleep", "inf"]).await;
    fixture.act(&two, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&two, MachineState::Destroyed).await;
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_request_that_is_repeated_is_done_once_and_answered_alike() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let restart = Action::Restart { signal: None, timeout: None, force: false };
    let request = WorkerRequest::Act { machine: machine.clone(), nonce: None, action: restart };
    let (one, two) =
        tokio::join!(fixture.ask_as("same", request.clone()), fixture.ask_as("same", request));
    assert!(matches!(
        (one.unwrap(), two.unwrap()),
        (WorkerReply::Done { .. }, WorkerReply::Done { .. })
    ));
    fixture
        .until_that(&machine, |record| {
            record.machine.state == MachineState::Started && record.machine.operation.is_none()
        })
        .await;
    assert_eq!(fixture.host.launches(), 2);
}

#[tokio::test]
async fn two_requests_for_a_machine_of_one_id_make_one_whatever_becomes_of_the_first() {
    let fixture = Fixture::new().await;
    let id = MachineId::random();
    let make = || fixture.create_as(&id, support::config(json!({})), false);
    let made = tokio::join!(make(), make(), make());
    assert_eq!(made, (Ok(()), Ok(()), Ok(())));
    fixture.until(&id, MachineState::Started).await;
    let events = fixture.events(&id).await;
    let launches =
        events.iter().filter(|event| event.kind == "launch" && event.status == "pending").count();
    assert_eq!((launches, fixture.host.launches()), (1, 1), "{events:?}");

    // What the first that fails had reserved is its own.
    let id = MachineId::random();
    let bad = support::config(json!({ "image": "missing" }));
    let good = support::config(json!({}));
    let (one, two) =
        tokio::join!(fixture.create_as(&id, bad, false), fixture.create_as(&id, good, false));
    assert_eq!(one.unwrap_err().code, ErrorCode::ImageUnavailable);
    two.unwrap();
    fixture.until(&id, MachineState::Started).await;
    assert_eq!(fixture.host.launches(), 2);
}

#[tokio::test]
async fn a_request_that_comes_too_late_or_can_t_be_understood_is_not_carried_out() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let stop = WorkerRequest::Act { machine: machine.clone(), nonce: None, action: STOP };
    let in_time = Envelope::new("late".to_owned(), Duration::from_secs(60), stop);
    let late =
        Envelope { not_after: in_time.not_after - Duration::from_secs(61), ..in_time.clone() };
    let of_later = json!({ "protocol": PROTOCOL + 1, "something": ["else"] }).to_string().into();
    for (request, words) in [(encode(&late), "too late"), (of_later, "upgrade that host")] {
        let error = fixture.ask_bytes(request).await.unwrap_err();
        assert!(error.code == ErrorCode::Unavailable && error.message.contains(words), "{error:?}");
    }
    assert_eq!(fixture.record(&machine).unwrap().machine.state, MachineState::Started);
    // Nothing of it is remembered; and what was carried out is answered however late it is asked
    // for again.
    fixture.ask_in(in_time).await.unwrap();
    fixture.ask_bytes(encode(&late)).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
}

/// Nor is its answer kept.
#[tokio::test]
async fn a_listing_that_is_repeated_is_done_anew() {
    let fixture = Fixture::new().await;
    let list = || fixture.ask_as("same", WorkerRequest::List { after: None });
    assert!(
        matches!(list().await.unwrap(), WorkerReply::Machines { records, .. } if records.is_empty())
    );
    fixture.started().await;
    assert!(
        matches!(list().await.unwrap(), WorkerReply::Machines { records, .. } if records.len() == 1)
    );
}

#[tokio::test]
async fn many_starts_and_stops_at_once_leave_one_vm_or_none() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let requests = (0..20).map(|number| {
        let action = if number % 2 == 0 { STOP } else { Action::Start };
        fixture.act(&machine, action)
    });
    for answer in futures::future::join_all(requests).await {
        // Some are refused, for the state it is in then; none is an error of ours.
        assert!(answer.map_err(|error| error.code).err() != Some(ErrorCode::Internal));
    }
    let is_settled = |state| [MachineState::Started, MachineState::Stopped].contains(&state);
    let record = fixture
        .until_that(&machine, |r| is_settled(r.machine.state) && r.machine.operation.is_none())
        .await;
    let running = usize::from(record.machine.state == MachineState::Started);
    assert_eq!(fixture.host.running().len(), running);
    assert_eq!(fixture.network.taps().len(), running);
}

#[tokio::test]
async fn a_lease_keeps_others_out() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let acquire = Action::AcquireLease {
        ttl_seconds: 60,
        owner: "me".to_owned(),
        description: String::new(),
    };
    let WorkerReply::Lease { lease } = fixture.act(&machine, acquire.clone()).await.unwrap() else {
        panic!()
    };
    for action in [STOP, acquire, Action::Destroy { force: true }] {
        assert_eq!(fixture.act(&machine, action).await.unwrap_err().code, ErrorCode::Aborted);
    }
    fixture.act_with(&machine, Some(lease.nonce), STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
}

#[tokio::test]
async fn a_host_takes_what_it_has_room_for_and_gives_room_back() {
    let fixture = Fixture::new().await;
    let large = json!({ "guest": { "cpu_kind": "shared", "cpus": 4, "memory_mb": 1024 } });
    let one = fixture.try_create(&["sleep", "inf"], large.clone()).await.unwrap();
    fixture.try_create(&["sleep", "inf"], large.clone()).await.unwrap();
    let refused = fixture.try_create(&["sleep", "inf"], large.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InsufficientCapacity);
    fixture.act(&one, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&one, MachineState::Destroyed).await;
    fixture.try_create(&["sleep", "inf"], large).await.unwrap();
    let missing = fixture.try_create(&["x"], json!({ "image": "missing" })).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::ImageUnavailable);
}

#[tokio::test]
async fn restart_policies_are_followed_and_auto_destroy_removes() {
    let fixture = Fixture::new().await;
    let retried = json!({ "restart": { "policy": "on-failure", "max_retries": 1 } });
    let retried = fixture.try_create(&["exit", "3"], retried).await.unwrap();
    let content = fixture
        .try_create(&["exit", "0"], json!({ "restart": { "policy": "on-failure" } }))
        .await
        .unwrap();
    let gone = fixture.try_create(&["exit", "0"], json!({ "auto_destroy": true })).await.unwrap();
    fixture.until(&gone, MachineState::Destroyed).await;
    fixture.until(&content, MachineState::Stopped).await;
    fixture.until(&retried, MachineState::Stopped).await;
    let restarting: Vec<_> =
        fixture.exits(&retried).await.iter().map(|exit| exit.exit_event.restarting).collect();
    assert_eq!(restarting, [false, true]);
    assert_eq!(fixture.exits(&content).await.len(), 1);
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_warm_vm_that_can_not_be_connected_is_replaced_within_the_same_start() {
    let fixture = Fixture::new().await;
    fixture.host.set_faults(Faults { pool: true, ..Faults::default() });
    fixture.network.refuse_to_adopt();
    for _ in 0..5 {
        let machine = fixture.started().await;
        let events = fixture.events(&machine).await;
        assert!(events.iter().all(|event| event.request.is_none()), "nothing failed: {events:?}");
    }
    assert_eq!((fixture.host.running().len(), fixture.network.taps().len()), (5, 5));
}
