//! What goes wrong below.

use std::time::Duration;

use caddis_api::MachineState;
use caddis_bus::message::{Action, MachineRecord};
use caddis_guest_protocol::fake::Behaviour;
use caddis_vmm::{VmExit, fake::Faults};

use crate::support::Fixture;

#[tokio::test]
async fn a_launch_that_fails_is_tried_again_and_given_up_with_its_reason() {
    let fixture = Fixture::new().await;
    fixture.host.set_faults(Faults { failing_launches: 2, ..Faults::default() });
    let machine = fixture.started().await;
    assert_eq!(fixture.host.launches(), 1);
    fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&machine, MachineState::Destroyed).await;

    fixture.host.set_faults(Faults { failing_launches: 1000, ..Faults::default() });
    let machine = fixture.create(&["sleep", "inf"]).await;
    let trying = |record: &MachineRecord| {
        let operation = record.machine.operation.as_ref();
        operation.is_some_and(|operation| operation.attempt == 2 && operation.retry_at.is_some())
    };
    let trying = fixture.until_that(&machine, trying).await.machine.operation.unwrap();
    assert!(trying.last_error.unwrap().contains("told to fail"));
    assert!(trying.retry_at.unwrap() > trying.started_at && trying.deadline > trying.started_at);
    let failed = fixture.until(&machine, MachineState::Failed).await;
    let events = format!("{:?}", failed.machine.events);
    assert!(events.contains("told to fail"), "{events}");
    fixture.assert_nothing_runs().await;

    fixture.host.set_faults(Faults::default());
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
}

#[tokio::test]
async fn a_program_that_can_not_be_started_is_no_endless_attempt() {
    let fixture = Fixture::new().await;
    let machine = fixture.create(&["fail-to-prepare"]).await;
    let failed = fixture.until(&machine, MachineState::Failed).await;
    assert!(format!("{:?}", failed.machine.events).contains("told to fail"));
    assert_eq!(fixture.host.launches(), 1);
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_vm_that_dies_is_an_exit_with_its_cause() {
    let fixture = Fixture::new().await;
    for (exit, cause) in [
        (VmExit::HostOom, "host_oom"),
        (VmExit::Crashed { message: "Kernel panic".to_owned() }, "vmm_crashed"),
        (VmExit::Ended, "powered_off"),
    ] {
        let machine = fixture.started().await;
        fixture.host.crash(machine.as_str(), exit);
        fixture.until(&machine, MachineState::Stopped).await;
        let exit = fixture.exits(&machine).await[0].exit_event.clone();
        assert_eq!((exit.cause.as_deref(), exit.requested_stop), (Some(cause), false));
    }
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_guest_on_a_bad_line_is_started_and_stopped_all_the_same() {
    let fixture = Fixture::new().await;
    let guest = Behaviour {
        frames_per_connection: Some(4),
        garbage: b"CDS1 noise".to_vec(),
        ..Behaviour::default()
    };
    fixture.host.set_faults(Faults { guest, ..Faults::default() });
    let machine = fixture.started().await;
    fixture.act(&machine, Action::Stop { signal: None, timeout: None }).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_start_that_is_not_done_in_time_fails_and_names_its_step() {
    for (guest, step) in [
        (Behaviour { silent: true, ..Behaviour::default() }, "boot"),
        (Behaviour { hang_after_configure: true, ..Behaviour::default() }, "configure"),
    ] {
        let mut fixture = Fixture::new().await;
        fixture.host.set_faults(Faults { guest, ..Faults::default() });
        let machine = fixture.create(&["sleep", "inf"]).await;
        fixture
            .until_that(&machine, |record| {
                record.machine.operation.as_ref().is_some_and(|now| now.step == step)
            })
            .await;
        fixture.kill().await;
        fixture.let_deadlines_pass();
        fixture.start().await;
        let failed = fixture.until(&machine, MachineState::Failed).await;
        let events = format!("{:?}", failed.machine.events);
        assert!(
            events.contains(&format!("start timed out at step {step}: the guest's init")),
            "{events}"
        );
        fixture.assert_nothing_runs().await;
        fixture.host.set_faults(Faults::default());
        fixture.act(&machine, Action::Start).await.unwrap();
        fixture.until(&machine, MachineState::Started).await;
    }
}

#[tokio::test]
async fn a_machine_whose_guest_hangs_can_be_destroyed() {
    let fixture = Fixture::new().await;
    for guest in [
        Behaviour { silent: true, ..Behaviour::default() },
        Behaviour { hang_after_configure: true, ..Behaviour::default() },
        Behaviour { boot_delay: Duration::from_secs(3600), ..Behaviour::default() },
    ] {
        fixture.host.set_faults(Faults { guest, ..Faults::default() });
        let machine = fixture.create(&["sleep", "inf"]).await;
        fixture
            .until_that(&machine, |record| {
                let operation = record.machine.operation.as_ref();
                operation.is_some_and(|operation| {
                    ["boot", "configure"].contains(&operation.step.as_str())
                })
            })
            .await;
        fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
        fixture.until(&machine, MachineState::Destroyed).await;
    }
    fixture.assert_nothing_runs().await;
}
