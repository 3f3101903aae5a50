//! Machines whose VM stands still because its disk can't be written.

use caddis_api::{ErrorCode, MachineState};
use caddis_bus::message::{Action, MachineRecord, WorkerRequest};
use caddis_vmm::{Pause, fake::Faults};
use serde_json::json;

use crate::support::Fixture;

fn is_paused(reason: &'static str) -> impl Fn(&MachineRecord) -> bool {
    move |record| {
        let machine = &record.machine;
        machine.host_status == "unknown" && machine.host_status_reason.as_deref() == Some(reason)
    }
}

fn goes_on(record: &MachineRecord) -> bool {
    record.machine.host_status == "ok" && record.machine.host_status_reason.is_none()
}

#[tokio::test]
async fn a_machine_that_stands_still_shows_why_refuses_what_needs_its_guest_and_goes_on_by_itself()
{
    let fixture = Fixture::new().await;
    for (pause, reason, says) in [
        (Pause::DiskFull, "disk_full", "disk of the host is full"),
        (Pause::DiskError, "disk_error", "can't read or write"),
    ] {
        fixture.host.set_faults(Faults { disk_stays_full: true, ..Faults::default() });
        let machine = fixture.started().await;
        fixture.host.pause(machine.as_str(), Some(pause));
        let paused = fixture.until_that(&machine, is_paused(reason)).await;
        assert_eq!(paused.machine.state, MachineState::Started);
        assert!(paused.machine.config.is_some());
        for (what, answer) in [
            (
                "processes",
                fixture.ask(WorkerRequest::Processes { machine: machine.clone() }).await.map(drop),
            ),
            ("suspend", fixture.act(&machine, Action::Suspend).await.map(drop)),
            (
                "signal",
                fixture
                    .act(&machine, Action::Signal { signal: caddis_api::Signal::TERM })
                    .await
                    .map(drop),
            ),
        ] {
            let error = answer.unwrap_err();
            assert!(
                error.code == ErrorCode::FailedPrecondition && error.message.contains(says),
                "{what}: {error:?}"
            );
        }
        fixture.host.set_faults(Faults::default());
        fixture.until_that(&machine, goes_on).await;
        let told =
            fixture.events(&machine).await.into_iter().filter(|event| event.kind == "host_status");
        let told: Vec<_> =
            told.filter_map(|event| Some(event.details?["host_status"].clone())).collect();
        assert_eq!(told, [json!("ok"), json!("unknown")]);
        fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
        fixture.until(&machine, MachineState::Destroyed).await;
    }
}

#[tokio::test]
async fn a_machine_that_stands_still_is_adopted_as_that_and_can_be_stopped_and_destroyed() {
    let mut fixture = Fixture::new().await;
    fixture.host.set_faults(Faults { disk_stays_full: true, ..Faults::default() });
    let (one, other) = (fixture.started().await, fixture.started().await);
    for machine in [&one, &other] {
        fixture.host.pause(machine.as_str(), Some(Pause::DiskFull));
        fixture.until_that(machine, is_paused("disk_full")).await;
    }
    fixture.kill().await;
    fixture.start().await;
    for machine in [&one, &other] {
        fixture.until_that(machine, is_paused("disk_full")).await;
    }
    fixture.act(&one, Action::Stop { signal: None, timeout: None }).await.unwrap();
    let stopped = fixture.until(&one, MachineState::Stopped).await;
    assert!(goes_on(&stopped), "nothing of it stands still: {stopped:?}");
    fixture.act(&one, Action::Start).await.unwrap();
    assert!(goes_on(&fixture.until(&one, MachineState::Started).await), "another VM");
    fixture.act(&other, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&other, MachineState::Destroyed).await;
}
