//! A panic in the task of one machine sets that machine aside, and nothing else.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use caddis_api::{ErrorCode, MachineId, MachineState};
use caddis_bus::message::{Action, MachineRecord, WorkerRequest};
use futures::{StreamExt as _, stream};

use crate::{
    sabotage::{Fault, Place},
    steps::{AT_ONCE, Scenario, act, everything, without_fault},
    support::Fixture,
};

const STOP: Action = Action::Stop { signal: None, timeout: None };
const DESTROY: Action = Action::Destroy { force: true };

fn place(operation: &str, step: &str) -> Place {
    (operation.to_owned(), step.to_owned())
}

fn reason(record: &MachineRecord) -> String {
    let newest = record.machine.events.iter().flatten().next();
    newest.and_then(|event| event.error()).unwrap_or_default().to_owned()
}

/// A machine whose task has panicked in a suspend, with its program running.
async fn quarantined(fixture: &Fixture) -> MachineId {
    let machine = fixture.started().await;
    fixture.injector.arm(Fault::PanicsBefore, place("suspend", "save"));
    act(fixture, &machine, Action::Suspend).await;
    let record = fixture.until(&machine, MachineState::Failed).await;
    let expected = "internal error in the server during suspend, at step save; the machine's \
                    files and its VM were left";
    assert!(reason(&record).starts_with(expected), "{}", reason(&record));
    fixture.injector.disarm();
    machine
}

#[tokio::test]
async fn others_go_on_and_the_machine_says_why_it_failed() {
    let fixture = Fixture::new().await;
    let other = fixture.started().await;
    let machine = quarantined(&fixture).await;
    let mut running = fixture.host.running();
    running.sort();
    let mut both = [machine.to_string(), other.to_string()];
    both.sort();
    assert_eq!(running, both, "its VM was left alone");
    assert!(fixture.file(&machine, "root.qcow2").exists(), "its disk too");
    fixture.assert_log_tells_all(&machine, "quarantined").await;

    act(&fixture, &other, STOP).await;
    fixture.until(&other, MachineState::Stopped).await;
    act(&fixture, &other, Action::Start).await;
    fixture.until(&other, MachineState::Started).await;
}

#[tokio::test]
async fn a_start_asks_its_program_to_end_before_it_boots_again() {
    let fixture = Fixture::new().await;
    let machine = quarantined(&fixture).await;
    let launches = fixture.host.launches();
    act(&fixture, &machine, Action::Start).await;
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(fixture.host.launches(), launches + 1);
    let exits = fixture.exits(&machine).await;
    let exit = &exits[0].exit_event;
    assert!(exit.requested_stop && exit.restarting && exit.cause.is_none(), "{exit:?}");
    fixture.assert_all_fits(&machine, "started again").await;
}

#[tokio::test]
async fn it_is_left_alone_over_a_restart_of_the_server_until_it_is_stopped() {
    let mut fixture = Fixture::new().await;
    let machine = quarantined(&fixture).await;
    fixture.end().await;
    fixture.start().await;
    fixture.until(&machine, MachineState::Failed).await;
    assert_eq!(fixture.host.running(), [machine.to_string()]);
    act(&fixture, &machine, STOP).await;
    fixture.until(&machine, MachineState::Stopped).await;
    let exits = fixture.exits(&machine).await;
    assert!(exits[0].exit_event.cause.is_none(), "it was asked to end: {:?}", exits[0]);
    fixture.assert_all_fits(&machine, "stopped").await;
}

#[tokio::test]
async fn a_host_that_is_drained_stops_it_and_does_not_start_it_again() {
    let mut fixture = Fixture::new().await;
    let machine = quarantined(&fixture).await;
    fixture.ask(WorkerRequest::Drain { deadline_ms: 60_000 }).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
    fixture.end().await;
    fixture.start().await;
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_all_fits(&machine, "drained").await;
}

#[tokio::test]
async fn requests_that_are_on_their_way_get_an_answer() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    fixture.injector.arm(Fault::PanicsBefore, place("stop", "signal"));
    act(&fixture, &machine, STOP).await;
    // Whenever it comes: before the panic, after it, or to the next owner.
    match fixture.act(&machine, Action::Start).await {
        Ok(_) => {}
        Err(error) => assert_eq!(error.code, ErrorCode::Internal, "{error}"),
    }
    let has_an_owner = |record: &MachineRecord| {
        let told = |error: &str| error.starts_with("internal error");
        record.machine.events.iter().flatten().any(|event| event.error().is_some_and(told))
    };
    fixture.until_that(&machine, has_an_owner).await;
    act(&fixture, &machine, DESTROY).await;
    fixture.until(&machine, MachineState::Destroyed).await;
    fixture.assert_all_fits(&machine, "destroyed").await;
}

#[tokio::test]
async fn a_machine_that_panics_again_is_quarantined_again() {
    let fixture = Fixture::new().await;
    let machine = quarantined(&fixture).await;
    fixture.injector.arm(Fault::PanicsAfter, place("restart", "release"));
    act(&fixture, &machine, Action::Start).await;
    let record = fixture
        .until_that(&machine, |record| reason(record).contains("during restart, at step release"))
        .await;
    assert_eq!(record.machine.state, MachineState::Failed);
    fixture.injector.disarm();
    act(&fixture, &machine, Action::Start).await;
    fixture.until(&machine, MachineState::Started).await;
    fixture.assert_all_fits(&machine, "started again").await;
}

/// Wherever it happens: the machine fails with a reason, and can be destroyed, after which nothing
/// is left of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_at_any_step_leaves_a_machine_that_can_be_destroyed() {
    let scenarios = everything();
    let mut cases = Vec::new();
    for scenario in &scenarios {
        for (place, done) in without_fault(scenario).await {
            let fault = if done { Fault::PanicsAfter } else { Fault::PanicsBefore };
            cases.push((scenario, fault, place));
        }
    }
    let done = stream::iter(cases).map(|(scenario, fault, place)| case(scenario, fault, place));
    done.buffer_unordered(AT_ONCE).collect::<()>().await;
}

async fn case(scenario: &Scenario, fault: Fault, place: Place) {
    let name = format!("{}, {fault:?} at {}/{}", scenario.name, place.0, place.1);
    let fixture = Fixture::new().await;
    let machine = (scenario.prepare)(&fixture).await;
    fixture.injector.arm(fault, place.clone());
    (scenario.act)(&fixture, &machine).await;
    let expected = format!("internal error in the server during {}, at step {}", place.0, place.1);
    let set_aside = |record: &MachineRecord| reason(record).starts_with(&expected);
    let record = fixture.until_named(&machine, &name, set_aside).await;
    assert!(fixture.injector.has_struck(), "{name}: nothing happened");
    assert_eq!(record.machine.state, MachineState::Failed, "{name}");
    fixture.injector.disarm();
    fixture.host.set_faults(caddis_vmm::fake::Faults::default());
    act(&fixture, &machine, DESTROY).await;
    fixture.until(&machine, MachineState::Destroyed).await;
    fixture.assert_all_fits(&machine, &name).await;
}
