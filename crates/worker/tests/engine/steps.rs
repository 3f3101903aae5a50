//! Every step of every operation fails, is repeated, and is the last thing its process does; each
//! time the machine comes to where it was to be, or settles with a reason, and nothing is left
//! over.
//!
//! Which steps there are is found out by doing each thing once without a fault.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use std::{collections::BTreeSet, time::Duration};

use caddis_api::{ApiError, EventId, MachineId, MachineState, Signal};
use caddis_bus::message::{Action, MachineRecord, UpdateMachine, WorkerReply, WorkerRequest};
use caddis_vmm::{VmExit, fake::Faults};
use futures::{StreamExt as _, future::BoxFuture, stream};
use serde_json::{Value, json};

use crate::{
    sabotage::{Fault, Place},
    support::{Fixture, config, mounted},
};

const STOP: Action = Action::Stop { signal: None, timeout: None };
const RESTART: Action = Action::Restart { signal: None, timeout: None, force: false };
/// Cases at a time: most of a case is waiting.
pub const AT_ONCE: usize = 12;

/// Steps that are the end of a VM.
const CLEARS: [&str; 2] = ["release", "end_vm"];

type Async<'a, T> = BoxFuture<'a, T>;

/// Something that is done to a machine.
pub struct Scenario {
    pub name: &'static str,
    pub prepare: for<'a> fn(&'a Fixture) -> Async<'a, MachineId>,
    pub act: for<'a> fn(&'a Fixture, &'a MachineId) -> Async<'a, ()>,
    /// Where it ends.
    pub goal: MachineState,
    /// Ends of its program, in all.
    exits: usize,
}

fn sleeps() -> Value {
    json!({})
}

/// Restarted whenever it ends.
fn always() -> Value {
    json!({ "restart": { "policy": "always" } })
}

async fn running(fixture: &Fixture, more: Value) -> MachineId {
    let machine = fixture.try_create(&["sleep", "inf"], more).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    machine
}

async fn suspended(fixture: &Fixture) -> MachineId {
    let machine = running(fixture, sleeps()).await;
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    fixture.assert_nothing_runs().await;
    machine
}

async fn stopped(fixture: &Fixture) -> MachineId {
    let machine = running(fixture, sleeps()).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
    machine
}

/// A machine that is being saved, for longer than anyone waits.
async fn saving(fixture: &Fixture) -> MachineId {
    let machine = running(fixture, sleeps()).await;
    fixture.host.set_faults(Faults { save_delay: Duration::from_secs(3600), ..Faults::default() });
    fixture.act(&machine, Action::Suspend).await.unwrap();
    let saves = |step: &str| step == "save";
    fixture
        .until_that(&machine, |record| {
            record.machine.operation.as_ref().is_some_and(|o| saves(&o.step))
        })
        .await;
    fixture.host.set_faults(Faults::default());
    machine
}

pub async fn act(fixture: &Fixture, machine: &MachineId, action: Action) {
    fixture.act(machine, action).await.unwrap();
}

pub async fn update(fixture: &Fixture, machine: &MachineId) {
    try_update(fixture, machine).await.unwrap();
}

/// A new version that does the same.
pub async fn try_update(fixture: &Fixture, machine: &MachineId) -> Result<WorkerReply, ApiError> {
    let config = config(json!({ "env": { "A": "1" } }));
    let update = UpdateMachine {
        config,
        version: None,
        expected: None,
        skip_launch: false,
        cordoned: false,
        lease: None,
    };
    let request =
        WorkerRequest::Update { machine: machine.clone(), nonce: None, update: Box::new(update) };
    fixture.ask(request).await
}

/// Its program ends by itself.
async fn end(fixture: &Fixture, machine: &MachineId) {
    act(fixture, machine, Action::Signal { signal: Signal::TERM }).await;
}

async fn create(fixture: &Fixture, machine: &MachineId, skip_launch: bool) {
    fixture.create_as(machine, config(sleeps()), skip_launch).await.unwrap();
}

/// A scenario. The closures only give their futures a place to live.
macro_rules! scenario {
    ($name:literal, $prepare:expr, $act:expr, $goal:ident, $exits:literal) => {
        Scenario {
            name: $name,
            prepare: |fixture| {
                let prepare: fn(_) -> _ = $prepare;
                Box::pin(prepare(fixture))
            },
            act: |fixture, machine| {
                let act: fn(_, _) -> _ = $act;
                Box::pin(act(fixture, machine))
            },
            goal: MachineState::$goal,
            exits: $exits,
        }
    };
}

const NEW: fn(&Fixture) -> std::future::Ready<MachineId> =
    |_| std::future::ready(MachineId::random());

fn starts() -> Vec<Scenario> {
    vec![
        scenario!("create", NEW, |f, m| create(f, m, true), Created, 0),
        scenario!("create and start", NEW, |f, m| create(f, m, false), Started, 0),
        scenario!("start", stopped, |f, m| act(f, m, Action::Start), Started, 1),
        scenario!("start from the pool", stopped, |f, m| pooled(f, m), Started, 1),
        scenario!("start that can't be", stopped, |f, m| in_vain(f, m), Failed, 1),
    ]
}

async fn pooled(fixture: &Fixture, machine: &MachineId) {
    fixture.host.set_faults(Faults { pool: true, ..Faults::default() });
    act(fixture, machine, Action::Start).await;
}

async fn in_vain(fixture: &Fixture, machine: &MachineId) {
    fixture.host.set_faults(Faults { failing_launches: usize::MAX, ..Faults::default() });
    act(fixture, machine, Action::Start).await;
}

fn stops() -> Vec<Scenario> {
    vec![
        scenario!("stop", |f| running(f, sleeps()), |f, m| act(f, m, STOP), Stopped, 1),
        scenario!("stop of a suspended one", suspended, |f, m| act(f, m, STOP), Stopped, 0),
        scenario!(
            "destroy",
            stopped,
            |f, m| act(f, m, Action::Destroy { force: false }),
            Destroyed,
            1
        ),
        scenario!(
            "destroy, forced",
            |f| running(f, sleeps()),
            |f, m| act(f, m, Action::Destroy { force: true }),
            Destroyed,
            1
        ),
        scenario!(
            "destroy of a suspended one",
            suspended,
            |f, m| act(f, m, Action::Destroy { force: false }),
            Destroyed,
            0
        ),
    ]
}

fn replacements() -> Vec<Scenario> {
    vec![
        scenario!("restart", |f| running(f, sleeps()), |f, m| act(f, m, RESTART), Started, 1),
        scenario!("update", |f| running(f, sleeps()), |f, m| update(f, m), Started, 1),
        scenario!("update at rest", stopped, |f, m| update(f, m), Stopped, 1),
    ]
}

fn suspends() -> Vec<Scenario> {
    vec![
        scenario!(
            "suspend",
            |f| running(f, sleeps()),
            |f, m| act(f, m, Action::Suspend),
            Suspended,
            0
        ),
        scenario!(
            "suspend that can't be",
            |f| running(f, sleeps()),
            |f, m| not_saved(f, m),
            Started,
            0
        ),
        scenario!("suspend called off", saving, |f, m| act(f, m, Action::Start), Started, 0),
        scenario!("resume", suspended, |f, m| act(f, m, Action::Start), Started, 0),
        scenario!("resume that can't be", suspended, |f, m| in_vain(f, m), Suspended, 0),
    ]
}

async fn not_saved(fixture: &Fixture, machine: &MachineId) {
    fixture.host.set_faults(Faults { failing_saves: usize::MAX, ..Faults::default() });
    act(fixture, machine, Action::Suspend).await;
}

fn exits() -> Vec<Scenario> {
    vec![
        scenario!("exit", |f| running(f, sleeps()), |f, m| end(f, m), Stopped, 1),
        scenario!("exit and restart", |f| running(f, always()), |f, m| end(f, m), Started, 1),
        scenario!(
            "exit and destroy",
            |f| running(f, json!({ "auto_destroy": true })),
            |f, m| end(f, m),
            Destroyed,
            1
        ),
        scenario!("crash", |f| running(f, sleeps()), |f, m| crash(f, m), Stopped, 1),
    ]
}

/// A machine with a volume.
async fn with_volume(fixture: &Fixture) -> MachineId {
    let volume = fixture.created_volume().await;
    running(fixture, mounted(&volume)).await
}

async fn stopped_with_volume(fixture: &Fixture) -> MachineId {
    let machine = with_volume(fixture).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
    machine
}

async fn suspended_with_volume(fixture: &Fixture) -> MachineId {
    let machine = with_volume(fixture).await;
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    fixture.assert_nothing_runs().await;
    machine
}

async fn new_with_volume(fixture: &Fixture) -> MachineId {
    fixture.created_volume().await;
    MachineId::random()
}

async fn create_with_volume(fixture: &Fixture, machine: &MachineId) {
    let volume = fixture.volumes().await.swap_remove(0).id;
    fixture.create_as(machine, config(mounted(&volume)), false).await.unwrap();
}

/// The same volume at another path.
async fn update_with_volume(fixture: &Fixture, machine: &MachineId) {
    let volume = fixture.volumes().await.swap_remove(0).id;
    let mounts = json!({ "mounts": [{ "volume": volume, "path": "/elsewhere" }] });
    fixture.update_to(machine, config(mounts)).await.unwrap();
}

fn with_volumes() -> Vec<Scenario> {
    vec![
        scenario!(
            "create with a volume",
            new_with_volume,
            |f, m| create_with_volume(f, m),
            Started,
            0
        ),
        scenario!(
            "start with a volume",
            stopped_with_volume,
            |f, m| act(f, m, Action::Start),
            Started,
            1
        ),
        scenario!("stop with a volume", with_volume, |f, m| act(f, m, STOP), Stopped, 1),
        scenario!("update with a volume", with_volume, |f, m| update_with_volume(f, m), Started, 1),
        scenario!(
            "suspend with a volume",
            with_volume,
            |f, m| act(f, m, Action::Suspend),
            Suspended,
            0
        ),
        scenario!(
            "resume with a volume",
            suspended_with_volume,
            |f, m| act(f, m, Action::Start),
            Started,
            0
        ),
        scenario!(
            "destroy with a volume",
            with_volume,
            |f, m| act(f, m, Action::Destroy { force: true }),
            Destroyed,
            1
        ),
    ]
}

/// All scenarios, but for those with volumes.
pub fn everything() -> Vec<Scenario> {
    [starts(), stops(), replacements(), suspends(), exits()].into_iter().flatten().collect()
}

async fn crash(fixture: &Fixture, machine: &MachineId) {
    fixture.host.crash(machine.as_str(), VmExit::HostOom);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_survive_whatever_happens_at_each_step() {
    all(starts()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_survive_whatever_happens_at_each_step() {
    all(stops()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacements_survive_whatever_happens_at_each_step() {
    all(replacements()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspends_survive_whatever_happens_at_each_step() {
    all(suspends()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exits_survive_whatever_happens_at_each_step() {
    all(exits()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_survive_whatever_happens_at_each_step() {
    all(with_volumes()).await;
}

/// All scenarios together take all steps that there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_step_is_left_out() {
    let scenarios = everything();
    let seen: Vec<_> =
        stream::iter(&scenarios).map(without_fault).buffer_unordered(AT_ONCE).collect().await;
    let seen: BTreeSet<_> = seen.into_iter().flatten().map(|((_, step), _)| step).collect();
    // The table that heads `steps.rs`.
    let table = include_str!("../../src/steps.rs").lines();
    let names = table.filter_map(|line| line.strip_prefix("//! | `")?.split('`').next());
    assert_eq!(seen, names.map(str::to_owned).collect());
}

async fn all(scenarios: Vec<Scenario>) {
    let rounds = if std::env::var_os("CADDIS_SOAK").is_some() { 20 } else { 1 };
    for _ in 0..rounds {
        let mut cases = Vec::new();
        for scenario in &scenarios {
            let seen = without_fault(scenario).await;
            cases.extend(faults(seen).into_iter().map(|(fault, place)| (scenario, fault, place)));
        }
        let done = stream::iter(cases).map(|(scenario, fault, place)| case(scenario, fault, place));
        done.buffer_unordered(AT_ONCE).collect::<()>().await;
    }
}

/// Faults at these steps; what never was done can be neither repeated nor followed by a death.
fn faults(seen: BTreeSet<(Place, bool)>) -> Vec<(Fault, Place)> {
    let places = seen.iter().filter(|(_, done)| !done).map(|(place, _)| place);
    let first = places.clone().next().unwrap().clone();
    let mut faults = vec![(Fault::DiesEverywhere, first)];
    for place in places {
        let done = seen.contains(&(place.clone(), true));
        let possible = Fault::ALL.into_iter().filter(|fault| match fault {
            Fault::Twice | Fault::DiesAfter | Fault::RebootsAfter => done,
            Fault::DiesEverywhere => false,
            Fault::FailsEverywhere => CLEARS.contains(&place.1.as_str()),
            _ => true,
        });
        faults.extend(possible.map(|fault| (fault, place.clone())));
    }
    faults
}

pub async fn without_fault(scenario: &Scenario) -> BTreeSet<(Place, bool)> {
    let fixture = Fixture::new().await;
    let machine = (scenario.prepare)(&fixture).await;
    fixture.injector.disarm();
    let before = newest(&fixture, &machine);
    (scenario.act)(&fixture, &machine).await;
    fixture
        .until_named(&machine, scenario.name, |r| {
            settled_since(r, &before) && r.machine.state == scenario.goal
        })
        .await;
    let seen = fixture.injector.seen().into_iter().collect();
    assert_eq!(fixture.exits(&machine).await.len(), scenario.exits, "{}", scenario.name);
    fixture.assert_all_fits(&machine, scenario.name).await;
    seen
}

async fn case(scenario: &Scenario, fault: Fault, place: Place) {
    let name = format!("{}, {fault:?} at {}/{}", scenario.name, place.0, place.1);
    let mut fixture = Fixture::new().await;
    let machine = (scenario.prepare)(&fixture).await;
    let before = newest(&fixture, &machine);
    fixture.injector.arm(fault, place.clone());
    // Its answer may be the last thing that is heard of a worker, or not even that.
    let injector = fixture.injector.clone();
    tokio::select! {
        () = (scenario.act)(&fixture, &machine) => {}
        () = injector.death() => {}
    }
    let state = come_to_rest(&mut fixture, &machine, before, (scenario.goal, fault), &name).await;
    assert!(fixture.injector.has_struck(), "{name}: nothing happened");
    // The end of a program that the host took with it is one more.
    if fault.is_overcome() && !fault.reboots() {
        assert_eq!(fixture.exits(&machine).await.len(), scenario.exits, "exits: {name}");
    }
    fixture.injector.disarm();
    fixture.host.set_faults(Faults::default());
    // What could not be cleared up for good is left, and shown as failed; the next operation begins
    // with it again.
    let left = state == MachineState::Failed && CLEARS.contains(&place.1.as_str());
    if !left {
        fixture.assert_all_fits(&machine, &name).await;
    }
    if scenario.goal != MachineState::Destroyed || !fault.is_overcome() {
        // Where it did not matter it may be destroyed.
        act(&fixture, &machine, Action::Destroy { force: true }).await;
    }
    fixture.until(&machine, MachineState::Destroyed).await;
    fixture.assert_all_fits(&machine, &name).await;
    fixture.assert_volumes_are_free(&name).await;
}

fn newest_of(record: &MachineRecord) -> Option<EventId> {
    record.machine.events.iter().flatten().next().map(|event| event.id.clone())
}

/// What was last heard of a machine.
pub fn newest(fixture: &Fixture, machine: &MachineId) -> Option<EventId> {
    fixture.record(machine).as_ref().and_then(newest_of)
}

/// Whether something was done, which begins with an event, and nothing is under way any more.
pub fn settled_since(record: &MachineRecord, before: &Option<EventId>) -> bool {
    newest_of(record) != *before && record.machine.operation.is_none()
}

/// Waits until it settles where it should; workers that are to die on the way do.
async fn come_to_rest(
    fixture: &mut Fixture,
    machine: &MachineId,
    before: Option<EventId>,
    (goal, fault): (MachineState, Fault),
    name: &str,
) -> MachineState {
    let is_settled = |state: MachineState| {
        // After a reboot what was not saved yet runs again, and nothing is resumed a second time:
        // it boots, if it can.
        let instead = fault.reboots()
            && goal == MachineState::Suspended
            && matches!(state, MachineState::Started | MachineState::Failed);
        state == goal || instead || (!fault.is_overcome() && state.is_settled())
    };
    let injector = fixture.injector.clone();
    let mut deaths = 0;
    let record = loop {
        let settled = fixture.until_named(machine, name, |r| {
            settled_since(r, &before) && is_settled(r.machine.state)
        });
        tokio::select! {
            record = settled => break record,
            () = injector.death() => {}
        }
        fixture.kill().await;
        if fault.reboots() {
            fixture.host.power_cycle();
            fixture.boot_id = "second".to_owned();
        }
        injector.revive();
        deaths += 1;
        assert!(deaths < 100, "{name}: it never comes to an end");
        fixture.start().await;
    };
    assert_eq!(deaths > 0, fault.kills(), "{name}: {deaths} deaths");
    if record.machine.state != goal && !fault.reboots() {
        let events = format!("{:?}", fixture.events(machine).await);
        assert!(
            events.contains("told to fail"),
            "{name}: {:?} without a reason: {events}",
            record.machine.state
        );
    }
    record.machine.state
}
