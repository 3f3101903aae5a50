//! Volumes and the machines that have them, over real files and a fake VMM.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, pin::pin, time::Duration};

use caddis_api::{
    AppName, ErrorCode, MachineId, MachineState, Volume, VolumeId, volume::VolumeState,
};
use caddis_bus::message::{
    ANNOUNCEMENTS, Action, Announcement, CreateVolume, VolumeAction, decode,
};
use caddis_guest_protocol::fake::Behaviour;
use caddis_vmm::{Pause, fake::Faults};
use serde_json::{Value, json};

use crate::support::{Fixture, config, mounted, new_volume};

const STOP: Action = Action::Stop { signal: None, timeout: None };
const DESTROY: Action = Action::Destroy { force: true };
const SLEEP: [&str; 2] = ["sleep", "inf"];

fn encrypted() -> CreateVolume {
    CreateVolume { encrypted: true, ..new_volume() }
}

fn extend(size_gb: u32) -> VolumeAction {
    VolumeAction::Extend { size_gb }
}

async fn running_with(fixture: &Fixture, more: Value) -> MachineId {
    let machine = fixture.try_create(&SLEEP, more).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    machine
}

async fn destroy(fixture: &Fixture, machine: &MachineId) {
    fixture.act(machine, DESTROY).await.unwrap();
    fixture.until(machine, MachineState::Destroyed).await;
}

/// Details of the newest start that succeeded.
async fn start_of(fixture: &Fixture, machine: &MachineId) -> Value {
    let events = fixture.events(machine).await;
    let start = events.into_iter().find(|event| event.kind == "start" && event.status == "started");
    start.and_then(|event| event.details).unwrap()
}

#[tokio::test]
async fn a_volume_is_made_once_however_often_it_is_asked_for_and_each_change_is_announced() {
    let fixture = Fixture::new().await;
    let create = new_volume();
    let asked = fixture.create_volume(create.clone()).await.unwrap();
    assert_eq!((asked.name.as_str(), asked.size_gb, asked.encrypted), ("data", 1, false));
    let made = fixture.until_volume(&create.id, |v| v.state == VolumeState::Created).await;
    assert_eq!((made.operation.clone(), made.attached_machine_id.clone()), (None, None));
    assert!(fixture.volume_files(&create.id).join("disk.qcow2").exists());
    assert_eq!(fixture.create_volume(create.clone()).await.unwrap(), made);

    let (records, revision) = fixture.volume_records().await;
    assert!(records.len() == 1 && records[0].revision <= revision);
    let mut announcements = fixture.announcements().await;
    let change =
        VolumeAction::Update { snapshot_retention: Some(9), auto_backup_enabled: Some(false) };
    let changed = fixture.act_on(&create.id, change).await.unwrap();
    assert_eq!((changed.snapshot_retention, changed.auto_backup_enabled), (9, false));
    loop {
        let message = announcements.recv().await.unwrap();
        let told: Announcement = decode(ANNOUNCEMENTS, &message.payload).unwrap();
        if told.volumes > revision {
            break;
        }
    }
    assert!(fixture.volume_records().await.0[0].revision > revision);
}

#[tokio::test]
async fn a_volume_has_one_machine_until_that_is_destroyed() {
    let mut fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let create = || fixture.try_create(&SLEEP, mounted(&volume));
    let (one, other) = tokio::join!(create(), create());
    let (machine, refused) = match (one, other) {
        (Ok(machine), Err(error)) | (Err(error), Ok(machine)) => (machine, error),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    let expected = format!("failed_precondition: volume {volume} is in use by machine {machine}");
    assert_eq!(refused.message, expected);
    let shown = fixture.until_volume(&volume, |v| v.attached_machine_id.is_some()).await;
    assert_eq!(shown.attached_machine_id, Some(machine.clone()));
    fixture.until(&machine, MachineState::Started).await;

    fixture.end().await;
    fixture.start().await;
    let refused = fixture.try_create(&SLEEP, mounted(&volume)).await.unwrap_err();
    assert_eq!(refused.message, expected, "also after a restart");
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    let refused = fixture.try_create(&SLEEP, mounted(&volume)).await.unwrap_err();
    assert_eq!(refused.message, expected, "also when it is stopped");
    destroy(&fixture, &machine).await;
    let next = running_with(&fixture, mounted(&volume)).await;
    assert_eq!(fixture.volume(&volume).await.unwrap().attached_machine_id, Some(next));
}

#[tokio::test]
async fn machines_get_no_volume_that_is_not_there_and_failed_creates_keep_none() {
    let fixture = Fixture::new().await;
    let missing = VolumeId::random();
    let refused = fixture.try_create(&SLEEP, mounted(&missing)).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.message),
        (ErrorCode::NotFound, format!("volume {missing} not found"))
    );
    let other_app = CreateVolume { app: AppName::from_trusted("other"), ..new_volume() };
    let foreign = fixture.create_volume(other_app).await.unwrap().id;
    let refused = fixture.try_create(&SLEEP, mounted(&foreign)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotFound);

    let volume = fixture.created_volume().await;
    let both = json!({ "mounts": [
        { "volume": volume, "path": "/a" }, { "volume": missing, "path": "/b" },
    ] });
    fixture.try_create(&SLEEP, both).await.unwrap_err();
    let mut large = mounted(&volume);
    large["guest"] = json!({ "cpus": 2, "memory_mb": 4096, "cpu_kind": "performance" });
    let refused = fixture.try_create(&SLEEP, large).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::VolumePlacementCapacity);
    assert!(refused.message.contains(volume.as_str()), "{}", refused.message);
    assert_eq!(fixture.volume(&volume).await.unwrap().attached_machine_id, None);

    fixture.act_on(&volume, VolumeAction::Delete).await.unwrap();
    let refused = fixture.try_create(&SLEEP, mounted(&volume)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.message.contains("is deleted: undelete it first"), "{}", refused.message);
}

#[tokio::test]
async fn a_machine_may_be_made_with_a_volume_that_is_being_made_and_waits_for_it() {
    let mut fixture = Fixture::new().await;
    fixture.restart_making_no_volumes().await;
    let asked = fixture.create_volume(encrypted()).await.unwrap();
    assert_eq!(asked.state, VolumeState::Creating);
    assert_eq!(asked.operation.unwrap().kind, "create");
    let machine = fixture.try_create(&SLEEP, mounted(&asked.id)).await.unwrap();
    let waiting = |step: &str| step == "pull";
    fixture
        .until_that(&machine, |r| r.machine.operation.as_ref().is_some_and(|o| waiting(&o.step)))
        .await;
    fixture.kill().await;
    fixture.start().await;
    fixture.let_volumes_be_made();
    fixture.until(&machine, MachineState::Started).await;
    let volume = fixture.volume(&asked.id).await.unwrap();
    assert_eq!((volume.state, volume.encrypted), (VolumeState::Created, true));
}

#[tokio::test]
async fn a_volume_whose_server_is_killed_while_it_is_made_is_made_by_the_next() {
    let mut fixture = Fixture::new().await;
    fixture.restart_making_no_volumes().await;
    let create = encrypted();
    let asked = fixture.create_volume(create.clone()).await.unwrap();
    assert_eq!(asked.state, VolumeState::Creating);
    fixture.kill().await;
    assert!(!fixture.volume_files(&create.id).exists(), "it was not made yet");
    fixture.start().await;
    let again = fixture.create_volume(create.clone()).await.unwrap();
    assert_eq!(again.state, VolumeState::Creating);
    fixture.let_volumes_be_made();
    fixture.until_volume(&create.id, |v| v.state == VolumeState::Created).await;
    fixture.kill().await;
    fixture.start().await;
    let volume = fixture.volume(&create.id).await.unwrap();
    assert_eq!((volume.state, volume.created_at), (VolumeState::Created, asked.created_at));
}

#[tokio::test]
async fn a_volume_that_can_not_be_made_says_why_and_is_gone_once_it_is_deleted() {
    let fixture = Fixture::new().await;
    let create = new_volume();
    let place = fixture.volume_files(&create.id);
    fs::create_dir_all(place.join("in the way")).unwrap();
    fixture.create_volume(create.clone()).await.unwrap();
    let failed = fixture.until_volume(&create.id, |v| v.state == VolumeState::Failed).await;
    let error = failed.operation.unwrap().error.unwrap();
    assert!(error.contains(create.id.as_str()), "{error}");
    let refused = fixture.try_create(&SLEEP, mounted(&create.id)).await.unwrap_err();
    assert!(refused.message.contains(&error), "{}", refused.message);
    let deleted = fixture.act_on(&create.id, VolumeAction::Delete).await.unwrap();
    assert_eq!(deleted.state, VolumeState::Destroyed);
    fixture.until_volumes_in_time(<[_]>::is_empty).await;
}

#[tokio::test]
async fn a_volume_that_is_being_made_can_be_deleted() {
    let fixture = Fixture::new().await;
    let asked = fixture.create_volume(encrypted()).await.unwrap();
    let deleted = fixture.act_on(&asked.id, VolumeAction::Delete).await.unwrap();
    assert!(deleted.state.is_deleted(), "{:?}", deleted.state);
    assert!(!fixture.volume_files(&asked.id).exists());
}

#[tokio::test]
async fn a_deleted_volume_can_be_undeleted_for_a_day_and_is_removed_then() {
    let mut fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    let refused = fixture.act_on(&volume, VolumeAction::Delete).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.message.contains(machine.as_str()), "{}", refused.message);
    destroy(&fixture, &machine).await;

    let deleted = fixture.act_on(&volume, VolumeAction::Delete).await.unwrap();
    assert_eq!(deleted.state, VolumeState::PendingDestroy);
    assert!(deleted.deleted_until.is_some() && !fixture.volume_files(&volume).exists());
    let again = fixture.act_on(&volume, VolumeAction::Delete).await.unwrap();
    assert_eq!(again.deleted_until, deleted.deleted_until);
    fixture.end().await;
    fixture.start().await;
    assert_eq!(fixture.volumes().await[0].deleted_until, deleted.deleted_until);
    let back = fixture.act_on(&volume, VolumeAction::Undelete).await.unwrap();
    assert_eq!((back.state, back.deleted_until), (VolumeState::Created, None));
    let machine = running_with(&fixture, mounted(&volume)).await;
    destroy(&fixture, &machine).await;

    fixture.act_on(&volume, VolumeAction::Delete).await.unwrap();
    fixture.clock.advance(Duration::from_secs(23 * 3600));
    assert_eq!(fixture.volumes().await[0].state, VolumeState::PendingDestroy);
    fixture.clock.advance(Duration::from_secs(3600));
    fixture.until_volumes_in_time(<[_]>::is_empty).await;
    let trash = fixture.volume_files(&volume).ancestors().nth(2).unwrap().join("trash");
    assert_eq!(fs::read_dir(trash).unwrap().count(), 0);
    let gone = fixture.act_on(&volume, VolumeAction::Undelete).await.unwrap_err();
    assert_eq!(gone.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_purged_volume_is_gone_at_once_whether_it_was_deleted_before_or_not() {
    let fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    let refused = fixture.act_on(&volume, VolumeAction::Purge).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(fixture.volume_files(&volume).exists());
    destroy(&fixture, &machine).await;

    let deleted_before = fixture.created_volume().await;
    fixture.act_on(&deleted_before, VolumeAction::Delete).await.unwrap();
    let trash = fixture.volume_files(&volume).ancestors().nth(2).unwrap().join("trash");
    assert_eq!(fs::read_dir(&trash).unwrap().count(), 1);
    for id in [&volume, &deleted_before] {
        let purged = fixture.act_on(id, VolumeAction::Purge).await.unwrap();
        assert_eq!((purged.state, purged.deleted_until), (VolumeState::Destroyed, None));
        assert!(!fixture.volume_files(id).exists());
        let back = fixture.act_on(id, VolumeAction::Undelete).await.unwrap_err();
        assert_eq!(back.code, ErrorCode::NotFound);
    }
    assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
    fixture.until_volumes_in_time(<[_]>::is_empty).await;
}

#[tokio::test]
async fn a_volume_is_extended_at_rest_and_under_its_machine() {
    let fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let grown = fixture.act_on(&volume, extend(2)).await.unwrap();
    assert_eq!((grown.state, grown.size_gb), (VolumeState::Created, 2));
    let machine = running_with(&fixture, mounted(&volume)).await;
    let usage = fixture.volume(&volume).await.unwrap();
    assert_eq!(usage.bytes_total, 2 << 30, "the guest was told of it, and tells of its use");
    assert!(usage.bytes_used > 0 && usage.block_size == Some(4096));

    let grown = fixture.act_on(&volume, extend(4)).await.unwrap();
    assert_eq!((grown.state, grown.size_gb), (VolumeState::Created, 4));
    assert_eq!(fixture.host.resizes(machine.as_str()), [(0, 4 << 30)]);
    let guest = fixture.host.guest(machine.as_str()).unwrap();
    assert_eq!(guest.grown_volumes(), [(0, 4 << 30)].into());
    assert_eq!(fixture.volume(&volume).await.unwrap().bytes_total, 4 << 30);

    for (size, code) in [
        (3, ErrorCode::InvalidArgument),
        (0, ErrorCode::InvalidArgument),
        (501, ErrorCode::InvalidArgument),
    ] {
        assert_eq!(fixture.act_on(&volume, extend(size)).await.unwrap_err().code, code, "{size}");
    }
    let same = fixture.act_on(&volume, extend(4)).await.unwrap();
    assert_eq!((same.size_gb, same.operation), (4, None));
}

#[tokio::test]
async fn a_guest_that_does_not_see_its_volume_grow_is_told_of_and_sees_it_at_its_next_start() {
    let fixture = Fixture::new().await;
    let guest = Behaviour { refuses_volumes: true, ..Behaviour::default() };
    fixture.host.set_faults(Faults { guest, ..Faults::default() });
    let volume = fixture.created_volume().await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    let grown = fixture.act_on(&volume, extend(2)).await.unwrap();
    assert_eq!((grown.state, grown.size_gb), (VolumeState::Created, 2));
    let operation = grown.operation.unwrap();
    assert_eq!(operation.kind, "extend");
    assert!(operation.error.unwrap().contains("restart the machine"));
    fixture.host.set_faults(Faults::default());
    let restart = Action::Restart { signal: None, timeout: None, force: false };
    fixture.act(&machine, restart).await.unwrap();
    fixture
        .until_that(&machine, |record| {
            let kinds = record.machine.events.iter().flatten();
            let is_done = |kind: &str, status: &str| kind == "restart" && status == "started";
            record.machine.operation.is_none()
                && kinds.into_iter().any(|event| is_done(&event.kind, &event.status))
        })
        .await;
    let seen = fixture.volume(&volume).await.unwrap();
    assert_eq!((seen.bytes_total, seen.operation), (2 << 30, None));
}

#[tokio::test]
async fn an_extension_goes_on_in_the_next_server() {
    let mut fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    fixture.kill().await;
    let text = "UPDATE volumes SET record = \
                json_set(record, '$.state', 'extending', '$.extend_to', 3)";
    let database = rusqlite::Connection::open(fixture.database()).unwrap();
    assert_eq!(database.execute(text, []).unwrap(), 1);
    drop(database);
    fixture.start().await;
    let grown = fixture.until_volume(&volume, |v| v.state == VolumeState::Created).await;
    assert_eq!(grown.size_gb, 3);
    assert_eq!(fixture.host.resizes(machine.as_str()), [(0, 3 << 30)]);
}

#[tokio::test]
async fn a_machine_goes_on_with_its_volume_unless_that_was_changed_meanwhile() {
    let fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    for (size, kind) in [(1, "resume"), (2, "template"), (2, "resume")] {
        fixture.act(&machine, Action::Suspend).await.unwrap();
        fixture.until(&machine, MachineState::Suspended).await;
        fixture.assert_nothing_runs().await;
        fixture.act_on(&volume, extend(size)).await.unwrap();
        fixture.act(&machine, Action::Start).await.unwrap();
        fixture.until(&machine, MachineState::Started).await;
        let start = start_of(&fixture, &machine).await;
        assert_eq!(start["start_kind"], kind, "{start}");
        if kind != "resume" {
            let reason = format!(
                "the machine could not be resumed: volume {volume} was extended since it was \
                 suspended"
            );
            assert_eq!(start["start_reason"], reason);
        }
        assert!(!fixture.file(&machine, "memory.snapshot").exists());
    }
}

#[tokio::test]
async fn a_resumed_guest_that_can_not_be_told_of_an_extension_is_to_be_restarted() {
    let fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    fixture.assert_nothing_runs().await;
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(start_of(&fixture, &machine).await["start_kind"], "resume");
    fixture.host.set_faults(Faults { disk_stays_full: true, ..Faults::default() });
    fixture.host.pause(machine.as_str(), Some(Pause::DiskFull));
    fixture.until_that(&machine, |record| record.machine.host_status == "unknown").await;
    let grown = fixture.act_on(&volume, extend(2)).await.unwrap();
    assert_eq!((grown.state, grown.size_gb), (VolumeState::Created, 2));
    let error = grown.operation.unwrap().error.unwrap();
    assert!(error.contains("restart the machine"), "{error}");
}

#[tokio::test]
async fn a_resume_that_fails_before_anything_ran_can_be_tried_again() {
    let fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    fixture.act(&machine, Action::Suspend).await.unwrap();
    fixture.until(&machine, MachineState::Suspended).await;
    fixture.host.set_faults(Faults { failing_launches: usize::MAX, ..Faults::default() });
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture
        .until_that(&machine, |record| {
            let newest = record.machine.events.iter().flatten().next();
            record.machine.state == MachineState::Suspended
                && record.machine.operation.is_none()
                && newest.is_some_and(|event| event.told().get("error").is_some())
        })
        .await;
    fixture.host.set_faults(Faults::default());
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    assert_eq!(start_of(&fixture, &machine).await["start_kind"], "resume");
}

#[tokio::test]
async fn a_machine_whose_volume_was_lost_fails_with_the_reason() {
    let mut fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.end().await;
    fs::remove_dir_all(fixture.volume_files(&volume)).unwrap();
    fixture.start().await;
    let lost = fixture.volume(&volume).await.unwrap();
    assert_eq!(lost.state, VolumeState::Failed);
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Failed).await;
    let newest = fixture.events(&machine).await.swap_remove(0);
    let error = newest.told()["error"].as_str().unwrap().to_owned();
    assert!(error.contains(volume.as_str()) && error.contains("missing"), "{error}");
    destroy(&fixture, &machine).await;
    let gone = fixture.act_on(&volume, VolumeAction::Delete).await.unwrap();
    assert_eq!(gone.state, VolumeState::Destroyed);
}

#[tokio::test]
async fn a_worker_does_not_start_where_the_disk_with_its_volumes_is_not_mounted() {
    let mut fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    fixture.act_on(&volume, VolumeAction::Delete).await.unwrap();
    fixture.end().await;
    let files = fixture.volume_files(&volume);
    let store = files.ancestors().nth(2).unwrap();
    let elsewhere = store.with_file_name("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for name in ["volumes", "trash"] {
        fs::rename(store.join(name), elsewhere.join(name)).unwrap();
    }
    for _ in 0..2 {
        let refused = fixture.try_start().await.unwrap_err().to_string();
        assert!(refused.contains(volume.as_str()) && refused.contains("mount"), "{refused}");
    }
    for name in ["volumes", "trash"] {
        fs::rename(elsewhere.join(name), store.join(name)).unwrap();
    }
    fixture.start().await;
    let back = fixture.act_on(&volume, VolumeAction::Undelete).await.unwrap();
    assert_eq!(back.state, VolumeState::Created);
}

#[tokio::test]
async fn a_start_waits_for_who_still_has_the_volume_and_fails_with_its_name() {
    let fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let machine = running_with(&fixture, mounted(&volume)).await;
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
    let disk = fs::File::open(fixture.volume_files(&volume).join("disk.qcow2")).unwrap();
    disk.lock().unwrap();
    fixture.act(&machine, Action::Start).await.unwrap();
    let launching = |step: &str| step == "launch";
    let found = fixture.until_that(&machine, |record| {
        record.machine.operation.as_ref().is_some_and(|o| launching(&o.step))
    });
    found.await;
    disk.unlock().unwrap();
    fixture.until(&machine, MachineState::Started).await;

    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    fixture.assert_nothing_runs().await;
    disk.lock().unwrap();
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Failed).await;
    let newest = fixture.events(&machine).await.swap_remove(0);
    let error = newest.told()["error"].as_str().unwrap().to_owned();
    assert!(error.contains(&format!("volume {volume} is in use by")), "{error}");
    drop(disk);
    fixture.act(&machine, Action::Start).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
}

#[tokio::test]
async fn a_delete_waits_for_who_still_has_the_volume_and_is_refused_in_the_end() {
    let fixture = Fixture::new().await;
    let volume = fixture.created_volume().await;
    let disk = fs::File::open(fixture.volume_files(&volume).join("disk.qcow2")).unwrap();
    disk.lock().unwrap();
    let mut refused = pin!(fixture.act_on(&volume, VolumeAction::Delete));
    let refused = loop {
        match tokio::time::timeout(Duration::from_millis(5), &mut refused).await {
            Ok(refused) => break refused.unwrap_err(),
            Err(_) => fixture.clock.advance(Duration::from_secs(1)),
        }
    };
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.message.contains(&format!("volume {volume} is in use by")), "{refused:?}");

    // No machine is made with these, whatever becomes of the delete.
    let both = json!({ "mounts": [
        { "volume": volume, "path": "/a" }, { "volume": VolumeId::random(), "path": "/b" },
    ] });
    let mut deleted = pin!(fixture.act_on(&volume, VolumeAction::Delete));
    let begun = async {
        while !fixture
            .try_create(&SLEEP, both.clone())
            .await
            .is_err_and(|refused| refused.message.contains("is being deleted"))
        {}
    };
    tokio::select! {
        early = &mut deleted => panic!("{early:?}"),
        () = begun => {}
    }
    disk.unlock().unwrap();
    assert_eq!(deleted.await.unwrap().state, VolumeState::PendingDestroy);
}

#[tokio::test]
async fn full_volumes_whose_guest_does_not_see_them_grow_are_extended_once() {
    let fixture = Fixture::new().await;
    let guest = Behaviour { refuses_volumes: true, ..Behaviour::default() };
    fixture.host.set_faults(Faults { guest, ..Faults::default() });
    let (one, other) = (fixture.created_volume().await, fixture.created_volume().await);
    let growing = |volume: &VolumeId, limit: u32| {
        json!({ "mounts": [{
            "volume": volume, "path": "/data",
            "extend_threshold_percent": 5, "add_size_percent": 10, "size_gb_limit": limit,
        }] })
    };
    running_with(&fixture, growing(&one, 9)).await;
    // This one is asked about as often, and never grows.
    running_with(&fixture, growing(&other, 1)).await;
    fixture.until_volumes_in_time(|v| v.iter().any(|v| v.id == one && v.size_gb == 2)).await;
    let rounds = fixture.clock.unix_now() + Duration::from_secs(600);
    fixture.until_volumes_in_time(|_| fixture.clock.unix_now() > rounds).await;
    for volume in fixture.volumes().await {
        assert_eq!(volume.size_gb, if volume.id == one { 2 } else { 1 });
    }
}

#[tokio::test]
async fn an_update_keeps_the_volume_and_may_move_it() {
    let fixture = Fixture::new().await;
    let (volume, other) = (fixture.created_volume().await, fixture.created_volume().await);
    let machine = running_with(&fixture, mounted(&volume)).await;
    for mounts in [
        mounted(&other),
        json!({}),
        json!({ "mounts": [
        { "volume": volume, "path": "/a" }, { "volume": other, "path": "/b" },
    ] }),
    ] {
        let refused = fixture.update_to(&machine, config(mounts)).await.unwrap_err();
        assert!(refused.message.contains("can't be changed"), "{}", refused.message);
    }
    let moved = json!({ "mounts": [{ "volume": volume, "path": "/elsewhere" }] });
    fixture.update_to(&machine, config(moved)).await.unwrap();
    fixture.until(&machine, MachineState::Started).await;
    let shown = fixture.volume(&volume).await.unwrap();
    assert_eq!(shown.attached_machine_id, Some(machine));
}

#[tokio::test]
async fn a_volume_is_copied_whether_or_not_a_machine_runs_with_it() {
    let fixture = Fixture::new().await;
    let source = fixture.created_volume().await;
    let copy = |source: &VolumeId| CreateVolume { source: Some(source.clone()), ..new_volume() };
    let machine = running_with(&fixture, mounted(&source)).await;
    let asked = fixture.create_volume(copy(&source)).await.unwrap();
    fixture.until_volume(&asked.id, |v| v.state == VolumeState::Created).await;
    assert_eq!(fixture.host.guest(machine.as_str()).unwrap().frozen_volumes(), None);
    fixture.act(&machine, STOP).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    let asked = fixture.create_volume(CreateVolume { size_gb: 2, ..copy(&source) }).await.unwrap();
    let made = fixture.until_volume(&asked.id, |v| v.state == VolumeState::Created).await;
    assert_eq!((made.size_gb, made.encrypted), (2, false));
    let missing = fixture.create_volume(copy(&VolumeId::random())).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
    running_with(&fixture, mounted(&asked.id)).await;
}

#[tokio::test]
async fn volumes_have_no_more_space_than_there_is() {
    let mut fixture = Fixture::new().await;
    fixture.end().await;
    fixture.volume_limit = Some(3);
    fixture.start().await;
    let volume = fixture.created_volume().await;
    assert_eq!(fixture.offer(2).await, (true, Some(0)));
    assert_eq!(fixture.offer(3).await, (false, Some(2)));
    let large = CreateVolume { size_gb: 3, ..new_volume() };
    let refused = fixture.create_volume(large).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InsufficientCapacity);
    assert!(refused.message.contains("1 of 3 GB"), "{}", refused.message);
    let refused = fixture.act_on(&volume, extend(4)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InsufficientCapacity);
    let two = || fixture.create_volume(CreateVolume { size_gb: 2, ..new_volume() });
    let (one, other) = tokio::join!(two(), two());
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    let made = one.or(other).unwrap();
    fixture.until_volume(&made.id, |v| v.state == VolumeState::Created).await;
    fixture.act_on(&made.id, VolumeAction::Delete).await.unwrap();
    assert_eq!(fixture.offer(0).await, (true, Some(0)), "it can be undeleted");
    fixture.clock.advance(Duration::from_secs(24 * 3600));
    fixture.until_volumes_in_time(|volumes| volumes.len() == 1).await;
    fixture.act_on(&volume, extend(3)).await.unwrap();
}

#[tokio::test]
async fn what_was_accepted_has_its_space_also_in_the_next_server() {
    let mut fixture = Fixture::new().await;
    fixture.volume_limit = Some(6);
    fixture.restart_making_no_volumes().await;
    // As many that at least one waits for its turn, and has reserved nothing.
    for _ in 0..5 {
        fixture.create_volume(new_volume()).await.unwrap();
    }
    fixture.kill().await;
    fixture.start().await;
    let large = CreateVolume { size_gb: 2, ..new_volume() };
    let refused = fixture.create_volume(large).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InsufficientCapacity);
    fixture.let_volumes_be_made();
    let is_made = |volumes: &[Volume]| volumes.iter().all(|v| v.state == VolumeState::Created);
    fixture.until_volumes("five volumes", is_made).await;
    fixture.create_volume(new_volume()).await.unwrap();
}

#[tokio::test]
async fn the_use_of_volumes_is_asked_for_and_full_ones_are_extended_by_themselves() {
    let fixture = Fixture::new().await;
    let (plain, full) = (fixture.created_volume().await, fixture.created_volume().await);
    running_with(&fixture, mounted(&plain)).await;
    // A tenth of each is taken.
    let machine = running_with(
        &fixture,
        json!({ "mounts": [{
        "volume": full, "path": "/data",
        "extend_threshold_percent": 5, "add_size_gb": 2, "size_gb_limit": 4,
    }] }),
    )
    .await;
    fixture
        .until_volumes_in_time(|volumes| {
            let find = |id: &VolumeId| volumes.iter().find(|v| v.id == *id).unwrap();
            find(&plain).bytes_used > 0 && find(&full).size_gb == 3
        })
        .await;
    let told = fixture
        .until_that(&machine, |record| {
            record.machine.events.iter().flatten().any(|event| event.kind == "volume")
        })
        .await;
    let event = told.machine.events.iter().flatten().find(|e| e.kind == "volume").unwrap().clone();
    let message = event.told()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("extending it from 1 to 3 GB"), "{message}");
    fixture.assert_log_tells_all(&machine, "extended by itself").await;
    assert!(fixture.own_lines(&machine).iter().any(|(_, line)| *line == message));
    // What follows would pass the limit.
    fixture.until_volumes_in_time(|volumes| volumes.iter().any(|v| v.bytes_total == 3 << 30)).await;
    assert!(fixture.volumes().await.iter().all(|volume| volume.size_gb <= 3));
    assert_eq!(fixture.host.resizes(machine.as_str()).len(), 1);
}

#[tokio::test]
async fn two_volumes_of_a_machine_are_told_apart() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.created_volume().await, fixture.created_volume().await);
    let machine = running_with(
        &fixture,
        json!({ "mounts": [
        { "volume": one, "path": "/a" }, { "volume": other, "path": "/b" },
    ] }),
    )
    .await;
    fixture.act_on(&other, extend(2)).await.unwrap();
    assert_eq!(fixture.host.resizes(machine.as_str()), [(1, 2 << 30)]);
    assert_eq!(fixture.volume(&one).await.unwrap().bytes_total, 1 << 30);
    assert_eq!(fixture.volume(&other).await.unwrap().bytes_total, 2 << 30);
    destroy(&fixture, &machine).await;
    fixture.assert_volumes_are_free("").await;
}
