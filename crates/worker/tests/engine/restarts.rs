//! The worker's process ends and another takes over.

use std::time::Duration;

use caddis_api::MachineState;
use caddis_bus::message::{Action, WorkerRequest};
use caddis_guest_protocol::fake::Behaviour;
use caddis_vmm::fake::Faults;
use serde_json::json;

use crate::support::Fixture;

const STOP: Action = Action::Stop { signal: None, timeout: None };

#[tokio::test]
async fn running_vms_are_adopted_and_go_on() {
    let mut fixture = Fixture::new().await;
    let machine = fixture.started().await;
    for _ in 0..3 {
        fixture.end().await;
        assert_eq!(fixture.host.running(), [machine.to_string()]);
        fixture.start().await;
        fixture.until(&machine, MachineState::Started).await;
    }
    assert_eq!(fixture.host.launches(), 1);
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn an_exit_while_no_worker_ran_is_reported_with_its_code() {
    let mut fixture = Fixture::new().await;
    let machine = fixture.create(&["sleep", "1"]).await;
    fixture.until(&machine, MachineState::Started).await;
    let guest = fixture.host.guest(machine.as_str()).unwrap();
    fixture.end().await;
    // Its exit is held until someone takes it.
    tokio::time::timeout(Duration::from_secs(2), guest.powered_off()).await.unwrap_err();
    fixture.start().await;
    fixture.until(&machine, MachineState::Stopped).await;
    let exits = fixture.exits(&machine).await;
    assert_eq!((exits.len(), exits[0].exit_event.exit_code), (1, 0));
    fixture.assert_nothing_runs().await;
}

/// Ends the worker after ever longer times, wherever a start, a stop or a destroy is then; the next
/// one finishes it.
#[tokio::test]
async fn whatever_is_under_way_is_finished_by_the_next_worker() {
    let mut fixture = Fixture::new().await;
    let guest = Behaviour { boot_delay: Duration::from_millis(5), ..Behaviour::default() };
    fixture.host.set_faults(Faults {
        launch_delay: Duration::from_millis(5),
        guest,
        ..Faults::default()
    });
    for wait in [0, 1, 3, 6, 10, 15, 25] {
        let pause = || tokio::time::sleep(Duration::from_millis(wait));
        let machine = fixture.create(&["sleep", "inf"]).await;
        pause().await;
        fixture.end().await;
        fixture.start().await;
        fixture.until(&machine, MachineState::Started).await;
        assert_eq!(fixture.host.running(), [machine.to_string()], "one VM, after {wait} ms");
        fixture.act(&machine, STOP).await.unwrap();
        pause().await;
        fixture.end().await;
        fixture.start().await;
        fixture.until(&machine, MachineState::Stopped).await;
        fixture.assert_nothing_runs().await;
        let stops = fixture.exits(&machine).await;
        assert_eq!(stops.len(), 1, "one exit, after {wait} ms");
        fixture.act(&machine, Action::Destroy { force: false }).await.unwrap();
        pause().await;
        fixture.end().await;
        fixture.start().await;
        fixture.until(&machine, MachineState::Destroyed).await;
    }
}

/// The kernel takes a while to remove a process that was killed.
#[tokio::test]
async fn a_machine_rests_before_its_killed_vm_is_gone_and_what_comes_next_waits_for_that() {
    let mut fixture = Fixture::new().await;
    let guest = Behaviour { completes_logs: true, ..Behaviour::default() };
    fixture.host.set_faults(Faults {
        death_delay: Duration::from_millis(400),
        guest,
        ..Faults::default()
    });
    let machine = fixture.started().await;
    for moment in [0, 100, 600] {
        fixture.act(&machine, STOP).await.unwrap();
        fixture.until(&machine, MachineState::Stopped).await;
        assert_eq!(fixture.host.running(), [machine.to_string()], "it is not gone yet");
        tokio::time::sleep(Duration::from_millis(moment)).await;
        fixture.act(&machine, Action::Start).await.unwrap();
        fixture.until(&machine, MachineState::Started).await;
    }
    assert_eq!(
        (fixture.host.launches(), fixture.network.taps().len()),
        (4, 1),
        "no start was in vain"
    );
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(fixture.host.launches(), 5);

    // A worker that ends waits for it; after one that was killed the next one clears up.
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.end().await;
    assert!(fixture.host.running().is_empty());
    fixture.start().await;
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;

    // A destroyed one is gone.
    fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&machine, MachineState::Destroyed).await;
    assert!(fixture.host.running().is_empty());
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_drain_waits_until_processes_are_gone_and_ends_what_could_not_be_suspended() {
    let fixture = Fixture::new().await;
    fixture.host.set_faults(Faults {
        death_delay: Duration::from_millis(300),
        failing_saves: 100,
        save_delay: Duration::from_millis(100),
        guest: Behaviour { completes_logs: true, ..Behaviour::default() },
        ..Faults::default()
    });
    let (stopped, suspending) = (fixture.started().await, fixture.started().await);
    fixture.act(&stopped, STOP).await.unwrap();
    fixture.until(&stopped, MachineState::Stopped).await;
    fixture.act(&suspending, Action::Suspend).await.unwrap();
    fixture.ask(WorkerRequest::Drain { deadline_ms: 30_000 }).await.unwrap();
    assert!(fixture.host.running().is_empty());
    fixture.until(&suspending, MachineState::Stopped).await;
}

#[tokio::test]
async fn after_a_reboot_of_the_host_what_should_run_runs_again() {
    let mut fixture = Fixture::new().await;
    let (wanted, stopped) = (fixture.started().await, fixture.started().await);
    fixture.act(&stopped, STOP).await.unwrap();
    fixture.until(&stopped, MachineState::Stopped).await;
    fixture.end().await;
    fixture.host.power_cycle();
    fixture.boot_id = "second".to_owned();
    fixture.start().await;
    fixture
        .until_that(&wanted, |r| {
            r.machine.state == MachineState::Started && r.machine.operation.is_none()
        })
        .await;
    let exit = fixture.exits(&wanted).await[0].exit_event.clone();
    assert_eq!((exit.cause.as_deref(), exit.restarting), (Some("host_reboot"), true));
    assert_eq!(fixture.host.running(), [wanted.to_string()]);
}

#[tokio::test]
async fn a_drained_host_brings_its_guests_back() {
    let mut fixture = Fixture::new().await;
    let machine =
        fixture.try_create(&["sleep", "inf"], json!({ "auto_destroy": true })).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    fixture.ask(WorkerRequest::Drain { deadline_ms: 30_000 }).await.unwrap();
    fixture.assert_nothing_runs().await;
    assert!(
        fixture.act(&machine, Action::Start).await.is_err(),
        "nothing starts while the host goes down"
    );
    fixture.end().await;
    fixture.boot_id = "second".to_owned();
    fixture.start().await;
    fixture.until(&machine, MachineState::Started).await;
}
