//! Starts that come together are launched in the order in which they came, few at once.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use caddis_api::{MachineId, MachineState, machine::Operation};
use caddis_bus::message::{Action, MachineRecord};
use caddis_guest_protocol::fake::Behaviour;
use caddis_vmm::fake::Faults;
use serde_json::json;

use crate::support::Fixture;

const STOP: Action = Action::Stop { signal: None, timeout: None };
const LONG: Duration = Duration::from_secs(3600);

/// A host where one VM is launched at a time, with machines that were never booted.
async fn fixture(machines: usize) -> (Fixture, Vec<MachineId>) {
    let mut fixture = Fixture::new().await;
    fixture.launch_concurrency = 1;
    fixture.end().await;
    fixture.start().await;
    let mut made = Vec::new();
    for _ in 0..machines {
        made.push(fixture.create_resting(json!({})).await);
    }
    (fixture, made)
}

async fn is_at(fixture: &Fixture, machine: &MachineId, step: &str) -> MachineRecord {
    let is_there = |operation: &Operation| operation.step == step;
    fixture
        .until_that(machine, |record| record.machine.operation.as_ref().is_some_and(is_there))
        .await
}

async fn waits(fixture: &Fixture, machine: &MachineId) {
    is_at(fixture, machine, "queue").await;
}

#[tokio::test]
async fn machines_are_launched_in_the_order_in_which_they_were_started() {
    let (fixture, machines) = fixture(3).await;
    fixture
        .host
        .set_faults(Faults { launch_delay: Duration::from_millis(1000), ..Default::default() });
    fixture.act(&machines[0], Action::Start).await.unwrap();
    is_at(&fixture, &machines[0], "launch").await;
    for machine in &machines[1..] {
        fixture.act(machine, Action::Start).await.unwrap();
        waits(&fixture, machine).await;
    }
    let mut ready = Vec::new();
    for machine in &machines {
        fixture.until(machine, MachineState::Started).await;
        ready.push(fixture.events(machine).await[0].timestamp);
    }
    assert!(ready.is_sorted(), "{ready:?}");
    assert!(
        ready.windows(2).all(|two| two[1].since(two[0]) >= Duration::from_millis(900)),
        "no two at once: {ready:?}"
    );
}

#[tokio::test]
async fn a_machine_that_waits_can_be_stopped_and_has_its_whole_time_once_it_is_launched() {
    let (fixture, machines) = fixture(3).await;
    let [first, second, third] = &machines[..] else { panic!() };
    // Nothing comes of these.
    fixture.host.set_faults(Faults {
        guest: Behaviour { silent: true, ..Default::default() },
        launch_delay: LONG,
        ..Default::default()
    });
    fixture.act(first, Action::Start).await.unwrap();
    is_at(&fixture, first, "launch").await;
    for machine in [second, third] {
        fixture.act(machine, Action::Start).await.unwrap();
        waits(&fixture, machine).await;
    }
    fixture.act(second, STOP).await.unwrap();
    fixture.until(second, MachineState::Stopped).await;
    fixture.host.set_faults(Faults {
        guest: Behaviour { silent: true, ..Default::default() },
        ..Default::default()
    });

    // The first is not waited for for ever.
    let record = is_at(&fixture, third, "boot").await;
    let operation = record.machine.operation.unwrap();
    let time = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_millisecond();
    let allowed = time(&operation.deadline) - time(&operation.started_at);
    assert!(allowed >= 4 * 60_000 + 1_000, "{allowed} ms: the time it waited is not its own");
}

#[tokio::test]
async fn a_launch_that_fails_waits_for_its_next_turn_behind_the_others() {
    let (fixture, machines) = fixture(2).await;
    fixture.host.set_faults(Faults {
        failing_launches: 1,
        launch_delay: Duration::from_millis(1500),
        ..Default::default()
    });
    fixture.act(&machines[0], Action::Start).await.unwrap();
    is_at(&fixture, &machines[0], "launch").await;
    fixture.act(&machines[1], Action::Start).await.unwrap();
    waits(&fixture, &machines[1]).await;
    let mut ready = Vec::new();
    for machine in &machines {
        fixture.until(machine, MachineState::Started).await;
        ready.push(fixture.events(machine).await[0].timestamp);
    }
    assert!(ready[1] < ready[0], "{ready:?}");
}
