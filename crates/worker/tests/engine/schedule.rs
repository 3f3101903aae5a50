//! Machines that run at intervals.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use caddis_api::{MachineId, MachineState};
use caddis_bus::message::Action;
use caddis_vmm::fake::Faults;
use serde_json::json;

use crate::support::Fixture;

const STOP: Action = Action::Stop { signal: None, timeout: None };
const HOUR: Duration = Duration::from_secs(3600);

/// A machine that has run and is stopped.
async fn stopped(fixture: &Fixture, schedule: &str) -> MachineId {
    let machine =
        fixture.try_create(&["sleep", "inf"], json!({ "schedule": schedule })).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    machine
}

#[tokio::test]
async fn a_machine_with_a_schedule_starts_when_its_time_has_come() {
    let mut fixture = Fixture::new().await;
    let (hourly, daily) = (stopped(&fixture, "hourly").await, stopped(&fixture, "daily").await);
    let never = fixture.create_resting(json!({ "schedule": "hourly" })).await;
    let usual = fixture.started().await;
    fixture.act(&usual, STOP).await.unwrap();
    fixture.until(&usual, MachineState::Stopped).await;
    fixture.end().await;
    fixture.move_into_the_past(HOUR / 2);
    fixture.start().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(fixture.host.running(), Vec::<String>::new(), "not yet");
    fixture.end().await;
    fixture.move_into_the_past(HOUR / 2);
    fixture.start().await;
    fixture.until(&hourly, MachineState::Started).await;
    let start = fixture.events(&hourly).await;
    assert_eq!(
        (start[0].kind.as_str(), start[0].source.as_str()),
        ("start", "flyd"),
        "nobody asked for it"
    );
    assert_eq!(fixture.host.running(), [hourly.to_string()], "and no other");

    // Once, however often it would have been.
    fixture.act(&hourly, STOP).await.unwrap();
    fixture.until(&hourly, MachineState::Stopped).await;
    fixture.end().await;
    fixture.move_into_the_past(HOUR * 100);
    fixture.start().await;
    for machine in [&hourly, &daily] {
        fixture.until(machine, MachineState::Started).await;
        fixture.act(machine, STOP).await.unwrap();
        fixture.until(machine, MachineState::Stopped).await;
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    fixture.assert_nothing_runs().await;

    // One that could not be started is not given up for ever, nor tried again at once.
    fixture.host.set_faults(Faults { failing_launches: 1000, ..Faults::default() });
    fixture.act(&hourly, Action::Start).await.unwrap();
    fixture.until(&hourly, MachineState::Failed).await;
    fixture.host.set_faults(Faults::default());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    fixture.until(&hourly, MachineState::Failed).await;
    fixture.end().await;
    fixture.move_into_the_past(HOUR);
    fixture.start().await;
    fixture.until(&hourly, MachineState::Started).await;
    fixture.until(&never, MachineState::Created).await;
}
