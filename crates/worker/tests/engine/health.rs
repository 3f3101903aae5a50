//! Health checks: when they are tried, what is published of them, and what follows.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use std::time::Duration;

use caddis_api::{
    MachineId, MachineState,
    machine::{CheckState, CheckStatus},
};
use caddis_bus::message::{Action, MachineRecord, UpdateMachine, WorkerRequest};
use caddis_vmm::{Pause, fake::Faults};
use caddis_worker::fake::Answer;
use serde_json::{Value, json};

use crate::support::{Fixture, config};

const STOP: Action = Action::Stop { signal: None, timeout: None };
/// The check of the service of [`serving`].
const WEB: &str = "servicecheck-00-http-8080";
/// Longer than any test takes: what is due then comes only when the clock is moved.
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

fn fails(why: &str) -> Answer {
    Answer::Fails(why.to_owned())
}

/// A configuration with a service that has an HTTP check, with more of it.
fn serving(more: Value) -> Value {
    let mut check = json!({ "type": "http", "interval": "1h", "grace_period": "1h" });
    check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({
        "restart": { "policy": "on-failure", "max_retries": 2 },
        "services": [{ "internal_port": 8080, "checks": [check] }],
    })
}

fn check<'a>(record: &'a MachineRecord, name: &str) -> &'a CheckStatus {
    record.machine.checks.as_ref().unwrap().iter().find(|check| check.name == name).unwrap()
}

impl Fixture {
    async fn until_check(&self, machine: &MachineId, name: &str, state: CheckState) -> CheckStatus {
        let is = |record: &MachineRecord| {
            let checks = record.machine.checks.iter().flatten();
            checks.into_iter().any(|check| check.name == name && check.status == state)
        };
        check(&self.until_named(machine, name, is).await, name).clone()
    }

    /// A machine of this configuration that is started.
    async fn serving(&self, config: Value) -> MachineId {
        let machine = self.try_create(&["sleep", "inf"], config).await.unwrap();
        self.until(&machine, MachineState::Started).await;
        machine
    }

    /// One whose check has passed, with the number of attempts that took.
    async fn healthy(&self, more: Value) -> (MachineId, u64) {
        let mut config = serving(json!({ "grace_period": "0s" }));
        let check = &mut config["services"][0]["checks"][0];
        check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let machine = self.serving(config).await;
        self.until_check(&machine, WEB, CheckState::Passing).await;
        (machine, self.prober.attempts(WEB))
    }
}

#[tokio::test]
async fn a_check_is_tried_after_its_grace_period_and_lets_traffic_come_once_it_passes() {
    let fixture = Fixture::new().await;
    let machine = fixture.serving(serving(json!({}))).await;
    let record = fixture.record(&machine).unwrap();
    let before = check(&record, WEB).clone();
    assert_eq!((before.status, &*before.output), (CheckState::Warning, "not tried yet"));
    assert_eq!((before.service, record.machine.is_ready(0)), (Some(0), false));
    assert_eq!(fixture.prober.attempts(WEB), 0);

    fixture.clock.advance(HOUR);
    let passing = fixture.until_check(&machine, WEB, CheckState::Passing).await;
    let address = fixture.record(&machine).unwrap().machine.private_ipv4.unwrap();
    assert_eq!(passing.output, format!("HTTP GET http://{address}:8080/: Success"));
    assert!(passing.updated_at > before.updated_at);
    assert!(fixture.record(&machine).unwrap().machine.is_ready(0));
}

#[tokio::test]
async fn until_the_first_pass_attempts_follow_quickly_and_only_changes_are_published() {
    let fixture = Fixture::new().await;
    fixture.prober.set(WEB, fails("connection refused"));
    let machine = fixture.serving(serving(json!({ "grace_period": "0s" }))).await;
    let critical = fixture.until_check(&machine, WEB, CheckState::Critical).await;
    assert!(critical.output.ends_with("connection refused"), "{critical:?}");
    let published = fixture.record(&machine).unwrap().revision;
    // The interval is an hour.
    fixture.prober.until_tried(WEB, 4).await;
    assert_eq!(fixture.record(&machine).unwrap().revision, published, "nothing has changed");

    fixture.prober.set(WEB, fails("500"));
    // Not at once: see below.
    fixture.clock.advance(MINUTE);
    let told = |record: &MachineRecord| check(record, WEB).output.ends_with("500");
    let record = fixture.until_that(&machine, told).await;
    assert_eq!(check(&record, WEB).updated_at, critical.updated_at, "its state is the same");

    fixture.prober.set(WEB, Answer::Passes);
    fixture.until_check(&machine, WEB, CheckState::Passing).await;
}

#[tokio::test]
async fn a_check_that_fails_otherwise_each_time_is_not_recorded_each_time() {
    let fixture = Fixture::new().await;
    fixture.prober.set(WEB, fails("first"));
    let machine = fixture.serving(serving(json!({ "grace_period": "0s" }))).await;
    fixture.until_check(&machine, WEB, CheckState::Critical).await;
    let (revision, began) = (fixture.record(&machine).unwrap().revision, fixture.clock.unix_now());
    for attempt in fixture.prober.attempts(WEB)..fixture.prober.attempts(WEB) + 8 {
        fixture.prober.set(WEB, fails(&format!("after {attempt}")));
        fixture.prober.until_tried(WEB, attempt + 1).await;
    }
    let seconds = fixture.clock.unix_now().since(began).as_secs();
    let changes = fixture.record(&machine).unwrap().revision - revision;
    assert!(changes <= seconds / 10 + 1, "{changes} in {seconds} s");
    // A pass lets traffic come: that is told at once.
    fixture.prober.set(WEB, Answer::Passes);
    fixture.until_check(&machine, WEB, CheckState::Passing).await;
}

#[tokio::test]
async fn checks_that_nobody_answers_do_not_keep_others_from_being_tried() {
    let fixture = Fixture::new().await;
    // More than are tried at once.
    for number in 0..5 {
        let check = |at: u32| {
            let name = format!("silent-{number}-{at}");
            fixture.prober.set(&name, Answer::Hangs);
            let check = json!({
                "type": "tcp", "port": 1, "interval": "1h", "timeout": "1h", "grace_period": "0s",
            });
            (name, check)
        };
        let checks: serde_json::Map<_, _> = (0..64).map(check).collect();
        fixture.serving(json!({ "checks": checks })).await;
    }
    let machine = fixture.serving(serving(json!({ "grace_period": "0s" }))).await;
    let began = fixture.clock.now();
    fixture.until_check(&machine, WEB, CheckState::Passing).await;
    assert!(fixture.clock.now() < began + HOUR / 2, "none of them has timed out");
}

#[tokio::test]
async fn traffic_stops_with_a_failure_and_comes_back_with_a_pass() {
    let fixture = Fixture::new().await;
    let (machine, attempts) = fixture.healthy(json!({})).await;
    fixture.prober.set(WEB, fails("500"));
    fixture.clock.advance(HOUR);
    fixture.until_check(&machine, WEB, CheckState::Critical).await;
    assert!(!fixture.record(&machine).unwrap().machine.is_ready(0));
    fixture.prober.set(WEB, Answer::Passes);
    fixture.clock.advance(HOUR);
    fixture.until_check(&machine, WEB, CheckState::Passing).await;
    assert!(fixture.record(&machine).unwrap().machine.is_ready(0));
    assert_eq!(fixture.prober.attempts(WEB), attempts + 2, "one per interval");
    assert_eq!(fixture.record(&machine).unwrap().machine.state, MachineState::Started);
    assert_eq!(fixture.host.launches(), 1, "a check alone restarts nothing");
}

#[tokio::test]
async fn a_check_without_an_answer_fails_when_its_time_is_over() {
    let fixture = Fixture::new().await;
    fixture.prober.set(WEB, Answer::Hangs);
    let machine = fixture.serving(serving(json!({ "grace_period": "0s", "timeout": "30m" }))).await;
    fixture.prober.until_tried(WEB, 1).await;
    fixture.clock.advance(HOUR / 2);
    let failed = fixture.until_check(&machine, WEB, CheckState::Critical).await;
    assert!(failed.output.ends_with("timed out after 30m0s"), "{failed:?}");
}

#[tokio::test]
async fn readiness_checks_gate_all_services_and_others_none() {
    let fixture = Fixture::new().await;
    fixture.prober.set("shown", fails("no"));
    fixture.prober.set("ready", fails("no"));
    let check = |kind: &str| {
        json!({
            "type": "tcp", "port": 9000, "kind": kind, "interval": "1h", "grace_period": "0s",
        })
    };
    let machine = fixture
        .serving(json!({
            "services": [{ "internal_port": 8080 }],
            "checks": { "ready": check("readiness"), "shown": check("informational") },
        }))
        .await;
    fixture.until_check(&machine, "shown", CheckState::Critical).await;
    fixture.until_check(&machine, "ready", CheckState::Critical).await;
    assert!(!fixture.record(&machine).unwrap().machine.is_ready(0));
    fixture.prober.set("ready", Answer::Passes);
    fixture.until_check(&machine, "ready", CheckState::Passing).await;
    let record = fixture.record(&machine).unwrap().machine;
    assert!(record.is_ready(0), "{:?}", record.checks);
}

#[tokio::test]
async fn a_machine_that_does_not_run_keeps_its_results_and_is_neither_checked_nor_started() {
    let fixture = Fixture::new().await;
    let (machine, attempts) = fixture.healthy(json!({})).await;
    fixture.act(&machine, STOP).await.unwrap();
    let stopped = fixture.until(&machine, MachineState::Stopped).await;
    assert_eq!(check(&stopped, WEB).status, CheckState::Passing);
    assert!(!stopped.machine.is_ready(0));
    fixture.clock.advance(HOUR);
    fixture.clock.advance(HOUR);
    // Another machine is checked meanwhile.
    fixture.serving(serving(json!({ "type": "tcp", "grace_period": "0s" }))).await;
    fixture.prober.until_tried("servicecheck-00-tcp-8080", 1).await;
    assert_eq!(fixture.prober.attempts(WEB), attempts);

    fixture.act(&machine, Action::Start).await.unwrap();
    let started = fixture.until(&machine, MachineState::Started).await;
    // Results of an earlier boot say nothing of this one.
    assert!(started.machine.checks.as_ref().is_some_and(|checks| checks.len() == 1));
    fixture.until_check(&machine, WEB, CheckState::Passing).await;
    assert!(fixture.prober.attempts(WEB) > attempts);
}

#[tokio::test]
async fn a_started_machine_never_shows_the_results_of_an_earlier_boot() {
    let fixture = Fixture::new().await;
    let machine = fixture.serving(serving(json!({}))).await;
    fixture.clock.advance(HOUR);
    fixture.until_check(&machine, WEB, CheckState::Passing).await;
    let restart = Action::Restart { signal: None, timeout: None, force: true };
    fixture.act(&machine, restart).await.unwrap();
    let is_back = |record: &MachineRecord| {
        assert!(
            !record.machine.is_ready(0)
                || record.machine.events.iter().flatten().all(|event| { event.kind != "restart" }),
            "{record:?}"
        );
        record.machine.state == MachineState::Started && record.machine.operation.is_none()
    };
    let record = fixture.until_that(&machine, is_back).await;
    assert_eq!(check(&record, WEB).status, CheckState::Warning);
}

#[tokio::test]
async fn after_a_resume_checks_begin_again_at_once() {
    let fixture = Fixture::new().await;
    let (machine, attempts) = fixture.healthy(json!({})).await;
    fixture.act(&machine, Action::Suspend).await.unwrap();
    let suspended = fixture.until(&machine, MachineState::Suspended).await;
    assert_eq!(check(&suspended, WEB).status, CheckState::Passing);
    assert!(!suspended.machine.is_ready(0));
    fixture.prober.set(WEB, fails("it forgot"));
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    // Neither grace nor interval is waited for.
    fixture.until_check(&machine, WEB, CheckState::Critical).await;
    assert!(fixture.prober.attempts(WEB) > attempts);
}

#[tokio::test]
async fn a_new_server_keeps_the_results_and_goes_on() {
    let mut fixture = Fixture::new().await;
    let (machine, attempts) = fixture.healthy(json!({})).await;
    let before = check(&fixture.record(&machine).unwrap(), WEB).clone();
    for kill in [false, true] {
        if kill {
            fixture.kill().await
        } else {
            fixture.end().await
        }
        fixture.start().await;
        let record = fixture.until(&machine, MachineState::Started).await;
        assert_eq!(*check(&record, WEB), before);
        assert!(record.machine.is_ready(0), "traffic goes on");
    }
    fixture.prober.until_tried(WEB, attempts + 1).await;
    fixture.prober.set(WEB, fails("500"));
    fixture.clock.advance(HOUR);
    fixture.until_check(&machine, WEB, CheckState::Critical).await;
}

#[tokio::test]
async fn a_new_configuration_brings_its_own_checks() {
    let fixture = Fixture::new().await;
    let (machine, attempts) = fixture.healthy(json!({})).await;
    let update = UpdateMachine {
        config: config(json!({
            "checks": {
                "db": { "type": "tcp", "port": 5432, "grace_period": "0s", "interval": "1h" },
            },
        })),
        expected: None,
        version: None,
        skip_launch: false,
        cordoned: false,
        lease: None,
    };
    let request =
        WorkerRequest::Update { machine: machine.clone(), nonce: None, update: Box::new(update) };
    fixture.ask(request).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    fixture.until_check(&machine, "db", CheckState::Passing).await;
    let checks = fixture.record(&machine).unwrap().machine.checks.unwrap();
    assert_eq!(checks.len(), 1, "{checks:?}");
    assert_eq!(fixture.prober.attempts(WEB), attempts, "the old ones are gone");
}

#[tokio::test]
async fn a_machine_that_stands_still_is_not_checked() {
    let fixture = Fixture::new().await;
    let (machine, attempts) = fixture.healthy(json!({ "liveness": { "failures": 1 } })).await;
    fixture.prober.set(WEB, fails("it stands still"));
    fixture.host.set_faults(Faults { disk_stays_full: true, ..Faults::default() });
    fixture.host.pause(machine.as_str(), Some(Pause::DiskFull));
    fixture.until_that(&machine, |record| record.machine.host_status == "unknown").await;
    fixture.clock.advance(HOUR);
    let paused = fixture.record(&machine).unwrap();
    assert_eq!(
        (paused.machine.state, fixture.prober.attempts(WEB)),
        (MachineState::Started, attempts)
    );
}

#[tokio::test]
async fn liveness_restarts_a_machine_after_failures_in_a_row_and_says_why() {
    let fixture = Fixture::new().await;
    let (machine, mut attempts) = fixture.healthy(json!({ "liveness": { "failures": 2 } })).await;
    let boots = fixture.host.launches();
    for answer in [fails("hangs"), Answer::Passes, fails("hangs")] {
        fixture.prober.set(WEB, answer);
        fixture.clock.advance(HOUR);
        attempts += 1;
        fixture.prober.until_tried(WEB, attempts).await;
    }
    let state = fixture.record(&machine).unwrap().machine.state;
    assert_eq!((state, fixture.host.launches()), (MachineState::Started, boots));
    fixture.clock.advance(HOUR);
    let why = format!("health check {WEB} failed 2 times in a row, restarting: ");
    let restarted = |record: &MachineRecord| {
        let events = record.machine.events.iter().flatten();
        let mut restarts = events.filter(|event| event.kind == "restart");
        record.machine.operation.is_none() && restarts.any(|event| event.status == "started")
    };
    fixture.until_that(&machine, restarted).await;
    assert_eq!(fixture.host.launches(), boots + 1);
    let events = fixture.events(&machine).await;
    let restarts: Vec<_> = events.iter().filter(|event| event.kind == "restart").collect();
    assert_eq!(restarts.len(), 2, "{restarts:?}");
    assert!(restarts.iter().all(|event| event.source == "flyd"), "{restarts:?}");
    let told = restarts[1].details.as_ref().unwrap()["message"].as_str().unwrap();
    assert!(told.starts_with(&why) && told.ends_with("hangs"), "{told}");
    fixture.assert_log_tells_all(&machine, "restart").await;
}

#[tokio::test]
async fn liveness_restarts_no_more_often_than_the_restart_policy_lets_it() {
    let fixture = Fixture::new().await;
    let minute = Duration::from_secs(60);
    let once = json!({ "policy": "on-failure", "max_retries": 1 });
    for (policy, restarts) in [(json!({ "policy": "no" }), 0), (once, 1)] {
        fixture.prober.set(WEB, Answer::Passes);
        let mut config = serving(json!({
            "interval": "1m", "grace_period": "0s", "liveness": { "failures": 1 },
        }));
        config["restart"] = policy;
        let machine = fixture.serving(config).await;
        fixture.until_check(&machine, WEB, CheckState::Passing).await;
        for _ in 0..restarts {
            let boots = fixture.host.launches();
            fixture.prober.set(WEB, fails("hangs"));
            fixture.clock.advance(minute);
            fixture.until_check(&machine, WEB, CheckState::Critical).await;
            let restarted = |record: &MachineRecord| {
                record.machine.state == MachineState::Started
                    && check(record, WEB).status != CheckState::Passing
                    && record.machine.events.iter().flatten().any(|event| event.kind == "restart")
            };
            fixture.until_that(&machine, restarted).await;
            fixture.prober.set(WEB, Answer::Passes);
            fixture.until_check(&machine, WEB, CheckState::Passing).await;
            assert_eq!(fixture.host.launches(), boots + 1);
        }
        let boots = fixture.host.launches();
        fixture.prober.set(WEB, fails("hangs"));
        let attempts = fixture.prober.attempts(WEB);
        fixture.clock.advance(minute);
        fixture.until_check(&machine, WEB, CheckState::Critical).await;
        fixture.prober.until_tried(WEB, attempts + 1).await;
        // Heeded after what follows from the failure.
        fixture.act(&machine, Action::Cordon { cordoned: true }).await.unwrap();
        let record = fixture.until(&machine, MachineState::Started).await;
        assert_eq!(
            (fixture.host.launches(), check(&record, WEB).status),
            (boots, CheckState::Critical)
        );
        fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
        fixture.until(&machine, MachineState::Destroyed).await;
    }
}
