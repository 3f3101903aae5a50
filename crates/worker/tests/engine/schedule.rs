//! Machines that run at intervals.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use caddis_api::{MachineId, MachineState, UnixMillis};
use caddis_bus::message::Action;
use caddis_vmm::fake::Faults;
use serde_json::json;

use crate::support::Fixture;

const STOP: Action = Action::Stop { signal: None, timeout: None };
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// Has time pass a minute at a time, at each of which the machine looks whether it is due.
async fn pass(fixture: &Fixture, machine: &MachineId, minutes: u32) {
    for _ in 0..minutes {
        fixture.clock.advance(MINUTE);
        // It has no lease, and has looked at its clock when it says so.
        fixture.act(machine, Action::GetLease).await.unwrap_err();
    }
}

/// A machine that has run and is stopped.
async fn stopped(fixture: &Fixture, schedule: &str) -> MachineId {
    let machine =
        fixture.try_create(&["sleep", "inf"], json!({ "schedule": schedule })).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    machine
}

/// When the machine was started because of its schedule, hours after it was made.
async fn runs(fixture: &Fixture, machine: &MachineId) -> Vec<u64> {
    let created = fixture.record(machine).unwrap().machine.created_at;
    let created = UnixMillis::from(created.parse::<jiff::Timestamp>().unwrap());
    let mut events = fixture.events(machine).await;
    events.reverse();
    let starts = events.iter().filter(|event| {
        (event.kind.as_str(), event.status.as_str(), event.source.as_str())
            == ("start", "starting", "flyd")
    });
    starts.map(|start| start.timestamp.since(created).as_secs() / HOUR.as_secs()).collect()
}

#[tokio::test]
async fn a_machine_with_a_schedule_starts_when_its_time_has_come() {
    let fixture = Fixture::new().await;
    let (hourly, daily) = (stopped(&fixture, "hourly").await, stopped(&fixture, "daily").await);
    let never = fixture.create_resting(json!({ "schedule": "hourly" })).await;
    let usual = fixture.started().await;
    fixture.act(&usual, STOP).await.unwrap();
    fixture.until(&usual, MachineState::Stopped).await;
    pass(&fixture, &hourly, 55).await;
    fixture.until(&hourly, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
    pass(&fixture, &hourly, 5).await;
    fixture.until(&hourly, MachineState::Started).await;
    assert_eq!(fixture.host.running(), [hourly.to_string()], "and no other");
    fixture.act(&hourly, STOP).await.unwrap();
    fixture.until(&hourly, MachineState::Stopped).await;
    fixture.clock.advance(HOUR);
    fixture.until(&hourly, MachineState::Started).await;
    assert_eq!(runs(&fixture, &hourly).await, [1, 2], "each in its hour, and not before");
    assert_eq!(runs(&fixture, &daily).await, [0_u64; 0]);
    for machine in [&never, &usual] {
        assert_eq!(runs(&fixture, machine).await, [0_u64; 0]);
    }
}

#[tokio::test]
async fn runs_that_were_missed_while_no_server_ran_are_made_up_for_once() {
    let mut fixture = Fixture::new().await;
    let (hourly, daily) = (stopped(&fixture, "hourly").await, stopped(&fixture, "daily").await);
    fixture.end().await;
    fixture.clock.advance(HOUR * 100);
    fixture.start().await;
    for machine in [&hourly, &daily] {
        fixture.until(machine, MachineState::Started).await;
        fixture.act(machine, STOP).await.unwrap();
        fixture.until(machine, MachineState::Stopped).await;
    }
    pass(&fixture, &hourly, 5).await;
    pass(&fixture, &daily, 5).await;
    fixture.assert_nothing_runs().await;
    fixture.clock.advance(HOUR);
    fixture.until(&hourly, MachineState::Started).await;
    assert_eq!(runs(&fixture, &hourly).await, [100, 101]);
    assert_eq!(runs(&fixture, &daily).await, [100]);
}

#[tokio::test]
async fn a_machine_with_a_schedule_that_could_not_be_started_is_tried_again_the_next_time() {
    let fixture = Fixture::new().await;
    let hourly = stopped(&fixture, "hourly").await;
    fixture.host.set_faults(Faults { failing_launches: 1000, ..Faults::default() });
    fixture.act(&hourly, Action::Start).await.unwrap();
    fixture.until(&hourly, MachineState::Failed).await;
    fixture.host.set_faults(Faults::default());
    pass(&fixture, &hourly, 30).await;
    fixture.until(&hourly, MachineState::Failed).await;
    fixture.clock.advance(HOUR / 2);
    fixture.until(&hourly, MachineState::Started).await;
    assert_eq!(runs(&fixture, &hourly).await, [1], "not at once");
}
