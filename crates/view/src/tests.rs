use std::time::Duration;

use caddis_api::{
    AppName, EventId, Machine, MachineState, RawConfig, RegionCode, UnixMillis, event::MachineEvent,
};
use serde_json::json;
use tokio::sync::broadcast::error::TryRecvError;

use super::*;

const RETENTION: Duration = Duration::from_secs(60);

fn view() -> View {
    View::new(ViewSettings {
        workers: Vec::new(),
        region: RegionCode::from_trusted("local"),
        suspected_after: Duration::from_secs(3),
        unreachable_after: Duration::from_secs(10),
        destroyed_retention: RETENTION,
    })
}

fn worker(name: &str) -> WorkerId {
    WorkerId::from_trusted(name)
}

fn id() -> MachineId {
    MachineId::from_trusted("148ed193b95389")
}

fn config(image: &str) -> RawConfig {
    [("image".to_owned(), json!(image))].into_iter().collect::<serde_json::Map<_, _>>().into()
}

fn event(number: u64) -> Arc<MachineEvent> {
    let event = json!({
        "id": EventId::following(None, UnixMillis::from_seconds(number)),
        "type": "exit", "status": "stopped", "source": "flyd",
        "timestamp": number,
    });
    Arc::new(serde_json::from_value(event).unwrap())
}

/// A record with its configuration.
fn record(on: &str, (epoch, revision): (u64, u64), state: MachineState) -> MachineRecord {
    let machine: Machine = serde_json::from_value(json!({
        "id": id(), "name": "m", "state": state.as_str(), "region": "local",
        "image_ref": { "registry": "", "repository": "", "digest": "" },
        "instance_id": "01", "version": "01", "private_ip": "", "created_at": "", "updated_at": "",
        "host_status": "ok", "checks": [], "events": [],
    }))
    .unwrap();
    MachineRecord {
        worker: worker(on),
        epoch,
        revision,
        config_revision: 1,
        app: AppName::from_trusted("app"),
        launched: true,
        booted_at: UnixMillis::EPOCH,
        started_at: UnixMillis::EPOCH,
        lease: None,
        machine: Machine { config: Some(config("one")), ..machine },
    }
}

fn with_events(mut record: MachineRecord, events: &[&Arc<MachineEvent>]) -> MachineRecord {
    record.machine.events = Some(events.iter().map(|event| Arc::clone(event)).collect());
    record
}

fn told(view: &View) -> Vec<u64> {
    view.get(&id())
        .unwrap()
        .record
        .machine
        .events
        .iter()
        .flatten()
        .map(|event| event.timestamp.as_u64())
        .collect()
}

const STARTED: MachineState = MachineState::Started;

#[test]
fn a_status_takes_the_configuration_that_is_known_and_asks_for_another() {
    let view = view();
    let status = |revision| record("a", (1, revision), STARTED).status_only();
    assert!(view.apply(status(1)).is_none(), "nothing is known of it");
    assert!(view.get(&id()).is_none());
    view.apply(record("a", (1, 2), STARTED)).unwrap();
    let shown = view.apply(status(3)).unwrap();
    assert_eq!((shown.record.revision, &shown.record.machine.config), (3, &Some(config("one"))));
    let mut other = status(4);
    other.config_revision = 4;
    assert!(view.apply(other.clone()).is_none());
    assert_eq!(view.get(&id()).unwrap().record.revision, 3, "shown as it was until that is there");
    let mut whole = record("a", (1, 4), STARTED);
    (whole.config_revision, whole.machine.config) = (4, Some(config("two")));
    assert_eq!(view.apply(whole).unwrap().record.machine.config, Some(config("two")));
    assert!(view.apply(other).is_some(), "late");
    // A worker that began anew counts otherwise.
    let mut moved = status(9);
    moved.epoch = 2;
    moved.config_revision = 4;
    assert!(view.apply(moved).is_none(), "it is of another placement");
}

#[test]
fn events_come_together_whatever_came_first_or_was_lost() {
    let view = view();
    let [one, two, three, four] = [event(1), event(2), event(3), event(4)];
    view.apply(with_events(record("a", (1, 1), STARTED), &[&one])).unwrap();
    // The delta of the second was lost.
    view.apply(with_events(record("a", (1, 3), STARTED).status_only(), &[&three])).unwrap();
    assert_eq!(told(&view), [3, 1]);
    let mut changes = view.changes();
    view.apply(with_events(record("a", (1, 2), STARTED).status_only(), &[&two])).unwrap();
    assert_eq!(told(&view), [3, 2, 1], "late");
    assert_eq!(changes.try_recv(), Ok(Change::Machine(id())));
    view.apply(with_events(record("a", (1, 3), STARTED), &[&three, &two, &one])).unwrap();
    assert_eq!(changes.try_recv(), Err(TryRecvError::Empty), "nothing is new");
    view.apply(with_events(record("a", (1, 4), STARTED), &[&four, &three, &two, &one])).unwrap();
    assert_eq!(told(&view), [4, 3, 2, 1]);
    // No more than are shown, and none comes back that was left out.
    let many: Vec<_> = (5..=30).map(event).collect();
    view.apply(with_events(record("a", (1, 5), STARTED), &many.iter().rev().collect::<Vec<_>>()))
        .unwrap();
    assert_eq!(told(&view), (11..=30).rev().collect::<Vec<_>>());
    view.apply(with_events(record("a", (1, 5), STARTED), &[&one])).unwrap();
    assert_eq!(told(&view).len(), 20);
    assert_eq!(told(&view).last(), Some(&11));
}

#[test]
fn a_listing_forgets_what_is_gone_and_never_a_machine_that_was_just_placed_there() {
    let view = view();
    view.apply(record("a", (1, 900), STARTED)).unwrap();
    let begin = view.machines.begin_listing();
    // First heard of in this listing.
    view.take_in(record("b", (2, 1), STARTED), false).unwrap();
    view.end_listing(&worker("b"), begin);
    assert_eq!(view.get(&id()).unwrap().record.worker, worker("b"));
    // What the earlier host tells is no more than a copy, however often it has changed.
    let begin = view.machines.begin_listing();
    view.take_in(record("a", (1, 901), STARTED), false).unwrap();
    view.end_listing(&worker("a"), begin);
    assert_eq!(view.get(&id()).unwrap().record.worker, worker("b"));
    assert_eq!(view.superseded(), [Superseded { machine: id(), worker: worker("a"), epoch: 2 }]);
    let begin = view.machines.begin_listing();
    let mut watcher = view.watch_app("app");
    view.end_listing(&worker("b"), begin);
    assert!(view.get(&id()).is_none());
    assert_eq!(watcher.try_recv(), Ok(id()));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_destroyed_takes_nothing_of_the_machine_with_it() {
    let view = view();
    view.apply(record("a", (1, 1), MachineState::Destroyed)).unwrap();
    view.apply(record("b", (2, 1), STARTED)).unwrap();
    tokio::time::advance(RETENTION * 2).await;
    view.apply(record("b", (2, 2), STARTED)).unwrap();
    assert_eq!(view.get(&id()).unwrap().record.revision, 2);
    view.apply(record("b", (2, 3), MachineState::Destroyed)).unwrap();
    tokio::time::advance(RETENTION * 2).await;
    let mut other = record("b", (1, 1), STARTED);
    other.machine.id = MachineId::from_trusted("148ed193b95380");
    view.apply(other).unwrap();
    assert!(view.get(&id()).is_none());
}

#[tokio::test(start_paused = true)]
async fn volumes_of_a_host_that_is_silent_are_shown_as_such() {
    let view = view();
    let announcement = Announcement {
        worker: worker("a"),
        region: RegionCode::from_trusted("local"),
        incarnation: "p".to_owned(),
        sequence: 0,
        draining: false,
        volumes: 1,
    };
    view.announced(&announcement);
    let volume: caddis_api::Volume = serde_json::from_value(json!({
        "id": "vol_1", "name": "data", "state": "created", "size_gb": 1, "region": "local",
        "zone": "0000", "encrypted": true, "attached_machine_id": null, "created_at": "",
        "fstype": "ext4", "snapshot_retention": 5, "auto_backup_enabled": true,
    }))
    .unwrap();
    let mut changes = view.changes();
    view.apply_volume(VolumeRecord {
        worker: worker("a"),
        incarnation: "p".to_owned(),
        revision: 1,
        app: AppName::from_trusted("app"),
        updated_at: UnixMillis::EPOCH,
        volume,
    });
    let id: VolumeId = "vol_1".parse().unwrap();
    assert_eq!(changes.try_recv(), Ok(Change::Volume(id.clone())));
    let shown = || view.volume(&id).unwrap().volume.host_status;
    assert_eq!(shown(), "ok");
    for (after, status) in [(3, "unknown"), (7, "unreachable")] {
        tokio::time::advance(Duration::from_secs(after)).await;
        view.hosts.look();
        assert_eq!(shown(), status);
        assert_eq!(view.volumes_of_app("app")[0].volume.host_status, status);
    }
    view.announced(&announcement);
    assert_eq!(shown(), "ok");
}

#[tokio::test]
async fn volumes_are_synced_when_those_of_all_first_workers_were_listed() {
    let view = View::new(ViewSettings {
        workers: vec![worker("a"), worker("b")],
        region: RegionCode::from_trusted("local"),
        suspected_after: Duration::from_secs(3),
        unreachable_after: Duration::from_secs(10),
        destroyed_retention: RETENTION,
    });
    view.end_listing_volumes(&worker("a"), 0, ("p", 0));
    assert!(!*view.volumes_synced.borrow());
    view.end_listing_volumes(&worker("b"), 0, ("p", 0));
    view.volumes_synced().await;
}
