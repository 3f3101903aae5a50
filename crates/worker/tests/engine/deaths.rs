//! The process is killed, or the host rebooted, at any instant while many machines are busy: what
//! was answered holds.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use std::{sync::Mutex, time::Duration};

use caddis_api::{ErrorCode, MachineId, MachineState};
use caddis_vmm::fake::Faults;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{races::Request, support::Fixture};

const MACHINES: usize = 6;

/// One machine and what its user may rely on.
struct Life {
    machine: MachineId,
    /// Where the last request that was accepted leads.
    goal: MachineState,
    /// One that was not answered.
    asked: Option<Request>,
}

/// Where a request leads from where another has led.
fn goal(request: Request, before: MachineState) -> MachineState {
    match request {
        // Nothing undoes a destroy; a stop has nothing to do then.
        _ if before == MachineState::Destroyed => before,
        Request::Start | Request::Restart | Request::Wake => MachineState::Started,
        Request::Stop => MachineState::Stopped,
        Request::Suspend => MachineState::Suspended,
        Request::Update if before == MachineState::Started => before,
        Request::Update => MachineState::Stopped,
        Request::Destroy { .. } => MachineState::Destroyed,
    }
}

impl Life {
    fn allows(&self, state: MachineState, rebooted: bool) -> bool {
        let goals = [Some(self.goal), self.asked.map(|request| goal(request, self.goal))];
        goals.into_iter().flatten().any(|goal| {
            let never_booted = goal == MachineState::Stopped && state == MachineState::Created;
            // What was not saved yet runs again.
            let unsaved =
                rebooted && goal == MachineState::Suspended && state == MachineState::Started;
            state == goal || never_booted || unsaved
        })
    }
}

/// One request after the other, until it is destroyed.
async fn live(fixture: &Fixture, life: &Mutex<Life>, mut random: StdRng) {
    loop {
        // Machines are not used up at once.
        let request = *Request::ALL[..if random.random_bool(0.05) { 7 } else { 5 }]
            .choose(&mut random)
            .unwrap();
        let machine = {
            let mut life = life.lock().unwrap();
            life.asked = Some(request);
            life.machine.clone()
        };
        let answer = request.send(fixture, &machine).await;
        let mut life = life.lock().unwrap();
        life.asked = None;
        match answer {
            Ok(_) => life.goal = goal(request, life.goal),
            Err(e) => {
                let code = e.code;
                let known =
                    [ErrorCode::FailedPrecondition, ErrorCode::Aborted, ErrorCode::NotFound]
                        .contains(&code);
                assert!(known, "{request:?}: {e:?}");
                if code == ErrorCode::NotFound {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_holds_whenever_the_process_dies() {
    let soaks = std::env::var_os("CADDIS_SOAK").is_some();
    let usual = || if soaks { rand::random() } else { 1 };
    let seed = std::env::var("CADDIS_SEED").map_or_else(|_| usual(), |seed| seed.parse().unwrap());
    println!("CADDIS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut fixture = Fixture::new().await;
    let mut lives = Vec::new();
    for round in 0..if soaks { 1000 } else { 80 } {
        while lives.len() < MACHINES {
            let machine = fixture.started().await;
            lives.push(Mutex::new(Life { machine, goal: MachineState::Started, asked: None }));
        }
        fixture.host.set_faults(Faults {
            launch_delay: Duration::from_millis(random.random_range(0..10)),
            save_delay: Duration::from_millis(random.random_range(0..10)),
            death_delay: Duration::from_millis(random.random_range(0..10)),
            pool: random.random_bool(0.5),
            ..Faults::default()
        });
        let clients =
            lives.iter().map(|life| live(&fixture, life, StdRng::seed_from_u64(random.random())));
        let clients = futures::future::join_all(clients.collect::<Vec<_>>());
        tokio::select! {
            _ = clients => {}
            // Any instant will do.
            () = tokio::time::sleep(Duration::from_millis(random.random_range(1..80))) => {}
        }
        fixture.kill().await;
        let rebooted = random.random_bool(0.2);
        if rebooted {
            fixture.host.power_cycle();
            fixture.boot_id = format!("{round}");
        }
        fixture.start().await;
        let mut rest = Vec::new();
        for life in lives {
            let life = life.into_inner().unwrap();
            let name =
                format!("CADDIS_SEED={seed}, round {round}, {:?} and {:?}", life.goal, life.asked);
            let is_settled = |state, operation| operation && life.allows(state, rebooted);
            let record = fixture
                .until_named(&life.machine, &name, |r| {
                    is_settled(r.machine.state, r.machine.operation.is_none())
                })
                .await;
            rest.push(Life { goal: record.machine.state, asked: None, machine: life.machine });
        }
        let machines: Vec<_> = rest.iter().map(|life| life.machine.clone()).collect();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while !fixture.holds_what_runs(&machines) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "CADDIS_SEED={seed}, round {round}: something is left"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(
            fixture.host.collisions(),
            0,
            "CADDIS_SEED={seed}: a second VM was to be launched"
        );
        for machine in &machines {
            fixture
                .assert_log_tells_all(machine, &format!("CADDIS_SEED={seed}, round {round}"))
                .await;
        }
        rest.retain(|life| life.goal != MachineState::Destroyed);
        lives = rest.into_iter().map(Mutex::new).collect();
    }
}
