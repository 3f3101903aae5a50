//! Several wishes one after the other, while something is under way: what was asked for last
//! counts, and nothing undoes a destroy.

use std::time::Duration;

use caddis_api::{ErrorCode, MachineState};
use caddis_bus::message::Action;
use caddis_vmm::fake::Faults;
use serde_json::json;

use crate::support::Fixture;

const STOP: Action = Action::Stop { signal: None, timeout: None };
const DESTROY: Action = Action::Destroy { force: false };

#[tokio::test]
async fn a_start_after_a_suspend_that_waits_for_the_first_start_leaves_it_running() {
    let fixture = Fixture::new().await;
    let machine = fixture.create_resting(json!({})).await;
    fixture
        .host
        .set_faults(Faults { launch_delay: Duration::from_millis(200), ..Faults::default() });
    for action in [Action::Start, Action::Suspend, Action::Start] {
        fixture.act(&machine, action).await.unwrap();
    }
    let started = fixture.until(&machine, MachineState::Started).await;
    let events = started.machine.events.unwrap();
    assert!(events.iter().all(|event| event.kind != "suspend"), "{events:?}");
}

#[tokio::test]
async fn a_suspend_waits_for_a_start_that_waits_itself() {
    let fixture = Fixture::new().await;
    // While it is made.
    let machine = fixture.try_create(&["sleep", "inf"], json!({})).await.unwrap();
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    // While it is stopped, to be started afterwards.
    fixture
        .host
        .set_faults(Faults { death_delay: Duration::from_millis(200), ..Faults::default() });
    for action in [STOP, Action::Start, Action::Suspend] {
        fixture.act(&machine, action).await.unwrap();
    }
    fixture.until(&machine, MachineState::Suspended).await;
    // What is asked for last counts.
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    for action in [STOP, Action::Start, Action::Suspend, STOP] {
        fixture.act(&machine, action).await.unwrap();
    }
    let stopped = fixture.until(&machine, MachineState::Stopped).await;
    assert_eq!(stopped.machine.operation, None);
    // Where nothing is to be started there is nothing to save.
    let resting = fixture.create_resting(json!({})).await;
    assert_eq!(
        fixture.act(&resting, Action::Suspend).await.unwrap_err().code,
        ErrorCode::FailedPrecondition
    );
}

#[tokio::test]
async fn a_destroy_that_waits_for_a_stop_is_not_undone() {
    let fixture = Fixture::new().await;
    let slow = json!({ "stop_config": { "signal": "SIGTERM", "timeout": "60s" } });
    let machine = fixture.try_create(&["ignore-signals"], slow).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.act(&machine, DESTROY).await.unwrap();
    for action in [
        Action::Start,
        Action::Suspend,
        Action::Restart { signal: None, timeout: None, force: false },
    ] {
        assert_eq!(
            fixture.act(&machine, action).await.unwrap_err().code,
            ErrorCode::FailedPrecondition
        );
    }
    // A second stop still shortens the first.
    let now = Action::Stop {
        signal: None,
        timeout: Some(caddis_api::ApiDuration(Duration::from_millis(1))),
    };
    fixture.act(&machine, now).await.unwrap();
    fixture.until(&machine, MachineState::Destroyed).await;
    fixture.assert_nothing_runs().await;
}

#[tokio::test]
async fn a_destroy_that_waits_for_a_suspend_comes_also_when_that_fails() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let saving =
        Faults { save_delay: Duration::from_millis(200), failing_saves: 1, ..Faults::default() };
    fixture.host.set_faults(saving);
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.act(&machine, DESTROY).await.unwrap();
    fixture.until(&machine, MachineState::Destroyed).await;
    fixture.assert_nothing_runs().await;
}
