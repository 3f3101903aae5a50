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
async fn while_waiting(fixture: &Fixture, id: &MachineId, query: &str, change: impl Future) -> Answer {
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
    let expected = json!({"ok": true, "state": "started", "version": machine["version"], "event_id": event});
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
        let answer = while_waiting(&fixture, &id, query, fixture.worker.turn(&id, MachineState::Stopped, "exit")).await;
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
    assert_eq!(answer.error(), "deadline_exceeded: machine failed to reach desired state, stopped, currently started");
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
    let operation = crate::support::worker::operation("boot", 0);
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
