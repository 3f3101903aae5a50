//! Snapshots of volumes, and volumes that are made from them, over real files, a real store in a
//! directory and a fake VMM.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, time::Duration};

use caddis_api::{
    ErrorCode, MachineId, MachineState, SnapshotId, VolumeId,
    volume::{SnapshotStatus, VolumeState},
};
use caddis_bus::message::{Action, CreateVolume, VolumeAction};
use caddis_guest_protocol::fake::{Behaviour, STILL_US};
use caddis_vmm::{
    VmExit,
    fake::{Faults, VolumeCall},
};
use serde_json::{Value, json};

use crate::support::{Fixture, mounted, new_volume, restored};

const STOP: Action = Action::Stop { signal: None, timeout: None };
const DESTROY: Action = Action::Destroy { force: true };
const SLEEP: [&str; 2] = ["sleep", "inf"];
const DAY: Duration = Duration::from_secs(24 * 3600);

async fn running_with(fixture: &Fixture, more: Value) -> MachineId {
    let machine = fixture.try_create(&SLEEP, more).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    machine
}

async fn stop(fixture: &Fixture, machine: &MachineId) {
    fixture.act(machine, STOP).await.unwrap();
    fixture.until(machine, MachineState::Stopped).await;
}

/// A volume of which no snapshot is taken by itself.
async fn manual_volume(fixture: &Fixture) -> VolumeId {
    let create = CreateVolume { auto_backup_enabled: false, ..new_volume() };
    let id = fixture.create_volume(create).await.unwrap().id;
    fixture.until_volume(&id, |volume| volume.state == VolumeState::Created).await;
    id
}

/// What was asked of a machine's VM, but for progress.
fn calls(fixture: &Fixture, machine: &MachineId) -> Vec<VolumeCall> {
    fixture.host.volume_calls(machine.as_str())
}

fn begins(fixture: &Fixture, machine: &MachineId) -> usize {
    let begun = |call: &VolumeCall| matches!(call, VolumeCall::BeginSnapshot { .. });
    calls(fixture, machine).iter().filter(|call| begun(call)).count()
}

/// No snapshot is open in the VM, and its guest has its volumes.
fn assert_goes_on(fixture: &Fixture, machine: &MachineId) {
    let last = calls(fixture, machine).into_iter().rfind(|call| {
        matches!(call, VolumeCall::BeginSnapshot { .. } | VolumeCall::EndSnapshot { .. })
    });
    assert!(!matches!(last, Some(VolumeCall::BeginSnapshot { .. })), "{last:?}");
    assert_eq!(fixture.host.guest(machine.as_str()).unwrap().frozen_volumes(), None);
}

#[tokio::test]
async fn a_running_machine_s_volume_is_held_still_for_the_beginning_and_the_next_one_is_smaller() {
    let fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    for block in 0..64 {
        fixture.exports.write(&volume, block * 64, u8::try_from(block).unwrap() + 1);
    }
    let id = SnapshotId::random();
    let asked = fixture.take_snapshot_as(&volume, &id).await.unwrap();
    assert_eq!((asked.id.clone(), asked.retention_days), (id.clone(), 5));
    let taken = fixture.until_snapshot(&id, |s| s.status == SnapshotStatus::Created).await;
    assert!(taken.digest.starts_with("blake3:") && taken.operation.is_none(), "{taken:?}");
    assert_eq!(taken.volume_size, 1 << 30);
    assert_eq!(taken.frozen_ms, Some(STILL_US.div_ceil(1000)), "as the guest says");
    let added = taken.added_size.unwrap();
    assert!(added >= taken.size && taken.size > 0, "{taken:?}");
    assert_goes_on(&fixture, &machine);
    let begin = VolumeCall::BeginSnapshot { index: 0, id: id.to_string(), previous: None };
    let frozen = fixture.host.volume_calls_while_frozen(machine.as_str());
    assert_eq!(frozen, std::slice::from_ref(&begin), "nothing else is done while it is held still");
    let ended = |is_taken| VolumeCall::EndSnapshot { index: 0, is_taken };
    let (prepare, export) =
        (VolumeCall::PrepareSnapshot { index: 0 }, VolumeCall::ExportSnapshot { index: 0 });
    assert_eq!(
        calls(&fixture, &machine),
        [ended(false), prepare, begin, export, ended(true)],
        "what an earlier try may have left is ended first"
    );
    let first = fixture.exports.reads(&volume);
    assert!(first >= 64, "{first}");
    let shown = fixture.volume(&volume).await.unwrap();
    assert_eq!(shown.last_snapshot_at, Some(taken.created_at.clone()));
    assert_eq!(shown.bytes_since_snapshot, None, "its machine may write");

    // Asked for again it is told as it is.
    assert_eq!(fixture.take_snapshot_as(&volume, &id).await.unwrap(), taken);
    fixture.exports.write(&volume, 7 * 64, 99);
    let second = fixture.created_snapshot(&volume).await;
    let read = fixture.exports.reads(&volume) - first;
    assert!(read < first / 4, "{read} of {first} blocks were read again");
    let next = fixture.snapshot(&second).await.unwrap();
    assert!(next.added_size.unwrap() < added && next.size >= taken.size, "{next:?}");
    let since: Vec<_> = calls(&fixture, &machine)
        .into_iter()
        .filter_map(|call| match call {
            VolumeCall::BeginSnapshot { previous, .. } => Some(previous),
            _ => None,
        })
        .collect();
    assert_eq!(since, [None, Some(id.to_string())]);
    let listed: Vec<_> = fixture.snapshots(&volume).await.into_iter().map(|s| s.id).collect();
    assert_eq!(listed, [second, id], "newest first");
    assert_goes_on(&fixture, &machine);
}

#[tokio::test]
async fn of_a_volume_that_nobody_has_opened_since_nothing_is_read() {
    let fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    fixture.exports.write(&volume, 3, 1);
    let first = fixture.created_snapshot(&volume).await;
    let reads = fixture.exports.reads(&volume);
    assert!(reads > 0);
    let shown = fixture.volume(&volume).await.unwrap();
    assert_eq!(shown.bytes_since_snapshot, Some(0));
    let second = fixture.created_snapshot(&volume).await;
    assert_eq!(fixture.exports.reads(&volume), reads);
    let one = async |id| fixture.snapshot(&id).await.unwrap();
    let (first, second) = (one(first).await, one(second).await);
    assert_eq!(first.digest, second.digest);
    assert_eq!((first.frozen_ms, second.frozen_ms), (None, None), "nothing ran");
    assert!(first.added_size.unwrap() > 0 && second.added_size.unwrap() == 0, "{second:?}");

    let machine = running_with(&fixture, mounted(&volume)).await;
    stop(&fixture, &machine).await;
    fixture.exports.write(&volume, 3, 2);
    let third = fixture.created_snapshot(&volume).await;
    assert!(fixture.exports.reads(&volume) > reads);
    assert_eq!(begins(&fixture, &machine), 0);
    fixture.act(&machine, DESTROY).await.unwrap();
    fixture.until(&machine, MachineState::Destroyed).await;
    fixture.delete_snapshot(&volume, &third).await;
    assert_eq!(fixture.snapshots(&volume).await.len(), 2);
    fixture.delete_snapshot(&volume, &third).await;
    fixture.act_on(&volume, VolumeAction::Delete).await.unwrap();
    assert_eq!(fixture.snapshots(&volume).await.len(), 2, "they outlive their volume");
    let refused = fixture.take_snapshot(&volume).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    let missing = fixture.take_snapshot(&VolumeId::random()).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_guest_that_can_t_hold_still_or_a_vm_that_fails_is_asked_again_and_is_left_as_it_was() {
    let fixture = Fixture::new().await;
    let (volume, other) = (manual_volume(&fixture).await, manual_volume(&fixture).await);
    let machine = running_with(&fixture, mounted(&volume)).await;
    fixture.host.set_faults(Faults { failing_snapshots: 2, ..Faults::default() });
    let id = fixture.take_snapshot(&volume).await.unwrap();
    let waits = fixture
        .until_snapshots_in_time(&volume, |all| {
            all[0].operation.as_ref().is_some_and(|operation| operation.error.is_some())
        })
        .await
        .remove(0);
    assert_eq!((&waits.id, waits.status), (&id, SnapshotStatus::Waiting));
    let error = waits.operation.unwrap().error.unwrap();
    assert!(error.contains("told to fail") && error.contains("tried again at"), "{error}");
    assert_goes_on(&fixture, &machine);
    let created = |all: &[caddis_api::volume::VolumeSnapshot]| {
        all.iter().all(|s| s.status == SnapshotStatus::Created)
    };
    fixture.until_snapshots_in_time(&volume, created).await;
    assert_eq!(begins(&fixture, &machine), 3);
    assert_goes_on(&fixture, &machine);

    let guest = Behaviour { refuses_volumes: true, ..Behaviour::default() };
    fixture.host.set_faults(Faults { guest, ..Faults::default() });
    let machine = running_with(&fixture, mounted(&other)).await;
    fixture.take_snapshot(&other).await.unwrap();
    let failed = fixture
        .until_snapshots_in_time(&other, |all| all[0].status == SnapshotStatus::Failed)
        .await;
    let error = failed[0].operation.clone().unwrap().error.unwrap();
    assert!(error.contains("can't hold its file systems still"), "{error}");
    assert_eq!(begins(&fixture, &machine), 0);
    let told = fixture
        .until_that(&machine, |record| {
            let events = record.machine.events.iter().flatten();
            events.filter(|event| event.kind == "volume").any(|event| {
                event.told()["message"].as_str().is_some_and(|text| text.contains("failed"))
            })
        })
        .await;
    drop(told);
    assert_goes_on(&fixture, &machine);
}

#[tokio::test]
async fn a_vm_that_ends_meanwhile_has_the_snapshot_be_taken_of_its_files() {
    let fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    fixture.exports.hold(true);
    let id = fixture.take_snapshot(&volume).await.unwrap();
    fixture.exports.until_waiting(1).await;
    let running = fixture.snapshot(&id).await.unwrap();
    assert_eq!(running.status, SnapshotStatus::Running);
    // What is read of it fails from now on.
    fixture.host.crash(machine.as_str(), VmExit::HostOom);
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.delete_snapshot(&volume, &id).await;
    fixture.exports.hold(false);
    let other = fixture.created_snapshot(&volume).await;
    assert_eq!(fixture.snapshots(&volume).await[0].id, other);
    assert_eq!(begins(&fixture, &machine), 1);
}

#[tokio::test]
async fn a_vm_of_which_nothing_can_be_read_since_it_ends_delays_no_snapshot() {
    let fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    fixture.exports.fail(&volume, 1);
    let id = fixture.take_snapshot(&volume).await.unwrap();
    let is_ended = |call: &VolumeCall| matches!(call, VolumeCall::EndSnapshot { .. });
    let was_begun = || begins(&fixture, &machine) == 1;
    while !was_begun() || !calls(&fixture, &machine).last().is_some_and(is_ended) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // That it has ended is heard of only now.
    fixture.host.crash(machine.as_str(), VmExit::HostOom);
    fixture.until_snapshots_in_time(&volume, |all| all[0].status == SnapshotStatus::Created).await;
    assert_eq!(fixture.snapshots(&volume).await[0].id, id);
    let told = fixture.events(&machine).await.into_iter().filter(|event| event.kind == "volume");
    assert_eq!(told.count(), 0);
}

#[tokio::test]
async fn a_start_and_an_extension_break_a_snapshot_off_which_is_taken_later() {
    let fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    stop(&fixture, &machine).await;
    fixture.exports.hold(true);
    let id = fixture.take_snapshot(&volume).await.unwrap();
    fixture.exports.until_waiting(1).await;
    assert!(fixture.has_user(&volume), "it is exported");
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    // By way of the VM now, which an extension ends as well.
    fixture.exports.until_waiting(1).await;
    assert_eq!(begins(&fixture, &machine), 1);
    let extended = fixture.act_on(&volume, VolumeAction::Extend { size_gb: 2 }).await.unwrap();
    assert_eq!((extended.size_gb, extended.operation), (2, None));
    assert_eq!(fixture.host.resizes(machine.as_str()), [(0, 2 << 30)]);
    fixture.exports.hold(false);
    fixture.until_snapshot(&id, |s| s.status == SnapshotStatus::Created).await;
    assert_goes_on(&fixture, &machine);
}

#[tokio::test]
async fn a_suspend_ends_what_is_being_taken_and_the_machine_resumes() {
    let fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    fixture.exports.hold(true);
    let id = fixture.take_snapshot(&volume).await.unwrap();
    fixture.exports.until_waiting(1).await;
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    fixture.exports.until_waiting(1).await;
    fixture.exports.hold(false);
    fixture.until_snapshot(&id, |s| s.status == SnapshotStatus::Created).await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    let events = fixture.events(&machine).await;
    let start = events.iter().find(|event| event.kind == "start" && event.status == "started");
    assert_eq!(start.unwrap().told()["start_kind"], "resume");
}

#[tokio::test]
async fn a_store_that_is_away_delays_snapshots_and_nothing_else() {
    let mut fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    let kept = fixture.created_snapshot(&volume).await;
    fixture.put_store_away(true);
    let id = fixture.take_snapshot(&volume).await.unwrap();
    let has_error = |s: &caddis_api::volume::VolumeSnapshot| {
        s.operation.as_ref().is_some_and(|operation| operation.error.is_some())
    };
    let waits = fixture.until_snapshot(&id, has_error).await;
    assert_eq!(waits.status, SnapshotStatus::Waiting);
    let error = waits.operation.unwrap().error.unwrap();
    assert!(error.contains("the snapshot store can't be used"), "{error}");
    assert_goes_on(&fixture, &machine);
    stop(&fixture, &machine).await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    // For however long, and in however many servers.
    fixture.delete_snapshot(&volume, &kept).await;
    for _ in 0..30 {
        fixture.clock.advance(Duration::from_secs(600));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    fixture.kill().await;
    // A server starts with it as well.
    fixture.put_store_away(false);
    fixture.start().await;
    assert_ne!(fixture.snapshot(&id).await.unwrap().status, SnapshotStatus::Failed);
    fixture.until_snapshots_in_time(&volume, |all| all[0].status == SnapshotStatus::Created).await;
    let gone = async || fixture.recorded_snapshots() == 1;
    while !gone().await {
        fixture.until_snapshots_in_time(&volume, |all| all.len() == 1).await;
        fixture.clock.advance(Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_snapshot_of_a_volume_that_is_being_made_waits_for_it() {
    let fixture = Fixture::new().await;
    let volume = fixture.create_volume(new_volume()).await.unwrap();
    assert_eq!(volume.state, VolumeState::Creating);
    let id = fixture.take_snapshot(&volume.id).await.unwrap();
    fixture.until_snapshot(&id, |snapshot| snapshot.status == SnapshotStatus::Created).await;
    assert_eq!(fixture.until_volume(&volume.id, |_| true).await.state, VolumeState::Created);
}

#[tokio::test]
async fn only_some_snapshots_of_a_volume_wait_at_once() {
    let fixture = Fixture::new().await;
    let (volume, other) = (manual_volume(&fixture).await, manual_volume(&fixture).await);
    fixture.exports.hold(true);
    for _ in 0..5 {
        fixture.take_snapshot(&volume).await.unwrap();
    }
    let refused = fixture.take_snapshot(&volume).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.message.contains("are waiting already"), "{}", refused.message);
    fixture.take_snapshot(&other).await.unwrap();
    fixture.exports.hold(false);
    let all_created = |all: &[caddis_api::volume::VolumeSnapshot]| {
        all.len() == 5 && all.iter().all(|s| s.status == SnapshotStatus::Created)
    };
    fixture.until_snapshots_in_time(&volume, all_created).await;
}

#[tokio::test]
async fn snapshots_are_taken_daily_where_that_is_wanted_and_expire() {
    let mut fixture = Fixture::new().await;
    let (daily, manual) = (fixture.created_volume().await, manual_volume(&fixture).await);
    let change = VolumeAction::Update { snapshot_retention: Some(2), auto_backup_enabled: None };
    fixture.act_on(&daily, change).await.unwrap();
    let mut most = 0;
    for day in 0..8 {
        fixture.clock.advance(Duration::from_secs(23 * 3600));
        let before = fixture.snapshots(&daily).await.first().map(|s| s.id.clone());
        let next = |all: &[caddis_api::volume::VolumeSnapshot]| {
            all.first().is_some_and(|newest| {
                Some(&newest.id) != before.as_ref() && newest.status == SnapshotStatus::Created
            })
        };
        let all = fixture.until_snapshots_in_time(&daily, next).await;
        assert!(all.iter().all(|s| s.retention_days == 2), "{all:?}");
        most = most.max(all.len());
        if day == 4 {
            fixture.kill().await;
            fixture.start().await;
        }
    }
    assert!((2..=4).contains(&most), "{most} are there after as many days as they are kept");
    assert_eq!(fixture.snapshots(&manual).await, []);
    // The last ones expire too, once no more are taken.
    let change =
        VolumeAction::Update { snapshot_retention: None, auto_backup_enabled: Some(false) };
    fixture.act_on(&daily, change).await.unwrap();
    fixture.clock.advance(DAY * 3);
    fixture.until_snapshots_in_time(&daily, <[_]>::is_empty).await;
}

#[tokio::test]
async fn a_thousand_snapshots_take_the_space_of_those_that_are_kept() {
    let fixture = Fixture::new().await;
    let create = CreateVolume { auto_backup_enabled: false, snapshot_retention: 1, ..new_volume() };
    let volume = fixture.create_volume(create).await.unwrap().id;
    fixture.until_volume(&volume, |volume| volume.state == VolumeState::Created).await;
    running_with(&fixture, mounted(&volume)).await;
    for number in 0..1000_u64 {
        fixture.exports.write(&volume, number % 8 * 64, u8::try_from(number % 251).unwrap() + 1);
        fixture.created_snapshot(&volume).await;
        // Five are kept.
        fixture.clock.advance(DAY / 5);
        if number % 50 == 49 {
            let few = |all: &[caddis_api::volume::VolumeSnapshot]| all.len() <= 5;
            fixture.until_snapshots_in_time(&volume, few).await;
            // Of the five; each that expired and left something would add to it.
            fixture.until_objects_in_time(40).await;
            let rows = fixture.recorded_snapshots();
            assert!(rows <= 60, "{rows}");
        }
    }
}

#[tokio::test]
async fn a_worker_that_is_killed_anywhere_in_a_snapshot_leaves_nothing_and_the_next_takes_it() {
    for at_rest in [false, true] {
        let points: &[&str] = match at_rest {
            true => &["running", "exported", "closed", "taken", "recorded"],
            false => &["running", "fleecing", "frozen", "begun", "stored", "taken", "recorded"],
        };
        for point in [&""].into_iter().chain(points) {
            let mut fixture = Fixture::new().await;
            let volume = manual_volume(&fixture).await;
            let machine = running_with(&fixture, mounted(&volume)).await;
            if at_rest {
                stop(&fixture, &machine).await;
            }
            fixture.exports.write(&volume, 1, 1);
            if point.is_empty() {
                fixture.injector.disarm();
                fixture.created_snapshot(&volume).await;
                // The last one may just be about to be reached.
                let mut reached = fixture.injector.reached();
                reached.truncate(points.len() - 1);
                assert_eq!(reached, points[..points.len() - 1], "one is left out");
                continue;
            }
            fixture.injector.die_at(point);
            let id = fixture.take_snapshot(&volume).await.unwrap();
            tokio::time::timeout(Duration::from_secs(60), fixture.injector.death())
                .await
                .unwrap_or_else(|_| panic!("{point} is not reached"));
            fixture.kill().await;
            fixture.injector.revive();
            if let Some(guest) = fixture.host.guest(machine.as_str()) {
                // As when its time is over.
                guest.end_freeze();
            }
            fixture.start().await;
            fixture.until_snapshot(&id, |s| s.status == SnapshotStatus::Created).await;
            assert_eq!(fixture.snapshots(&volume).await.len(), 1, "{point}");
            if at_rest {
                fixture.until_unused(&volume).await;
            } else {
                assert_goes_on(&fixture, &machine);
            }
            // Deleted and swept, nothing of it is left.
            fixture.delete_snapshot(&volume, &id).await;
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            while fixture.recorded_snapshots() > 0 || fixture.stored_objects() > 1 {
                assert!(tokio::time::Instant::now() < deadline, "{point}: something is left");
                fixture.clock.advance(Duration::from_secs(60));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[tokio::test]
async fn a_volume_is_made_from_a_snapshot_and_machines_have_it_at_once() {
    let mut fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    fixture.exports.write(&volume, 3, 1);
    let snapshot = fixture.created_snapshot(&volume).await;
    let create = restored(&volume, &snapshot);
    let asked = fixture.create_volume(create.clone()).await.unwrap();
    assert_eq!(asked.state, VolumeState::Restoring);
    assert_eq!(asked.operation.unwrap().kind, "restore");
    let machine = running_with(&fixture, mounted(&create.id)).await;
    let made = fixture.until_volume(&create.id, |v| v.state == VolumeState::Created).await;
    assert_eq!(made.operation, None);
    fixture.kill().await;
    fixture.start().await;
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(fixture.volume(&create.id).await.unwrap().state, VolumeState::Created);
    stop(&fixture, &machine).await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;

    // Without a machine as well.
    let create = restored(&volume, &snapshot);
    fixture.create_volume(create.clone()).await.unwrap();
    fixture.until_volume(&create.id, |v| v.state == VolumeState::Created).await;
    fixture.until_unused(&create.id).await;
}

#[tokio::test]
async fn a_restore_says_what_keeps_it_from_being_made() {
    let fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    fixture.exports.write(&volume, 3, 1);
    let snapshot = fixture.created_snapshot(&volume).await;
    let large = CreateVolume { size_gb: 2, auto_backup_enabled: false, ..new_volume() };
    let large = fixture.create_volume(large).await.unwrap().id;
    fixture.until_volume(&large, |v| v.state == VolumeState::Created).await;

    let unknown = restored(&volume, &SnapshotId::random());
    fixture.create_volume(unknown.clone()).await.unwrap();
    let failed = fixture.until_volume(&unknown.id, |v| v.state == VolumeState::Failed).await;
    let error = failed.operation.unwrap();
    assert_eq!(error.kind, "restore");
    assert!(error.error.unwrap().contains("there is no snapshot"));
    fixture.act_on(&unknown.id, VolumeAction::Delete).await.unwrap();

    // A store that is away is waited for.
    fixture.put_store_away(true);
    let create = restored(&volume, &snapshot);
    fixture.create_volume(create.clone()).await.unwrap();
    let waits = fixture
        .until_volume(&create.id, |v| v.operation.as_ref().is_some_and(|o| o.error.is_some()))
        .await;
    assert_eq!(waits.state, VolumeState::Restoring);
    fixture.put_store_away(false);
    let created = |volumes: &[caddis_api::Volume]| {
        volumes.iter().any(|v| v.id == create.id && v.state == VolumeState::Created)
    };
    fixture.until_volumes_in_time(created).await;
    let deleted = fixture.take_snapshot(&volume).await.unwrap();
    fixture.until_snapshot(&deleted, |s| s.status == SnapshotStatus::Created).await;
    fixture.delete_snapshot(&volume, &deleted).await;
    let refused = fixture.create_volume(restored(&volume, &deleted)).await;
    // It is refused, or the store does not have it any more.
    if let Ok(made) = refused {
        fixture.until_volume(&made.id, |v| v.state == VolumeState::Failed).await;
    }
}

#[tokio::test]
async fn a_volume_that_is_being_restored_is_neither_suspended_extended_nor_copied() {
    let fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    fixture.exports.write(&volume, 3, 1);
    let snapshot = fixture.created_snapshot(&volume).await;
    let create = restored(&volume, &snapshot);
    fixture.create_volume(create.clone()).await.unwrap();
    let machine = fixture.try_create(&SLEEP, mounted(&create.id)).await.unwrap();
    fixture.host.set_hydration(
        machine.as_str(),
        0,
        caddis_vmm::Hydration::Running { done: 1, total: 2 },
    );
    fixture.until(&machine, MachineState::Started).await;
    let is_told = |v: &caddis_api::Volume| {
        v.operation.as_ref().is_some_and(|o| (o.bytes_done, o.bytes_total) == (Some(1), Some(2)))
    };
    let shown = fixture.until_volume(&create.id, is_told).await;
    // Its files may have been quicker.
    assert_eq!(shown.state, VolumeState::Hydrating);
    let refused = fixture.act(&machine, Action::Suspend).await.unwrap_err();
    assert!(refused.message.contains("is being restored"), "{}", refused.message);
    let extend = VolumeAction::Extend { size_gb: 2 };
    let refused = fixture.act_on(&create.id, extend).await.unwrap_err();
    assert!(refused.message.contains("is being restored"), "{}", refused.message);
    let copy = CreateVolume { source: Some(create.id.clone()), ..new_volume() };
    let refused = fixture.create_volume(copy).await.unwrap_err();
    assert!(refused.message.contains("is being restored"), "{}", refused.message);
    // A snapshot of it waits, and the one that it is made from is not lost.
    let waits = fixture.take_snapshot(&create.id).await.unwrap();
    fixture.delete_snapshot(&volume, &snapshot).await;
    assert_eq!(fixture.snapshots(&volume).await, []);
    for _ in 0..5 {
        fixture.clock.advance(Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(fixture.recorded_snapshots(), 2);
    fixture.host.set_hydration(machine.as_str(), 0, caddis_vmm::Hydration::Done);
    fixture
        .until_volumes_in_time(|volumes| {
            volumes.iter().any(|v| v.id == create.id && v.state == VolumeState::Created)
        })
        .await;
    fixture.until_snapshot(&waits, |s| s.status == SnapshotStatus::Created).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while fixture.recorded_snapshots() > 1 {
        assert!(tokio::time::Instant::now() < deadline, "the deleted one is left");
        fixture.clock.advance(Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_anywhere_in_a_restore_is_followed_by_one_that_ends_it() {
    for with_machine in [false, true] {
        for point in ["looked_up", "made", "served", "hydrated", "whole"] {
            let mut fixture = Fixture::new().await;
            let volume = manual_volume(&fixture).await;
            fixture.exports.write(&volume, 3, 1);
            let snapshot = fixture.created_snapshot(&volume).await;
            fixture.injector.die_at(point);
            let create = restored(&volume, &snapshot);
            fixture.create_volume(create.clone()).await.unwrap();
            let machine = match with_machine {
                true => Some(fixture.try_create(&SLEEP, mounted(&create.id)).await.unwrap()),
                false => None,
            };
            tokio::time::timeout(Duration::from_secs(60), fixture.injector.death())
                .await
                .unwrap_or_else(|_| panic!("{point} is not reached"));
            fixture.kill().await;
            fixture.injector.revive();
            fixture.start().await;
            fixture.until_volume(&create.id, |v| v.state == VolumeState::Created).await;
            match machine {
                Some(machine) => {
                    fixture.until(&machine, MachineState::Started).await;
                    fixture.act(&machine, DESTROY).await.unwrap();
                    fixture.until(&machine, MachineState::Destroyed).await;
                }
                None => fixture.until_unused(&create.id).await,
            }
            fixture.assert_volumes_are_free(point).await;
        }
    }
}

#[tokio::test]
async fn a_volume_that_is_being_restored_can_be_deleted_and_undeleted() {
    let fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    fixture.exports.write(&volume, 3, 1);
    let snapshot = fixture.created_snapshot(&volume).await;
    fixture.put_store_away(true);
    let create = restored(&volume, &snapshot);
    fixture.create_volume(create.clone()).await.unwrap();
    let gone = fixture.act_on(&create.id, VolumeAction::Delete).await.unwrap();
    assert_eq!(gone.state, VolumeState::Destroyed, "nothing of it was made");
    fixture.put_store_away(false);
    let create = restored(&volume, &snapshot);
    fixture.create_volume(create.clone()).await.unwrap();
    fixture.until_volume(&create.id, |v| v.state != VolumeState::Restoring).await;
    let deleted = fixture.act_on(&create.id, VolumeAction::Delete).await.unwrap();
    assert_eq!(deleted.state, VolumeState::PendingDestroy);
    fixture.act_on(&create.id, VolumeAction::Undelete).await.unwrap();
    fixture.until_volume(&create.id, |v| v.state == VolumeState::Created).await;
}

#[tokio::test]
async fn a_volume_in_use_is_forked_by_reflink_or_by_way_of_a_snapshot_that_nobody_sees() {
    let mut fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    let fork = || CreateVolume {
        source: Some(volume.clone()),
        auto_backup_enabled: false,
        ..new_volume()
    };
    let by_reflink = fork();
    let asked = fixture.create_volume(by_reflink.clone()).await.unwrap();
    assert_eq!(asked.state, VolumeState::Creating);
    fixture.until_volume(&by_reflink.id, |v| v.state == VolumeState::Created).await;
    assert!(calls(&fixture, &machine).contains(&VolumeCall::Clone { index: 0 }));
    assert_goes_on(&fixture, &machine);

    fixture.host.set_faults(Faults { no_reflinks: true, ..Faults::default() });
    for point in ["", "forking", "stored", "made", "hydrated", "whole"] {
        let create = fork();
        fixture.injector.die_at(point);
        fixture.create_volume(create.clone()).await.unwrap();
        if !point.is_empty() {
            tokio::time::timeout(Duration::from_secs(60), fixture.injector.death())
                .await
                .unwrap_or_else(|_| panic!("{point} is not reached"));
            fixture.kill().await;
            fixture.injector.revive();
            fixture.start().await;
        }
        fixture.until_volume(&create.id, |v| v.state == VolumeState::Created).await;
        assert_goes_on(&fixture, &machine);
        assert_eq!(fixture.snapshots(&volume).await, [], "{point}");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while fixture.recorded_snapshots() > 0 {
            assert!(tokio::time::Instant::now() < deadline, "{point}: its snapshot is left");
            fixture.clock.advance(Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running_with(
            &fixture,
            json!({ "mounts": [{ "volume": create.id, "path": "/b" }],
            "guest": { "cpus": 1, "memory_mb": 256, "cpu_kind": "shared" } }),
        )
        .await;
    }
}

#[tokio::test]
async fn a_damaged_snapshot_fails_what_is_restored_from_it_and_nothing_else() {
    let fixture = Fixture::new().await;
    let (volume, other) = (manual_volume(&fixture).await, manual_volume(&fixture).await);
    fixture.exports.write(&volume, 3, 1);
    fixture.exports.write(&other, 3, 2);
    let damaged = fixture.created_snapshot(&volume).await;
    let chunks = fixture.stored_files("chunks");
    let whole = fixture.created_snapshot(&other).await;
    for chunk in &chunks {
        let mut bytes = std::fs::read(chunk).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(chunk, bytes).unwrap();
    }
    let lost = restored(&volume, &damaged);
    let kept = restored(&other, &whole);
    for create in [&lost, &kept] {
        fixture.create_volume(create.clone()).await.unwrap();
    }
    let failed = fixture.until_volume(&lost.id, |v| v.state == VolumeState::Failed).await;
    let told = failed.operation.unwrap();
    let error = told.error.unwrap();
    assert!(told.kind == "restore" && error.contains("is damaged"), "{error}");
    assert!(error.contains(damaged.as_str()), "{error}");
    fixture.until_volume(&kept.id, |v| v.state == VolumeState::Created).await;
    let refused = fixture.try_create(&SLEEP, mounted(&lost.id)).await.unwrap_err();
    assert!(refused.message.contains(&error), "{}", refused.message);
    fixture.act_on(&lost.id, VolumeAction::Delete).await.unwrap();
}

#[tokio::test]
async fn snapshots_that_are_younger_than_the_database_are_found_in_the_store() {
    let mut fixture = Fixture::new().await;
    let volume = manual_volume(&fixture).await;
    let recorded = fixture.created_snapshot(&volume).await;
    // Nobody has the database open then.
    fixture.kill().await;
    let backup = fs::read(fixture.database()).unwrap();
    fixture.start().await;
    fixture.exports.write(&volume, 3, 1);
    let younger = fixture.created_snapshot(&volume).await;
    let before = fixture.snapshot(&younger).await.unwrap();
    let unknown = manual_volume(&fixture).await;
    let left_alone = fixture.created_snapshot(&unknown).await;
    let deleted = fixture.created_snapshot(&volume).await;
    fixture.delete_snapshot(&volume, &deleted).await;
    fixture.until_forgotten(&deleted).await;
    fixture.kill().await;
    fs::write(fixture.database(), backup).unwrap();
    fixture.start().await;
    let listed = fixture.until_snapshots_in_time(&volume, |snapshots| snapshots.len() > 1).await;
    let ids: Vec<_> = listed.iter().map(|snapshot| snapshot.id.clone()).collect();
    assert_eq!(ids, [younger.clone(), recorded], "the deleted one stays deleted");
    assert_eq!(listed[0], before);
    assert_eq!(fixture.snapshots(&unknown).await, []);
    assert_eq!(fixture.stored_files(left_alone.as_str()).len(), 1);
    // It is as any other.
    let copy = fixture.create_volume(restored(&volume, &younger)).await.unwrap();
    fixture.until_volume(&copy.id, |volume| volume.state == VolumeState::Created).await;
    fixture.delete_snapshot(&volume, &younger).await;
    fixture.until_forgotten(&younger).await;
}
