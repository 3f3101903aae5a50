//! Suspend and resume, and everything that may come in between.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use std::{fs, time::Duration};

use caddis_api::{ErrorCode, MachineId, MachineState};
use caddis_bus::message::Action;
use caddis_vmm::fake::Faults;
use serde_json::{Value, json};

use crate::support::Fixture;

const STOP: Action = Action::Stop { signal: None, timeout: None };
const SNAPSHOT: &str = "memory.snapshot";
const OVERLAY: &str = "root.qcow2";

async fn suspended(fixture: &Fixture) -> MachineId {
    let machine = fixture.started().await;
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    machine
}

/// `request` of the newest start that succeeded.
async fn start_of(fixture: &Fixture, machine: &MachineId) -> Value {
    let events = fixture.events(machine).await;
    let start = events.into_iter().find(|event| event.kind == "start" && event.status == "started");
    start.and_then(|event| event.details).unwrap()
}

#[tokio::test]
async fn a_suspended_machine_goes_on_with_the_program_and_the_disk_it_had() {
    let fixture = Fixture::new().await;
    let machine = suspended(&fixture).await;
    fixture.assert_nothing_runs().await;
    assert!(fixture.file(&machine, SNAPSHOT).exists() && fixture.file(&machine, OVERLAY).exists());
    fs::write(fixture.file(&machine, OVERLAY), "changed").unwrap();
    assert!(fixture.exits(&machine).await.is_empty(), "its program has not ended");

    fixture.act(&machine, Action::Start).await.unwrap();
    let record = fixture.until(&machine, MachineState::Started).await;
    assert_eq!(record.machine.start_kind.as_deref(), Some("resume"));
    assert_eq!(start_of(&fixture, &machine).await["start_kind"], "resume");
    assert!(!fixture.host.guest(machine.as_str()).unwrap().is_frozen(), "programs go on");
    assert!(!fixture.file(&machine, SNAPSHOT).exists(), "it is used up");
    assert_eq!(fs::read_to_string(fixture.file(&machine, OVERLAY)).unwrap(), "changed");
    let kinds: Vec<_> =
        fixture.events(&machine).await.into_iter().map(|e| (e.kind, e.status)).collect();
    let expected = [
        ("start", "started"),
        ("start", "starting"),
        ("suspend", "suspended"),
        ("suspend", "suspending"),
    ];
    let kinds: Vec<_> =
        kinds.iter().take(4).map(|(kind, status)| (kind.as_str(), status.as_str())).collect();
    assert_eq!(kinds, expected);

    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    assert_eq!(fixture.exits(&machine).await[0].exit_event.guest_signal, 2, "it heard the signal");
}

#[tokio::test]
async fn a_start_calls_off_a_suspend_that_is_under_way() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    fixture.host.set_faults(Faults { save_delay: Duration::from_secs(600), ..Faults::default() });
    fixture.act(&machine, Action::Suspend).await.unwrap();
    let saving = |step: &str| step == "save";
    fixture
        .until_that(&machine, |r| r.machine.operation.as_ref().is_some_and(|o| saving(&o.step)))
        .await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(fixture.host.launches(), 1, "its VM never ended");
    assert!(!fixture.host.guest(machine.as_str()).unwrap().is_frozen());
    assert!(
        start_of(&fixture, &machine).await["start_reason"].as_str().unwrap().contains("cancelled")
    );

    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    assert_eq!(
        fixture.exits(&machine).await[0].exit_event.guest_signal,
        2,
        "it goes on, to hear the signal"
    );
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_suspend_that_fails_costs_nothing() {
    let fixture = Fixture::new().await;
    for faults in [
        Faults { failing_saves: 1, ..Faults::default() },
        Faults {
            guest: caddis_guest_protocol::fake::Behaviour {
                refuses_to_freeze: true,
                ..Default::default()
            },
            ..Faults::default()
        },
    ] {
        fixture.host.set_faults(faults);
        let machine = fixture.started().await;
        fixture.act(&machine, Action::Suspend).await.unwrap();
        fixture.until(&machine, MachineState::Started).await;
        let newest = fixture.events(&machine).await.swap_remove(0);
        assert_eq!((newest.kind.as_str(), newest.status.as_str()), ("suspend", "started"));
        assert!(newest.told()["error"].as_str().unwrap().contains("told to fail"));
        assert!(!fixture.host.guest(machine.as_str()).unwrap().is_frozen());
        assert!(!fixture.file(&machine, SNAPSHOT).exists());
    }
}

#[tokio::test]
async fn what_can_not_be_resumed_starts_anew_with_the_disk_it_had_and_says_so() {
    let fixture = Fixture::new().await;
    for spoil in [
        |fixture: &Fixture, machine: &MachineId| {
            fs::remove_file(fixture.file(machine, SNAPSHOT)).unwrap()
        },
        |fixture: &Fixture, machine: &MachineId| {
            fs::write(fixture.file(machine, SNAPSHOT), "damaged").unwrap()
        },
    ] {
        let machine = suspended(&fixture).await;
        fs::write(fixture.file(&machine, OVERLAY), "changed").unwrap();
        spoil(&fixture, &machine);
        fixture.act(&machine, Action::Start).await.unwrap();
        fixture.until(&machine, MachineState::Started).await;
        let start = start_of(&fixture, &machine).await;
        assert_ne!(start["start_kind"], "resume");
        assert!(
            start["start_reason"].as_str().unwrap().contains("could not be resumed"),
            "{start}"
        );
        assert_eq!(fs::read_to_string(fixture.file(&machine, OVERLAY)).unwrap(), "changed");
        fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
        fixture.until(&machine, MachineState::Destroyed).await;
    }
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_stop_of_a_suspended_machine_forgets_what_was_saved() {
    let fixture = Fixture::new().await;
    let machine = suspended(&fixture).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    assert!(
        !fixture.file(&machine, SNAPSHOT).exists() && !fixture.file(&machine, OVERLAY).exists()
    );
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_ne!(start_of(&fixture, &machine).await["start_kind"], "resume");

    let machine = suspended(&fixture).await;
    fixture.act(&machine, Action::Destroy { force: false }).await.unwrap();
    fixture.until(&machine, MachineState::Destroyed).await;
    assert!(!fixture.file(&machine, SNAPSHOT).exists());
}

#[tokio::test]
async fn machines_that_can_not_be_suspended_are_refused_with_the_reason() {
    let fixture = Fixture::new().await;
    let exec = ["sleep", "inf"];
    for (config, words) in [
        (json!({ "init": { "exec": exec, "swap_size_mb": 64 } }), "swap"),
        (json!({ "schedule": "daily" }), "schedule"),
    ] {
        let machine = fixture.try_create(&exec, config).await.unwrap();
        fixture.until(&machine, MachineState::Started).await;
        let refused = fixture.act(&machine, Action::Suspend).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::FailedPrecondition);
        assert!(refused.message.contains(words), "{}", refused.message);
    }
    let stopped = fixture.create(&["exit", "0"]).await;
    fixture.until(&stopped, MachineState::Stopped).await;
    assert_eq!(
        fixture.act(&stopped, Action::Suspend).await.unwrap_err().code,
        ErrorCode::FailedPrecondition
    );
}

#[tokio::test]
async fn a_suspended_machine_survives_its_server_and_its_host() {
    let mut fixture = Fixture::new().await;
    let machine = suspended(&fixture).await;
    fixture.end().await;
    fixture.boot_id = "second".to_owned();
    fixture.start().await;
    let record = fixture.until(&machine, MachineState::Suspended).await;
    assert!(record.machine.operation.is_none(), "nobody asked for a start");
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(start_of(&fixture, &machine).await["start_kind"], "resume");
}

#[tokio::test]
async fn a_server_that_ends_while_it_suspends_or_resumes_goes_on_where_it_was() {
    let mut fixture = Fixture::new().await;
    for delay in [0, 1, 3, 10, 30] {
        let machine = fixture.started().await;
        fixture.act(&machine, Action::Suspend).await.unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        fixture.end().await;
        fixture.start().await;
        fixture.until(&machine, MachineState::Suspended).await;
        fixture.act(&machine, Action::Start).await.unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        fixture.end().await;
        fixture.start().await;
        fixture.until(&machine, MachineState::Started).await;
        assert!(!fixture.host.guest(machine.as_str()).unwrap().is_frozen(), "after {delay} ms");
        assert!(fixture.exits(&machine).await.is_empty(), "its program went on through all of it");
        fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
        fixture.until(&machine, MachineState::Destroyed).await;
    }
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_host_that_goes_down_while_a_machine_resumes_does_not_resume_it_twice() {
    let mut fixture = Fixture::new().await;
    let machine = suspended(&fixture).await;
    let saved = fs::read(fixture.file(&machine, SNAPSHOT)).unwrap();
    fixture.host.set_faults(Faults { launch_delay: Duration::from_secs(1), ..Faults::default() });
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.end().await;
    fixture.host.power_cycle();
    fixture.host.set_faults(Faults::default());
    // The disk may not have learnt that it was removed.
    fs::write(fixture.file(&machine, SNAPSHOT), saved).unwrap();
    fixture.boot_id = "second".to_owned();
    fixture.start().await;
    fixture.until(&machine, MachineState::Started).await;
    assert_ne!(start_of(&fixture, &machine).await["start_kind"], "resume");
}

#[tokio::test]
async fn many_at_once_wait_for_their_turn_and_all_are_suspended() {
    let fixture = Fixture::new().await;
    fixture.host.set_faults(Faults { save_delay: Duration::from_millis(20), ..Faults::default() });
    let mut machines = Vec::new();
    for _ in 0..6 {
        machines.push(fixture.started().await);
    }
    for machine in &machines {
        fixture.act(machine, Action::Suspend).await.unwrap();
    }
    for machine in &machines {
        fixture.until(machine, MachineState::Suspended).await;
    }
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_vm_that_waits_becomes_a_machines() {
    let fixture = Fixture::new().await;
    fixture.host.set_faults(Faults { pool: true, ..Faults::default() });
    let machine = fixture.started().await;
    let start = start_of(&fixture, &machine).await;
    assert_eq!(
        (start["start_kind"].as_str(), start["pool"].as_str()),
        (Some("template"), Some("hit"))
    );
    assert_eq!(fixture.network.taps().len(), 1);
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_resume_that_the_host_fails_keeps_what_was_saved_for_another_try() {
    let fixture = Fixture::new().await;
    let machine = suspended(&fixture).await;
    fixture.host.set_faults(Faults { failing_launches: 3, ..Faults::default() });
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until_that(&machine, |record| record.machine.state == MachineState::Starting).await;
    fixture.until(&machine, MachineState::Suspended).await;
    let newest = fixture.events(&machine).await.swap_remove(0);
    assert_eq!((newest.kind.as_str(), newest.status.as_str()), ("suspend", "suspended"));
    assert!(newest.told()["error"].as_str().unwrap().contains("told to fail"));
    fixture.assert_nothing_runs().await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(start_of(&fixture, &machine).await["start_kind"], "resume");
}
