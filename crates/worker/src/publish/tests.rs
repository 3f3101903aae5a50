use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use caddis_api::{
    AppName, Machine, MachineState, RegionCode, UnixMillis, event::MachineEvent, machine::ImageRef,
};
use caddis_bus::{
    AskWindow, BusError, Handler, InProcessBus, Published, Serving,
    message::{Announcement, decode},
};
use caddis_view::{View, ViewSettings};
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::event::{self, Source};

const TIMEOUT: Duration = Duration::from_secs(60);

fn id(number: u64) -> MachineId {
    MachineId::from_trusted(format!("{number:014x}"))
}

fn config(bytes: usize) -> RawConfig {
    let fields: Map<String, Value> =
        [("image".to_owned(), json!("x".repeat(bytes)))].into_iter().collect();
    fields.into()
}

fn record(number: u64, revision: u64, config: &RawConfig) -> MachineRecord {
    let mut record: MachineRecord = MachineRecord {
        worker: WorkerId::from_trusted("w"),
        epoch: 1,
        revision,
        config_revision: 0,
        app: AppName::from_trusted("app"),
        launched: true,
        booted_at: UnixMillis::EPOCH,
        started_at: UnixMillis::EPOCH,
        lease: None,
        machine: Machine { id: id(number), config: Some(config.clone()), ..machine() },
    };
    record.machine.events = Some(Vec::new());
    record
}

fn machine() -> Machine {
    serde_json::from_value(json!({
        "id": "00000000000000", "name": "m", "state": "started", "region": "local",
        "image_ref": { "registry": "", "repository": "", "digest": "" },
        "instance_id": "01", "version": "01", "private_ip": "", "created_at": "", "updated_at": "",
        "host_status": "ok", "checks": [],
    }))
    .unwrap()
}

/// The largest event that a worker makes.
fn event(number: u64) -> Arc<MachineEvent> {
    let long = || "é".repeat(1 << 13);
    let told =
        json!({ "error": long(), "message": long(), "timing": vec![json!({ "step": "s" }); 1000] });
    Arc::new(event::new(
        None,
        UnixMillis::new(number),
        Source::Worker,
        "exit",
        MachineState::Stopped,
        told,
    ))
}

/// A bus on which a message is sent only when it may be.
#[derive(Clone)]
struct Gated {
    bus: InProcessBus,
    may_send: Arc<Semaphore>,
}

#[async_trait]
impl Bus for Gated {
    async fn request(&self, _: &str, _: Bytes, _: Duration) -> Result<Bytes, BusError> {
        unreachable!()
    }

    async fn ask_all(&self, _: &str, _: Bytes, _: AskWindow) -> Result<Vec<Bytes>, BusError> {
        unreachable!()
    }

    async fn serve(&self, _: &str, _: Arc<dyn Handler>) -> Result<Serving, BusError> {
        unreachable!()
    }

    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        self.may_send.acquire().await.unwrap().forget();
        self.bus.publish(subject, payload).await
    }

    async fn subscribe(&self, subject: &str) -> Result<mpsc::Receiver<Published>, BusError> {
        self.bus.subscribe(subject).await
    }
}

async fn next(deltas: &mut mpsc::Receiver<Published>) -> Delta {
    let published = tokio::time::timeout(TIMEOUT, deltas.recv()).await.unwrap().unwrap();
    assert!(published.payload.len() <= MAX_MESSAGE_BYTES);
    decode(DELTAS, &published.payload).unwrap()
}

fn publisher(bus: impl Bus) -> Publisher {
    Publisher::new(WorkerId::from_trusted("w"), Arc::new(bus))
}

#[tokio::test]
async fn a_delta_tells_what_is_new_since_the_one_before() {
    let bus = InProcessBus::new();
    let mut deltas = bus.subscribe(DELTAS).await.unwrap();
    let publisher = publisher(bus);
    let (first, second) = (config(1), config(2));
    let told = |delta: &Delta| {
        let events = delta.record.machine.events.iter().flatten();
        let events: Vec<_> = events.map(|event| event.timestamp.as_u64()).collect();
        (
            delta.sequence,
            delta.record.config_revision,
            delta.record.machine.config.is_some(),
            events,
        )
    };

    let [one, two, three] = [event(1), event(2), event(3)];
    let mut now = record(1, 10, &first);
    now.machine.events = Some(vec![one.clone()]);
    publisher.publish(now.clone());
    assert_eq!(told(&next(&mut deltas).await), (1, 10, true, vec![1]));
    now.revision = 11;
    publisher.publish(now.clone());
    assert_eq!(
        told(&next(&mut deltas).await),
        (2, 10, false, vec![]),
        "progress: neither events nor configuration"
    );
    now.revision = 12;
    now.machine.events = Some(vec![three, two, one]);
    publisher.publish(now.clone());
    assert_eq!(told(&next(&mut deltas).await), (3, 10, false, vec![3, 2]));
    (now.revision, now.machine.config) = (13, Some(second));
    publisher.publish(now.clone());
    assert_eq!(told(&next(&mut deltas).await), (4, 13, true, vec![]));
    (now.revision, now.machine.config) = (14, Some(config(LARGE_CONFIG_BYTES)));
    publisher.publish(now.clone());
    assert_eq!(told(&next(&mut deltas).await), (5, 14, false, vec![]), "it is asked for");
    assert_eq!(publisher.get(&id(1)).unwrap().machine.config, now.machine.config);
    assert_eq!(publisher.known(now).config_revision, 14);
}

#[tokio::test]
async fn a_bus_that_stands_still_has_the_newest_state_of_each_machine_wait_and_no_more() {
    let gated = Gated { bus: InProcessBus::new(), may_send: Arc::new(Semaphore::new(0)) };
    let mut deltas = gated.subscribe(DELTAS).await.unwrap();
    let publisher = publisher(gated.clone());
    let config = config(1);
    let mut most = 0;
    for round in 0..100 {
        for number in 0..100 {
            let mut now = record(number, round + 1, &config);
            now.machine.events = Some(vec![event(round * 100 + number + 1)]);
            publisher.publish(now);
            publisher.announce(&RegionCode::from_trusted("local"), false, 0);
            most = most.max(publisher.state().outbox.len());
        }
        tokio::task::yield_now().await;
    }
    assert!(most <= OUTBOX, "{most} messages wait");
    gated.may_send.add_permits(100_000);
    let mut newest = BTreeMap::new();
    let mut sequence = 0;
    while newest.len() < 100 || newest.values().any(|revision| *revision < 100) {
        let delta = next(&mut deltas).await;
        assert_eq!(delta.sequence, sequence + 1, "no hole, though not all of them were sent");
        sequence = delta.sequence;
        newest.insert(delta.record.machine.id.clone(), delta.record.revision);
    }
}

#[tokio::test]
async fn an_announcement_tells_the_number_of_the_last_delta_before_it() {
    let bus = InProcessBus::new();
    let (mut deltas, mut announcements) =
        (bus.subscribe(DELTAS).await.unwrap(), bus.subscribe(ANNOUNCEMENTS).await.unwrap());
    let publisher = publisher(bus);
    publisher.publish(record(1, 1, &config(1)));
    publisher.announce(&RegionCode::from_trusted("local"), true, 7);
    publisher.publish(record(1, 2, &config(1)));
    let published = announcements.recv().await.unwrap();
    let announcement: Announcement = decode(ANNOUNCEMENTS, &published.payload).unwrap();
    assert_eq!((announcement.sequence, announcement.draining), (1, true));
    assert_eq!((next(&mut deltas).await.sequence, next(&mut deltas).await.sequence), (1, 2));
}

#[tokio::test]
async fn the_fullest_record_and_the_fullest_page_fit_a_message_and_a_listing_has_all() {
    let bus = InProcessBus::new();
    let mut deltas = bus.subscribe(DELTAS).await.unwrap();
    let publisher = publisher(bus);
    let view = View::new(ViewSettings {
        workers: Vec::new(),
        region: RegionCode::from_trusted("local"),
        suspected_after: TIMEOUT,
        unreachable_after: TIMEOUT,
        destroyed_retention: TIMEOUT,
    });
    let full = |number: u64, bytes: usize| {
        let mut record = record(number, 1, &config(bytes));
        record.machine.events =
            Some((0..20).rev().map(|time| event(20 * number + time + 1)).collect());
        record.machine.name = "n".repeat(63);
        record.app = AppName::from_trusted("a".repeat(63));
        let labels = [("label".to_owned(), "x".repeat(1000))].into_iter().collect();
        record.machine.image_ref = ImageRef { labels: Some(labels), ..ImageRef::default() };
        record
    };
    // Of each size about those that matter.
    let sizes = [1, LARGE_CONFIG_BYTES - 2000, LARGE_CONFIG_BYTES + 1, MAX_MESSAGE_BYTES, 6 << 20];
    for number in 0..60 {
        publisher.publish(full(number, sizes[number as usize % sizes.len()]));
        let delta = next(&mut deltas).await;
        assert_eq!(delta.record.machine.config.is_some(), number as usize % sizes.len() < 2);
    }
    let (mut after, mut seen) = (None, 0);
    loop {
        let Page { records, more, sequence } = publisher.list(after.as_ref());
        assert_eq!(sequence, 60);
        assert!(encode(&records).len() + 1000 <= MAX_MESSAGE_BYTES);
        after = records.last().map(|record| record.machine.id.clone());
        for record in records {
            seen += 1;
            if record.is_status_only() {
                let id = record.machine.id.clone();
                assert!(view.apply(record).is_none(), "it must be asked for");
                view.apply(publisher.get(&id).unwrap()).unwrap();
            } else {
                view.apply(record).unwrap();
            }
        }
        if !more {
            break;
        }
    }
    assert_eq!((seen, view.count_of_app(&"a".repeat(63))), (60, 60));
}
