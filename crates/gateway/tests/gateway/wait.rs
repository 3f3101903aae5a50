//! Waiting for states.

use std::time::Duration;

use caddis_api::{MachineId, MachineState};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Answer, Fixture};

async fn wait(fixture: &Fixture, id: &MachineId, query: &str) -> Answer {
    fixture.call(&format!("GET /v1/apps/a/machines/{id}/wait?{query}")).await
}

/// Runs a wait and, while it waits, something else.
async fn while_waiting(
    fixture: &Fixture,
    id: &MachineId,
    query: &str,
    change: impl Future,
) -> Answer {
    let mut waiting = std::pin::pin!(wait(fixture, id, query));
    // One poll takes it as far as it gets without a change.
    assert!(futures::poll!(&mut waiting).is_pending(), "{query} was answered at once");
    change.await;
    waiting.await
}

#[tokio::test]
async fn a_state_that_holds_is_answered_at_once() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let machine = fixture.call(&format!("GET /v1/apps/a/machines/{id}")).await.ok();
    let event = &machine["events"][0]["id"];
    let expected =
        json!({"ok": true, "state": "started", "version": machine["version"], "event_id": event});
    let version = machine["version"].as_str().unwrap();
    for query in [
        String::new(),
        "state=started&timeout=1".to_owned(),
        "state=stopped,started".to_owned(),
        "state=stopped&state=started&timeout=30s".to_owned(),
        "state=settled".to_owned(),
        format!("version={version}"),
        format!("instance_id={version}"),
    ] {
        assert_eq!(wait(&fixture, &id, &query).await.ok(), expected, "{query}");
    }
}

#[tokio::test]
async fn a_state_reached_later_is_pushed() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    for query in ["state=stopped", "state=suspended,stopped", "state=stopped&timeout=60"] {
        fixture.worker.turn(&id, MachineState::Started, "start").await;
        wait(&fixture, &id, "state=started").await.ok();
        let answer = while_waiting(
            &fixture,
            &id,
            query,
            fixture.worker.turn(&id, MachineState::Stopped, "exit"),
        )
        .await;
        assert_eq!(answer.ok()["state"], "stopped", "{query}");
    }
}

#[tokio::test]
async fn a_state_that_was_passed_through_counts() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let id = fixture.machine("a", "m").await;
    let answer = while_waiting(&fixture, &id, "state=started", async {
        fixture.worker.turn(&id, MachineState::Started, "start").await;
        fixture.worker.turn(&id, MachineState::Stopped, "exit").await;
    });
    let answer = answer.await.ok();
    assert_eq!(answer["state"], "started");
    assert!(answer["event_id"].is_string());
}

#[tokio::test]
async fn time_running_out_is_told_with_the_text_that_clients_look_for() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let begin = Instant::now();
    let answer = wait(&fixture, &id, "state=stopped&timeout=0").await;
    assert!(begin.elapsed() >= Duration::from_secs(1), "a wait lasts a second at least");
    assert_eq!(answer.status, 408);
    assert_eq!(
        answer.error(),
        "deadline_exceeded: machine failed to reach desired state, stopped, currently started"
    );
    assert_eq!(answer.json()["retryable"], true);
}

#[tokio::test]
async fn with_an_event_only_later_transitions_count() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let event = wait(&fixture, &id, "").await.ok()["event_id"].as_str().unwrap().to_owned();
    let query = format!("from_event_id={event}");
    let answer = while_waiting(&fixture, &id, &query, async {
        fixture.worker.turn(&id, MachineState::Stopped, "exit").await;
        fixture.worker.turn(&id, MachineState::Started, "start").await;
    })
    .await
    .ok();
    assert!(answer["event_id"].as_str().unwrap() > event.as_str());
    let again = wait(&fixture, &id, &query).await.ok();
    assert_eq!(again, answer, "what came after the event counts also later");
}

#[tokio::test]
async fn versions_that_were_replaced_or_never_were_are_told() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let replaced = wait(&fixture, &id, "state=stopped&version=01BX5ZZKBKACTAV9WEVGEMMVRZ").await;
    assert_eq!(replaced.status, 409);
    assert!(replaced.error().contains("currently replaced"), "{}", replaced.text);
    assert_eq!(wait(&fixture, &id, "version=7ZZZZZZZZZZZZZZZZZZZZZZZZZ").await.status, 404);
}

#[tokio::test]
async fn a_machine_that_was_never_booted_counts_as_stopped_only_at_rest() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let id = fixture.machine("a", "m").await;
    let operation = crate::support::worker::records::operation("boot", 0);
    fixture
        .worker
        .change(&id, |record| {
            crate::support::worker::enter(record, MachineState::Created, "launch");
            record.machine.operation = Some(operation);
        })
        .await;
    assert_eq!(wait(&fixture, &id, "state=created").await.ok()["state"], "created");
    let rest = fixture.worker.change(&id, |record| record.machine.operation = None);
    let answer = while_waiting(&fixture, &id, "state=stopped", rest).await;
    assert_eq!(answer.ok()["state"], "created");
    assert_eq!(wait(&fixture, &id, "state=settled").await.ok()["state"], "created");
}

#[tokio::test]
async fn destroyed_machines_are_gone_unless_that_is_waited_for() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let destroy = fixture.worker.turn(&id, MachineState::Destroyed, "destroy");
    let answer = while_waiting(&fixture, &id, "state=destroyed", destroy).await;
    assert_eq!(answer.ok()["state"], "destroyed");
    assert_eq!(wait(&fixture, &id, "state=destroyed").await.status, 200);
    assert_eq!(wait(&fixture, &id, "state=settled").await.status, 200);
    let gone = wait(&fixture, &id, "state=stopped").await;
    assert_eq!((gone.status.as_u16(), gone.error().as_str()), (404, "machine not found"));
}

/// What a wait is answered at once that can't come true.
async fn refused(fixture: &Fixture, id: &MachineId, query: &str) -> String {
    let begin = Instant::now();
    let answer = wait(fixture, id, &format!("{query}&timeout=60")).await;
    assert_eq!(answer.status, 400, "{query}: {}", answer.text);
    assert!(begin.elapsed() < Duration::from_secs(30), "{query} was waited for");
    let text = answer.error();
    // A client of the field panics over these words after a restart.
    assert!(!text.contains("machine failed to reach desired state"), "{text}");
    text
}

/// Moves the machine on, and waits until the gateway knows.
async fn turn(
    fixture: &Fixture,
    id: &MachineId,
    state: MachineState,
    kind: &str,
    request: serde_json::Value,
) {
    let record = fixture.worker.turn_with(id, state, kind, request).await;
    known(fixture, &record).await;
}

async fn known(fixture: &Fixture, record: &caddis_bus::message::MachineRecord) {
    let machine = serde_json::to_value(&record.machine).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let seen =
            fixture.call(&format!("GET /v1/apps/a/machines/{}", record.machine.id)).await.ok();
        if seen["events"] == machine["events"]
            && seen["operation"] == machine["operation"]
            && seen["config"] == machine["config"]
        {
            return;
        }
        assert!(Instant::now() < deadline, "the gateway does not hear of it: {seen}");
        tokio::task::yield_now().await;
    }
}

fn exit(code: i32, requested: bool, restarting: bool) -> serde_json::Value {
    json!({
        "exit_event": {
            "exit_code": code, "guest_exit_code": code, "guest_signal": -1, "signal": -1,
            "oom_killed": false,
            "requested_stop": requested, "restarting": restarting,
            "exited_at": "2026-03-31T06:08:08.123Z",
        },
        "restart_count": 0,
    })
}

#[tokio::test]
async fn a_machine_that_has_failed_is_not_waited_for() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let failed = json!({ "error": "no disk" });
    let fails = fixture.worker.turn_with(&id, MachineState::Failed, "start", failed.clone());
    let answer = while_waiting(&fixture, &id, "state=stopped", fails).await;
    let text = "machine will not reach stopped: its start failed and is not retried: no disk";
    assert_eq!((answer.status.as_u16(), answer.error().as_str()), (400, text));
    for query in ["state=started", "state=started,stopped", "state=suspended", "state=created"] {
        assert!(refused(&fixture, &id, query).await.ends_with(": no disk"), "{query}");
    }
    // What it can come to is waited for, or holds.
    for query in ["state=failed", "state=started,failed", "state=settled"] {
        assert_eq!(wait(&fixture, &id, query).await.ok()["state"], "failed", "{query}");
    }
    let gone = fixture.worker.turn(&id, MachineState::Destroyed, "destroy");
    assert_eq!(
        while_waiting(&fixture, &id, "state=destroyed", gone).await.ok()["state"],
        "destroyed"
    );
}

#[tokio::test]
async fn a_failed_machine_that_is_started_again_is_waited_for() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    turn(&fixture, &id, MachineState::Failed, "start", json!({ "error": "no disk" })).await;
    let event =
        fixture.call(&format!("GET /v1/apps/a/machines/{id}")).await.ok()["events"][0]["id"]
            .clone();
    let query = format!("state=started&from_event_id={}", event.as_str().unwrap());
    // Only what comes after the failure counts.
    let starts = fixture.worker.turn(&id, MachineState::Started, "start");
    assert_eq!(while_waiting(&fixture, &id, &query, starts).await.ok()["state"], "started");
    turn(&fixture, &id, MachineState::Failed, "start", json!({ "error": "no disk" })).await;
    let operation = crate::support::worker::records::operation("boot", 0);
    known(
        &fixture,
        &fixture.worker.change(&id, |record| record.machine.operation = Some(operation)).await,
    )
    .await;
    let starts = fixture.worker.change(&id, |record| {
        record.machine.operation = None;
        crate::support::worker::enter(record, MachineState::Started, "start");
    });
    assert_eq!(
        while_waiting(&fixture, &id, "state=started", starts).await.ok()["state"],
        "started"
    );
}

#[tokio::test]
async fn a_program_that_has_ended_for_good_is_not_waited_for() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    turn(&fixture, &id, MachineState::Stopped, "exit", exit(3, false, false)).await;
    let text = refused(&fixture, &id, "state=started").await;
    let expected = "machine will not reach started: its program has ended with exit code 3 and is \
                    not restarted";
    assert_eq!(text, expected);
    refused(&fixture, &id, "state=suspended").await;
    assert_eq!(wait(&fixture, &id, "state=started,stopped").await.ok()["state"], "stopped");
    // One that was stopped may be started by someone else, and one that is restarted starts by
    // itself; nothing that only tells something changes that.
    for details in [exit(0, true, false), exit(1, false, true)] {
        turn(&fixture, &id, MachineState::Stopped, "exit", details).await;
        turn(&fixture, &id, MachineState::Stopped, "cordon", serde_json::Value::Null).await;
        let starts = fixture.worker.turn(&id, MachineState::Started, "start");
        assert_eq!(
            while_waiting(&fixture, &id, "state=started", starts).await.ok()["state"],
            "started"
        );
    }
    turn(&fixture, &id, MachineState::Stopped, "exit", exit(0, false, false)).await;
    let schedule = fixture.worker.change(&id, |record| {
        let config = record.machine.config.as_mut().unwrap();
        let mut fields = config.fields();
        fields.insert("schedule".to_owned(), json!("hourly"));
        *config = fields.into();
    });
    known(&fixture, &schedule.await).await;
    let starts = fixture.worker.turn(&id, MachineState::Started, "start");
    assert_eq!(
        while_waiting(&fixture, &id, "state=started", starts).await.ok()["state"],
        "started"
    );
}

#[tokio::test]
async fn a_suspend_that_came_to_nothing_is_not_waited_for() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let given_up = fixture.worker.turn_with(
        &id,
        MachineState::Started,
        "suspend",
        json!({ "error": "disk is full" }),
    );
    let answer = while_waiting(&fixture, &id, "state=suspended", given_up).await;
    let text = "machine will not reach suspended: its suspend failed: disk is full";
    assert_eq!((answer.status.as_u16(), answer.error().as_str()), (400, text));
    turn(&fixture, &id, MachineState::Started, "start", json!({ "start_kind": "none" })).await;
    assert!(refused(&fixture, &id, "state=suspended").await.ends_with("cancelled by a start"));
    turn(&fixture, &id, MachineState::Suspended, "suspend", json!({ "error": "no memory" })).await;
    assert!(refused(&fixture, &id, "state=started").await.ends_with("stays suspended: no memory"));
    turn(&fixture, &id, MachineState::Suspended, "suspend", serde_json::Value::Null).await;
    let starts = fixture.worker.turn(&id, MachineState::Started, "start");
    assert_eq!(
        while_waiting(&fixture, &id, "state=started", starts).await.ok()["state"],
        "started"
    );
}

#[tokio::test]
async fn what_is_only_told_of_a_machine_is_no_change_of_its_state() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let event = wait(&fixture, &id, "").await.ok()["event_id"].as_str().unwrap().to_owned();
    for kind in ["cordon", "host_status", "oom"] {
        turn(&fixture, &id, MachineState::Started, kind, serde_json::Value::Null).await;
    }
    let query = format!("state=started&from_event_id={event}&timeout=1");
    assert_eq!(wait(&fixture, &id, &query).await.status, 408);
    assert_eq!(wait(&fixture, &id, "").await.ok()["event_id"], event.as_str());
}
