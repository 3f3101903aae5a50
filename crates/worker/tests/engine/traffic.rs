//! Machines that traffic wakes and that are put to sleep when idle, and what keeps them awake.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{convert::Infallible, time::Duration};

use axum::{body::Body, http::Request};
use bytes::Bytes;
use caddis_api::{ErrorCode, Machine, MachineId, MachineState, UnixMillis, logs::LogsReply};
use caddis_bus::message::{
    Action, HostLine, SleepMode, WhyAwake, WhyNotWoken, WorkerReply, WorkerRequest,
};
use caddis_vmm::{Pause, fake::Faults};
use futures::stream;
use serde_json::{Value, json};

use crate::{sabotage::Fault, support::Fixture};

const STOP: Action = Action::Stop { signal: None, timeout: None };
const RELEASE: Action = Action::ReleaseHold;
const MINUTE: Duration = Duration::from_secs(60);

fn hold(seconds: u64) -> Action {
    Action::Hold { ttl_seconds: seconds, reason: Some("a test".to_owned()) }
}

fn wake_of(machine: &MachineId, deadline: Duration) -> WorkerRequest {
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap();
    WorkerRequest::Wake { machine: machine.clone(), deadline_ms }
}

/// Where it was, and since when it runs.
async fn woken(fixture: &Fixture, machine: &MachineId) -> (MachineState, UnixMillis) {
    match fixture.ask(wake_of(machine, MINUTE)).await.unwrap() {
        WorkerReply::Woken { previous_state, since, record } => {
            assert_eq!(record.machine.state, MachineState::Started);
            (previous_state, since)
        }
        other => panic!("{other:?}"),
    }
}

async fn not_woken(fixture: &Fixture, machine: &MachineId) -> (WhyNotWoken, String) {
    match fixture.ask(wake_of(machine, MINUTE)).await.unwrap() {
        WorkerReply::NotWoken { why, message, .. } => (why, message),
        other => panic!("{other:?}"),
    }
}

/// Puts it to sleep, or tells why not; that is what it tells before, too.
async fn sleep(fixture: &Fixture, machine: &MachineId, mode: SleepMode) -> WorkerReply {
    let asked = WorkerRequest::MaySleep { machine: machine.clone(), mode };
    let told = match fixture.ask(asked).await.unwrap() {
        WorkerReply::NotSleeping { why, .. } => Some(why),
        WorkerReply::MaySleep => None,
        other => panic!("{other:?}"),
    };
    let reason = "no traffic for 5m0s".to_owned();
    let request = WorkerRequest::Sleep { machine: machine.clone(), mode, reason };
    let reply = fixture.ask(request).await.unwrap();
    let why = match &reply {
        WorkerReply::NotSleeping { why, .. } => Some(*why),
        _ => None,
    };
    assert_eq!(told, why);
    reply
}

/// How it is put to sleep.
async fn sleeps(fixture: &Fixture, machine: &MachineId, mode: SleepMode) -> SleepMode {
    match sleep(fixture, machine, mode).await {
        WorkerReply::Sleeping { mode, .. } => mode,
        other => panic!("{other:?}"),
    }
}

async fn stays_awake(
    fixture: &Fixture,
    machine: &MachineId,
) -> (WhyAwake, String, Option<UnixMillis>) {
    match sleep(fixture, machine, SleepMode::Suspend).await {
        WorkerReply::NotSleeping { why, message, until, .. } => (why, message, until),
        other => panic!("{other:?}"),
    }
}

async fn asleep(fixture: &Fixture, mode: SleepMode) -> MachineId {
    let machine = fixture.started().await;
    assert_eq!(sleeps(fixture, &machine, mode).await, mode);
    let state = match mode {
        SleepMode::Stop => MachineState::Stopped,
        SleepMode::Suspend => MachineState::Suspended,
    };
    fixture.until(&machine, state).await;
    machine
}

/// Kind, status and source of the newest events.
async fn told(fixture: &Fixture, machine: &MachineId, count: usize) -> Vec<[String; 3]> {
    let events = fixture.events(machine).await.into_iter().take(count);
    events.map(|event| [event.kind, event.status, event.source]).collect()
}

#[tokio::test]
async fn traffic_wakes_what_is_stopped_and_what_is_suspended_and_its_events_say_so() {
    let fixture = Fixture::new().await;
    for (mode, state, kind) in [
        (SleepMode::Stop, MachineState::Stopped, "template"),
        (SleepMode::Suspend, MachineState::Suspended, "resume"),
    ] {
        let machine = asleep(&fixture, mode).await;
        let before = fixture.clock.unix_now();
        let (previous, since) = woken(&fixture, &machine).await;
        assert!(previous == state && since >= before, "{previous} {since:?}");
        assert_eq!(
            told(&fixture, &machine, 2).await,
            [["start", "started", "proxy"], ["start", "starting", "proxy"]]
        );
        let record = fixture.until(&machine, MachineState::Started).await;
        assert_eq!(record.machine.start_kind.as_deref(), Some(kind));
        let launches = fixture.host.launches();
        assert_eq!(woken(&fixture, &machine).await, (MachineState::Started, since), "it runs");
        assert_eq!(fixture.host.launches(), launches);
    }
}

#[tokio::test]
async fn many_requests_to_a_machine_that_sleeps_are_one_start_and_all_are_answered() {
    let fixture = Fixture::new().await;
    let machine = asleep(&fixture, SleepMode::Stop).await;
    let launches = fixture.host.launches();
    let wakes = (0..200).map(|_| woken(&fixture, &machine));
    let answers = futures::future::join_all(wakes).await;
    let since = answers[0].1;
    assert!(answers.iter().all(|(_, at)| *at == since), "one start: {answers:?}");
    assert_eq!(fixture.host.launches(), launches + 1);
}

#[tokio::test]
async fn a_wake_during_a_stop_waits_for_its_end_and_starts_the_machine() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    fixture.injector.arm(Fault::Waits, ("stop".to_owned(), "signal".to_owned()));
    fixture.act(&machine, STOP).await.unwrap();
    fixture.injector.waiting().await;
    let answer = fixture.ask(wake_of(&machine, Duration::ZERO)).await.unwrap();
    assert!(
        matches!(answer, WorkerReply::NotWoken { why: WhyNotWoken::TimedOut, .. }),
        "it was accepted, and is not over: {answer:?}"
    );
    fixture.injector.release();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(fixture.host.launches(), 2);
    let told = told(&fixture, &machine, 3).await;
    assert_eq!(told[1], ["start", "starting", "proxy"]);
    assert_eq!(told[2][..2], ["exit", "stopped"]);
}

#[tokio::test]
async fn a_wake_calls_off_a_suspend_that_is_under_way() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    fixture.host.set_faults(Faults { save_delay: 10 * MINUTE, ..Faults::default() });
    sleeps(&fixture, &machine, SleepMode::Suspend).await;
    let is_saving =
        |machine: &Machine| machine.operation.as_ref().is_some_and(|o| o.step == "save");
    fixture.until_that(&machine, |record| is_saving(&record.machine)).await;
    assert_eq!(woken(&fixture, &machine).await.0, MachineState::Suspending);
    assert_eq!(fixture.host.launches(), 1, "its VM never ended");
    let event = fixture.events(&machine).await.swap_remove(0);
    assert_eq!((event.kind.as_str(), event.source.as_str()), ("start", "proxy"));
    assert!(event.told()["start_reason"].as_str().unwrap().contains("cancelled"));
}

#[tokio::test]
async fn what_traffic_does_not_start_is_refused_with_its_kind() {
    let fixture = Fixture::new().await;
    let created = fixture.create_resting(json!({})).await;
    let scheduled =
        fixture.try_create(&["exit", "0"], json!({ "schedule": "daily" })).await.unwrap();
    fixture.until(&scheduled, MachineState::Stopped).await;
    let destroyed = fixture.started().await;
    fixture.act(&destroyed, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&destroyed, MachineState::Destroyed).await;
    for (machine, words) in
        [(&created, "'created'"), (&scheduled, "schedule"), (&destroyed, "destroyed")]
    {
        let (why, message) = not_woken(&fixture, machine).await;
        assert!(why == WhyNotWoken::State && message.contains(words), "{why:?} {message}");
    }
    let unknown = fixture.ask(wake_of(&MachineId::random(), MINUTE)).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_start_that_fails_is_told_and_the_failed_machine_is_not_woken_again() {
    let fixture = Fixture::new().await;
    let machine = asleep(&fixture, SleepMode::Stop).await;
    fixture.host.set_faults(Faults { failing_launches: 3, ..Faults::default() });
    let (why, message) = not_woken(&fixture, &machine).await;
    assert!(why == WhyNotWoken::Failed && message.contains("told to fail"), "{why:?} {message}");
    fixture.until(&machine, MachineState::Failed).await;
    assert_eq!(not_woken(&fixture, &machine).await.0, WhyNotWoken::State);
}

#[tokio::test]
async fn a_wake_is_answered_by_its_deadline_and_the_start_goes_on() {
    let fixture = Fixture::new().await;
    let machine = asleep(&fixture, SleepMode::Stop).await;
    fixture.injector.arm(Fault::Waits, ("start".to_owned(), "launch".to_owned()));
    let advance = async {
        fixture.injector.waiting().await;
        fixture.clock.advance(MINUTE);
    };
    let ((why, _), ()) = tokio::join!(not_woken(&fixture, &machine), advance);
    assert_eq!(why, WhyNotWoken::TimedOut);
    fixture.injector.release();
    fixture.until(&machine, MachineState::Started).await;
}

#[tokio::test]
async fn a_host_that_is_drained_wakes_nothing_and_says_so() {
    let fixture = Fixture::new().await;
    let machine = asleep(&fixture, SleepMode::Suspend).await;
    fixture.ask(WorkerRequest::Drain { deadline_ms: 60_000 }).await.unwrap();
    let (why, message) = not_woken(&fixture, &machine).await;
    assert!(why == WhyNotWoken::Capacity && message.contains("drained"), "{why:?} {message}");
}

#[tokio::test]
async fn a_lease_keeps_a_machine_from_being_put_to_sleep_but_not_from_being_woken() {
    let fixture = Fixture::new().await;
    let machine = asleep(&fixture, SleepMode::Stop).await;
    let acquire = Action::AcquireLease {
        ttl_seconds: 60,
        owner: "deploy".to_owned(),
        description: String::new(),
    };
    fixture.act(&machine, acquire).await.unwrap();
    woken(&fixture, &machine).await;
    let (why, message, until) = stays_awake(&fixture, &machine).await;
    assert!(why == WhyAwake::Lease && message.contains("deploy"), "{why:?} {message}");
    assert!(until.unwrap() > fixture.clock.unix_now());
    fixture.clock.advance(2 * MINUTE);
    assert_eq!(sleeps(&fixture, &machine, SleepMode::Stop).await, SleepMode::Stop);
}

#[tokio::test]
async fn a_machine_is_put_to_sleep_as_it_is_stopped_with_the_reason_in_event_and_log() {
    let fixture = Fixture::new().await;
    let stop = json!({ "stop_config": { "signal": "SIGTERM" } });
    let machine = fixture.try_create(&["sleep", "inf"], stop).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(sleeps(&fixture, &machine, SleepMode::Stop).await, SleepMode::Stop);
    fixture.until(&machine, MachineState::Stopped).await;
    let exit = fixture.exits(&machine).await.swap_remove(0).exit_event;
    assert_eq!((exit.guest_signal, exit.requested_stop), (15, true));
    let events = fixture.events(&machine).await;
    let stop = events.iter().find(|event| event.kind == "stop").unwrap();
    assert_eq!((stop.status.as_str(), stop.source.as_str()), ("stopping", "proxy"));
    assert_eq!(stop.told()["reason"], "no traffic for 5m0s");
    let lines = log(&fixture).await;
    assert!(
        lines.iter().any(|line| line["message"] == "Stopping idle machine: no traffic for 5m0s"),
        "{lines:#?}"
    );
}

#[tokio::test]
async fn a_machine_that_can_not_be_suspended_is_stopped() {
    let fixture = Fixture::new().await;
    let swap = json!({ "init": { "exec": ["sleep", "inf"], "swap_size_mb": 64 } });
    let machine = fixture.try_create(&["sleep", "inf"], swap).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(sleeps(&fixture, &machine, SleepMode::Suspend).await, SleepMode::Stop);
    fixture.until(&machine, MachineState::Stopped).await;
    let (why, message, _) = stays_awake(&fixture, &machine).await;
    assert_eq!((why, message.as_str()), (WhyAwake::NotStarted, "it is stopped"));
}

#[tokio::test]
async fn an_idle_machine_that_a_stop_destroys_is_not_stopped_but_may_be_suspended() {
    let fixture = Fixture::new().await;
    let once = json!({ "auto_destroy": true });
    let machine = fixture.try_create(&["sleep", "inf"], once).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    match sleep(&fixture, &machine, SleepMode::Stop).await {
        WorkerReply::NotSleeping { why, message, until, record } => {
            assert_eq!((why, until), (WhyAwake::AutoDestroy, None));
            assert!(message.contains("auto_destroy"), "{message}");
            assert_eq!(record.machine.state, MachineState::Started);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(sleeps(&fixture, &machine, SleepMode::Suspend).await, SleepMode::Suspend);
    fixture.until(&machine, MachineState::Suspended).await;
    assert_eq!(woken(&fixture, &machine).await.0, MachineState::Suspended);
}

#[tokio::test]
async fn nothing_is_put_to_sleep_that_something_else_is_done_to_or_is_not_known() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    fixture.injector.arm(Fault::Waits, ("restart".to_owned(), "launch".to_owned()));
    fixture
        .act(&machine, Action::Restart { signal: None, timeout: None, force: false })
        .await
        .unwrap();
    fixture.injector.waiting().await;
    let (why, message, _) = stays_awake(&fixture, &machine).await;
    assert_eq!((why, message.as_str()), (WhyAwake::Operation, "restart in progress"));
    fixture.injector.release();
    fixture.until(&machine, MachineState::Started).await;

    fixture.host.set_faults(Faults { disk_stays_full: true, ..Faults::default() });
    fixture.host.pause(machine.as_str(), Some(Pause::DiskFull));
    fixture.until_that(&machine, |record| record.machine.host_status == "unknown").await;
    assert_eq!(stays_awake(&fixture, &machine).await.0, WhyAwake::HostStatus);
}

#[tokio::test]
async fn an_open_session_keeps_a_machine_awake_until_it_is_closed() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let silent = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
    let request = Request::post(format!("/machines/{machine}/session")).body(silent).unwrap();
    let session = fixture.streams().call(request).await;
    assert!(session.status().is_success());
    assert_eq!(stays_awake(&fixture, &machine).await.0, WhyAwake::Session);
    drop(session);
    let closed = async {
        while !matches!(
            sleep(&fixture, &machine, SleepMode::Suspend).await,
            WorkerReply::Sleeping { .. }
        ) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(MINUTE, closed).await.unwrap();
}

#[tokio::test]
async fn a_hold_keeps_a_machine_awake_until_its_time_is_over() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    fixture.act(&machine, hold(60)).await.unwrap();
    let shown = fixture.until_that(&machine, |record| record.machine.hold.is_some()).await;
    assert_eq!(shown.machine.hold.unwrap().reason.as_deref(), Some("a test"));
    let (why, message, until) = stays_awake(&fixture, &machine).await;
    assert!(why == WhyAwake::Hold && message.contains("a test"), "{why:?} {message}");
    assert!(until.unwrap() <= fixture.clock.unix_now() + MINUTE);
    fixture.clock.advance(MINUTE + Duration::from_secs(1));
    // Nobody has to ask for it to be over.
    fixture.until_that(&machine, |record| record.machine.hold.is_none()).await;
    assert_eq!(sleeps(&fixture, &machine, SleepMode::Suspend).await, SleepMode::Suspend);
}

#[tokio::test]
async fn a_hold_is_replaced_and_released_and_survives_its_server_and_restarts() {
    let mut fixture = Fixture::new().await;
    let machine = fixture.started().await;
    fixture.act(&machine, hold(600)).await.unwrap();
    fixture.act(&machine, hold(120)).await.unwrap();
    fixture.kill().await;
    fixture.start().await;
    let (why, _, until) = stays_awake(&fixture, &machine).await;
    assert_eq!(why, WhyAwake::Hold);
    assert!(until.unwrap() <= fixture.clock.unix_now() + 2 * MINUTE, "the last one counts");
    let restart = Action::Restart { signal: None, timeout: None, force: false };
    fixture.act(&machine, restart).await.unwrap();
    fixture.until_that(&machine, |record| record.machine.state == MachineState::Restarting).await;
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(stays_awake(&fixture, &machine).await.0, WhyAwake::Hold);
    for _ in 0..2 {
        fixture.act(&machine, RELEASE).await.unwrap();
    }
    assert_eq!(sleeps(&fixture, &machine, SleepMode::Stop).await, SleepMode::Stop);
}

#[tokio::test]
async fn a_hold_ends_with_the_machines_stop_and_none_begins_on_one_that_does_not_run() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    for end in [STOP, Action::Suspend] {
        fixture.act(&machine, hold(600)).await.unwrap();
        fixture.act(&machine, end).await.unwrap();
        let ended = fixture
            .until_that(&machine, |record| {
                let state = record.machine.state;
                matches!(state, MachineState::Stopped | MachineState::Suspended)
            })
            .await;
        assert_eq!(ended.machine.hold, None, "a client's wish is stronger");
        let refused = fixture.act(&machine, hold(60)).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::FailedPrecondition);
        woken(&fixture, &machine).await;
    }
    for seconds in [0, 24 * 3600 + 1] {
        let refused = fixture.act(&machine, hold(seconds)).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument, "{seconds}");
    }
}

#[tokio::test]
async fn a_program_holds_its_machine_from_inside() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let guest = fixture.host.guest(machine.as_str()).unwrap();
    let (status, until) = guest.ask_for_hold(Some(300)).await.unwrap();
    let shown = fixture.until_that(&machine, |record| record.machine.hold.is_some()).await;
    let shown = shown.machine.hold.unwrap();
    assert_eq!((status, until.as_deref()), (200, Some(shown.until.as_str())));
    assert!(shown.reason.unwrap().contains("inside"));
    assert_eq!(stays_awake(&fixture, &machine).await.0, WhyAwake::Hold);
    let (status, error) = guest.ask_for_hold(Some(0)).await.unwrap();
    assert!(status == 400 && error.unwrap().contains("ttl"));
    // One that asks again all the time has nothing recorded: the same hold is in force.
    let (revision, began) = (fixture.record(&machine).unwrap().revision, fixture.clock.unix_now());
    for _ in 0..10 {
        guest.ask_for_hold(Some(300)).await.unwrap();
    }
    let seconds = fixture.clock.unix_now().since(began).as_secs();
    let changes = fixture.record(&machine).unwrap().revision - revision;
    assert!(changes <= seconds + 1, "{changes} in {seconds} s");
    assert_eq!(guest.ask_for_hold(None).await, Some((200, None)));
    let mut answers = Vec::new();
    for _ in 0..60 {
        answers.push(guest.ask_for_hold(None).await.unwrap().0);
    }
    assert!(answers.starts_with(&[200; 20]) && answers.ends_with(&[429]), "{answers:?}");
    assert_eq!(sleeps(&fixture, &machine, SleepMode::Stop).await, SleepMode::Stop);
}

#[tokio::test]
async fn a_sleep_that_was_accepted_is_not_carried_out_again_by_the_next_server() {
    let mut fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let request = WorkerRequest::Sleep {
        machine: machine.clone(),
        mode: SleepMode::Suspend,
        reason: "once".to_owned(),
    };
    fixture.ask_as("the one", request.clone()).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    woken(&fixture, &machine).await;
    fixture.kill().await;
    fixture.start().await;
    let again = fixture.ask_as("the one", request).await.unwrap();
    assert!(matches!(again, WorkerReply::Sleeping { .. }), "{again:?}");
    let record = fixture.until(&machine, MachineState::Started).await;
    assert!(record.machine.operation.is_none());
}

/// What the log of all machines says.
async fn log(fixture: &Fixture) -> Vec<Value> {
    let request = Request::get("/logs?app=app").body(Body::empty()).unwrap();
    let body = fixture.streams().call(request).await.into_body();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let reply: LogsReply = serde_json::from_slice(&bytes).unwrap();
    reply.data.into_iter().map(|entry| json!(entry.attributes)).collect()
}

#[tokio::test]
async fn lines_of_the_proxy_are_in_the_log_of_the_machine_also_when_it_sleeps() {
    let fixture = Fixture::new().await;
    let machine = asleep(&fixture, SleepMode::Stop).await;
    let line = |text: &str, is_error| HostLine { time_ns: 7, is_error, text: text.to_owned() };
    let lines = vec![line("[PC01] refused", true), line("first\nsecond", false)];
    let request = WorkerRequest::Log { machine: machine.clone(), lines };
    // However often it is asked.
    for _ in 0..2 {
        let answer = fixture.ask_as("lines", request.clone()).await.unwrap();
        assert!(matches!(answer, WorkerReply::Logged));
    }
    let told = log(&fixture).await;
    let told: Vec<_> =
        told.iter().filter(|line| line["meta"]["event"]["provider"] == "proxy").collect();
    let texts: Vec<_> = told.iter().map(|line| (&line["message"], &line["level"])).collect();
    assert_eq!(
        json!(texts),
        json!([["[PC01] refused", "error"], ["first", "info"], ["second", "info"]])
    );
    assert!(told.iter().all(|line| line["instance"] == machine.as_str()));
    let other = WorkerRequest::Log { machine: MachineId::random(), lines: Vec::new() };
    assert_eq!(fixture.ask(other).await.unwrap_err().code, ErrorCode::NotFound);
}
