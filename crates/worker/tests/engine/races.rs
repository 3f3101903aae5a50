//! Every request at every step of every operation: what was accepted comes true, what was refused
//! changes nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use caddis_api::{ApiError, ErrorCode, MachineId, MachineState};
use caddis_bus::message::{Action, WhyNotWoken, WorkerReply, WorkerRequest};
use caddis_vmm::fake::Faults;
use futures::{StreamExt as _, stream};

use crate::{
    sabotage::{Fault, Place},
    steps::{AT_ONCE, Scenario, act, everything, newest, settled_since, try_update, without_fault},
    support::Fixture,
};

/// What is asked for meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Start,
    Stop,
    Restart,
    Suspend,
    Update,
    Destroy { force: bool },
    Wake,
}

impl Request {
    pub const ALL: [Self; 7] = [
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Suspend,
        Self::Update,
        Self::Destroy { force: false },
        Self::Destroy { force: true },
    ];

    pub async fn send(
        self,
        fixture: &Fixture,
        machine: &MachineId,
    ) -> Result<WorkerReply, ApiError> {
        let action = match self {
            Self::Start => Action::Start,
            Self::Stop => Action::Stop { signal: None, timeout: None },
            Self::Restart => Action::Restart { signal: None, timeout: None, force: false },
            Self::Suspend => Action::Suspend,
            Self::Update => return try_update(fixture, machine).await,
            Self::Destroy { force } => Action::Destroy { force },
            Self::Wake => return wake(fixture, machine).await,
        };
        fixture.act(machine, action).await
    }

    /// Whether a machine that was on its way to `goal` may rest in `state` after this was accepted.
    fn allows(self, goal: MachineState, state: MachineState) -> bool {
        use MachineState::{Created, Destroyed, Failed, Started, Stopped, Suspended};
        match self {
            // It can't be started.
            _ if goal == Failed && state == Failed => true,
            Self::Start | Self::Restart | Self::Wake => state == Started,
            // A machine that goes away with its program does so.
            Self::Stop => {
                matches!(state, Stopped | Created) || (goal == Destroyed && state == Destroyed)
            }
            Self::Suspend => state == Suspended,
            Self::Update if goal == Started => state == Started,
            Self::Update => matches!(state, Stopped | Created),
            Self::Destroy { .. } => state == Destroyed,
        }
    }
}

/// Traffic. What is accepted is not waited for.
async fn wake(fixture: &Fixture, machine: &MachineId) -> Result<WorkerReply, ApiError> {
    let wake = WorkerRequest::Wake { machine: machine.clone(), deadline_ms: 0 };
    match fixture.ask(wake).await? {
        WorkerReply::NotWoken { why: WhyNotWoken::State, message, .. } => {
            Err(ApiError::precondition(message))
        }
        reply => Ok(reply),
    }
}

/// What can't be done is in the way of what is asked for.
const IN_VAIN: [&str; 2] = ["suspend that can't be", "resume that can't be"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_accepted_at_any_step_comes_true() {
    let scenarios = everything();
    let mut cases = Vec::new();
    for scenario in &scenarios {
        let seen = without_fault(scenario).await;
        let places = seen.into_iter().filter(|(_, done)| !done).map(|(place, _)| place);
        cases.extend(places.flat_map(|place| {
            Request::ALL
                .into_iter()
                .chain([Request::Wake])
                .map(|request| (scenario, place.clone(), request))
                .collect::<Vec<_>>()
        }));
    }
    let cases =
        stream::iter(cases).map(|(scenario, place, request)| case(scenario, place, request));
    cases.buffer_unordered(AT_ONCE).collect::<()>().await;
}

async fn case(scenario: &Scenario, place: Place, request: Request) {
    let name = format!("{}, {request:?} at {}/{}", scenario.name, place.0, place.1);
    let fixture = Fixture::new().await;
    let machine = (scenario.prepare)(&fixture).await;
    let before = newest(&fixture, &machine);
    fixture.injector.arm(Fault::Waits, place);
    (scenario.act)(&fixture, &machine).await;
    fixture.injector.waiting().await;
    let answer = request.send(&fixture, &machine).await;
    fixture.injector.release();
    if let Err(error) = &answer {
        assert!(
            matches!(error.code, ErrorCode::FailedPrecondition | ErrorCode::Aborted),
            "{name}: {error:?}"
        );
    }
    let allowed = |state: MachineState| match answer {
        _ if IN_VAIN.contains(&scenario.name) => state.is_settled(),
        Ok(_) => request.allows(scenario.goal, state),
        Err(_) => state == scenario.goal,
    };
    fixture
        .until_named(&machine, &name, |r| settled_since(r, &before) && allowed(r.machine.state))
        .await;
    fixture.host.set_faults(Faults::default());
    fixture.assert_all_fits(&machine, &name).await;
    act(&fixture, &machine, Action::Destroy { force: true }).await;
    fixture.until(&machine, MachineState::Destroyed).await;
    fixture.assert_all_fits(&machine, &name).await;
}
