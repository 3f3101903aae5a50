//! Guests whose init says nothing any more, and clocks that were set.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use std::time::Duration;

use caddis_api::{ApiDuration, MachineId, MachineState, Signal};
use caddis_bus::message::{Action, MachineRecord};
use caddis_guest_protocol::host::Pace;

use crate::support::Fixture;

/// One that looks after its guests quickly.
async fn attentive() -> Fixture {
    let mut fixture = Fixture::new().await;
    fixture.pace =
        Pace { question: Duration::from_millis(300), patience: Duration::from_millis(300) };
    fixture.end().await;
    fixture.start().await;
    fixture
}

async fn silent(fixture: &Fixture, machine: &MachineId) -> MachineRecord {
    fixture.host.guest(machine.as_str()).unwrap().set_mute(true);
    fixture.until_that(machine, |record| record.machine.host_status == "unknown").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_says_nothing_is_told_until_it_does_and_can_be_stopped() {
    let fixture = attentive().await;
    let machine = fixture.started().await;
    let record = silent(&fixture, &machine).await.machine;
    assert_eq!(
        (record.host_status_reason.as_deref(), record.state),
        (Some("guest_silent"), MachineState::Started)
    );
    let event = fixture.events(&machine).await[0].clone();
    assert_eq!((event.kind.as_str(), event.status.as_str()), ("host_status", "started"));
    assert_eq!(event.told()["host_status_reason"], "guest_silent");
    for action in [Action::Suspend, Action::Signal { signal: Signal::TERM }] {
        let refused = fixture.act(&machine, action).await.unwrap_err();
        assert!(refused.message.contains("does not answer"), "{refused}");
    }
    fixture.host.guest(machine.as_str()).unwrap().set_mute(false);
    let record =
        fixture.until_that(&machine, |record| record.machine.host_status == "ok").await.machine;
    assert_eq!(record.host_status_reason, None);
    assert_eq!(fixture.events(&machine).await[0].told()["host_status"], "ok");
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;

    silent(&fixture, &machine).await;
    // However long its program might take: nobody would hear of its end.
    let timeout = Some(ApiDuration(Duration::from_secs(300)));
    fixture.act(&machine, Action::Stop { signal: None, timeout }).await.unwrap();
    let record = fixture.until(&machine, MachineState::Stopped).await.machine;
    assert_eq!(record.host_status, "ok");
    let exit = fixture.exits(&machine).await[0].exit_event.clone();
    assert_eq!((exit.cause.as_deref(), exit.requested_stop), (Some("killed"), true));
    assert!(exit.message.is_some_and(|message| message.contains("did not answer")));
    fixture.assert_all_fits(&machine, "a silent guest").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspend_that_its_guest_does_not_hear_is_given_up_and_the_machine_goes_on() {
    let mut fixture = Fixture::new().await;
    let machine = fixture.started().await;
    fixture.host.guest(machine.as_str()).unwrap().set_mute(true);
    fixture.act(&machine, Action::Suspend).await.unwrap();
    let given_up = |record: &MachineRecord| record.machine.state == MachineState::Starting;
    fixture.until_that(&machine, given_up).await;
    let record = fixture.until(&machine, MachineState::Started).await.machine;
    assert_eq!(record.host_status_reason.as_deref(), Some("guest_silent"));
    let events = fixture.events(&machine).await;
    let failed =
        events.iter().find(|event| event.kind == "suspend" && event.status == "started").unwrap();
    assert!(failed.error().unwrap().contains("did not answer within"), "{failed:?}");
    let told = |(_, line): &(String, String)| line.starts_with("Suspend failed, the machine keeps");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    // Its log is written after the change is known.
    while !fixture.own_lines(&machine).iter().any(told) {
        assert!(tokio::time::Instant::now() < deadline, "its log does not say so");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fixture.host.guest(machine.as_str()).unwrap().set_mute(false);
    fixture.until_that(&machine, |record| record.machine.host_status == "ok").await;
    // What it was told is not lost: its programs go on.
    while fixture.host.guest(machine.as_str()).unwrap().is_frozen() {
        assert!(tokio::time::Instant::now() < deadline, "its programs stand still");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fixture.end().await;
    fixture.start().await;
    fixture.act(&machine, Action::Stop { signal: None, timeout: None }).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_in_its_time_though_the_clock_was_set_back_while_no_server_ran() {
    let mut fixture = Fixture::new().await;
    let machine = fixture.create(&["ignore-signals"]).await;
    fixture.until(&machine, MachineState::Started).await;
    let timeout = Some(ApiDuration(Duration::from_secs(2)));
    fixture.act(&machine, Action::Stop { signal: None, timeout }).await.unwrap();
    fixture.kill().await;
    {
        let database = rusqlite::Connection::open(fixture.database()).unwrap();
        for field in ["started_at", "deadline"] {
            let text = format!(
                "UPDATE machines SET record = json_set(record, '$.operation.{field}', \
                 (record ->> '$.operation.{field}') + 7200000)"
            );
            database.execute(&text, []).unwrap();
        }
    }
    fixture.start().await;
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_all_fits(&machine, "a clock that was set back").await;
}
