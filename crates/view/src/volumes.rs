//! The volumes: their records, by id and by app. Workers don't publish each change of a volume:
//! they count them, and are listed by who has not seen the last one.

use std::collections::{BTreeMap, HashMap};

use caddis_api::{VolumeId, WorkerId};
use caddis_bus::message::VolumeRecord;
use parking_lot::RwLock;

/// What was seen of a worker's volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    incarnation: String,
    revision: u64,
}

struct Entry {
    record: VolumeRecord,
    /// When it was last heard of, by the count.
    heard: u64,
}

#[derive(Default)]
struct Tables {
    volumes: BTreeMap<VolumeId, Entry>,
    /// Of workers that were listed.
    seen: HashMap<WorkerId, Seen>,
    count: u64,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Volumes(RwLock<Tables>);

impl Volumes {
    pub fn get(&self, id: &VolumeId) -> Option<VolumeRecord> {
        self.0.read().volumes.get(id).map(|entry| entry.record.clone())
    }

    /// Those of which this holds, by id.
    pub fn all(&self, holds: impl Fn(&VolumeRecord) -> bool) -> Vec<VolumeRecord> {
        let tables = self.0.read();
        let records = tables.volumes.values().map(|entry| &entry.record);
        records.filter(|record| holds(record)).cloned().collect()
    }

    /// How many of this app are not deleted.
    pub fn count_of_app(&self, app: &str) -> usize {
        let tables = self.0.read();
        let records = tables.volumes.values().map(|entry| &entry.record);
        records.filter(|record| record.app == app && !record.volume.state.is_deleted()).count()
    }

    /// How many of this worker are not deleted.
    pub fn count_of_worker(&self, worker: &WorkerId) -> usize {
        let tables = self.0.read();
        let records = tables.volumes.values().map(|entry| &entry.record);
        records.filter(|row| row.worker == *worker && !row.volume.state.is_deleted()).count()
    }

    /// Whether a worker was listed since we began.
    pub fn is_listed(&self, worker: &WorkerId) -> bool {
        self.0.read().seen.contains_key(worker)
    }

    /// Whether a worker has to be listed that says it has made so many changes.
    pub fn is_missing(&self, worker: &WorkerId, incarnation: &str, revision: u64) -> bool {
        let tables = self.0.read();
        tables
            .seen
            .get(worker)
            .is_none_or(|seen| seen.incarnation != incarnation || seen.revision < revision)
    }

    /// Takes a record in unless a newer one is here. Whether it is another than before.
    pub fn apply(&self, record: VolumeRecord) -> bool {
        let mut tables = self.0.write();
        tables.count += 1;
        let heard = tables.count;
        let known_process = tables
            .seen
            .get(&record.worker)
            .map(|seen| seen.incarnation.clone())
            .unwrap_or_default();
        let Some(entry) = tables.volumes.get_mut(&record.volume.id) else {
            tables.volumes.insert(record.volume.id.clone(), Entry { record, heard });
            return true;
        };
        entry.heard = heard;
        let known = &entry.record;
        let is_older = match known.incarnation == record.incarnation {
            // One of the same revision may tell of its use as it is by now.
            true => record.revision < known.revision,
            // Of two processes of a worker the one that was listed last is the later.
            false => known.incarnation == known_process,
        };
        if is_older || *known == record {
            return false;
        }
        entry.record = record;
        true
    }

    /// A listing of a worker begins. Give what comes back to [`Self::end_listing`].
    pub fn begin_listing(&self) -> u64 {
        self.0.read().count
    }

    /// A worker's process has begun to list its volumes: its records are the newest from now on.
    pub fn is_process(&self, worker: &WorkerId, incarnation: &str) {
        let mut tables = self.0.write();
        let seen = Seen { incarnation: incarnation.to_owned(), revision: 0 };
        match tables.seen.get_mut(worker) {
            Some(known) if known.incarnation == incarnation => {}
            Some(known) => *known = seen,
            // It was not listed as a whole.
            None => {}
        }
    }

    /// A listing is complete, and contains all changes up to a number: volumes of the worker that
    /// were not heard of since its begin are gone.
    pub fn end_listing(&self, worker: &WorkerId, begin: u64, incarnation: &str, revision: u64) {
        let mut tables = self.0.write();
        tables.volumes.retain(|_, entry| entry.record.worker != *worker || entry.heard > begin);
        let seen = Seen { incarnation: incarnation.to_owned(), revision };
        tables.seen.insert(worker.clone(), seen);
    }
}

#[cfg(test)]
mod tests {
    use caddis_api::{AppName, UnixMillis, Volume, volume::VolumeState};
    use serde_json::json;

    use super::*;

    fn worker(name: &str) -> WorkerId {
        WorkerId::from_trusted(name)
    }

    fn id(text: &str) -> VolumeId {
        text.parse().unwrap()
    }

    fn record(volume: &str, (process, revision): (&str, u64), size_gb: u32) -> VolumeRecord {
        let volume: Volume = serde_json::from_value(json!({
            "id": volume, "name": "data", "state": "created", "size_gb": size_gb,
            "region": "local", "zone": "0000", "encrypted": true, "attached_machine_id": null,
            "created_at": "", "fstype": "ext4", "snapshot_retention": 5,
            "auto_backup_enabled": true,
        }))
        .unwrap();
        VolumeRecord {
            worker: worker("a"),
            incarnation: process.to_owned(),
            revision,
            app: AppName::from_trusted("app"),
            updated_at: UnixMillis::EPOCH,
            volume,
        }
    }

    fn size(volumes: &Volumes) -> u32 {
        volumes.get(&id("vol_1")).unwrap().volume.size_gb
    }

    #[test]
    fn the_newer_of_two_records_stays() {
        let volumes = Volumes::default();
        assert!(volumes.apply(record("vol_1", ("p", 2), 2)));
        assert!(!volumes.apply(record("vol_1", ("p", 1), 1)), "late");
        assert!(!volumes.apply(record("vol_1", ("p", 2), 2)), "the same");
        assert_eq!(size(&volumes), 2);
        assert!(volumes.apply(record("vol_1", ("p", 3), 3)));
        let mut used = record("vol_1", ("p", 3), 3);
        used.volume.bytes_used = 7;
        assert!(volumes.apply(used), "its use as it is by now");
        assert_eq!(volumes.get(&id("vol_1")).unwrap().volume.bytes_used, 7);
    }

    #[test]
    fn records_of_the_process_that_was_listed_last_count() {
        let volumes = Volumes::default();
        volumes.apply(record("vol_1", ("first", 9), 1));
        volumes.end_listing(&worker("a"), 0, "first", 9);
        assert!(!volumes.apply(record("vol_1", ("other", 1), 2)), "nobody knows that it is later");
        volumes.is_process(&worker("a"), "second");
        assert!(volumes.apply(record("vol_1", ("second", 1), 3)));
        assert!(!volumes.apply(record("vol_1", ("first", 10), 4)), "of the process before");
        assert_eq!(size(&volumes), 3);
        assert!(volumes.is_missing(&worker("a"), "second", 1), "it was not listed yet");
        volumes.end_listing(&worker("a"), 0, "second", 1);
        assert!(!volumes.is_missing(&worker("a"), "second", 1));
    }

    #[test]
    fn an_announcement_tells_whether_something_was_missed() {
        let volumes = Volumes::default();
        let missing = |process: &str, revision| volumes.is_missing(&worker("a"), process, revision);
        assert!(missing("p", 0), "it was never listed");
        assert!(!volumes.is_listed(&worker("a")));
        volumes.end_listing(&worker("a"), 0, "p", 3);
        assert!(volumes.is_listed(&worker("a")));
        assert!(!missing("p", 3) && !missing("p", 2));
        assert!(missing("p", 4) && missing("q", 1));
    }

    #[test]
    fn a_listing_forgets_what_is_gone_and_never_what_was_just_made() {
        let volumes = Volumes::default();
        volumes.apply(record("vol_1", ("p", 1), 1));
        let mut elsewhere = record("vol_9", ("p", 1), 1);
        elsewhere.worker = worker("b");
        volumes.apply(elsewhere);
        let begin = volumes.begin_listing();
        // Made while it is listed, and not contained in its pages.
        volumes.apply(record("vol_2", ("p", 2), 1));
        volumes.end_listing(&worker("a"), begin, "p", 1);
        let left: Vec<_> = volumes.all(|_| true).into_iter().map(|row| row.volume.id).collect();
        assert_eq!(left, [id("vol_2"), id("vol_9")]);
        assert!(volumes.is_missing(&worker("a"), "p", 2), "it is listed again");
    }

    #[test]
    fn volumes_of_an_app_are_counted_without_deleted_ones() {
        let volumes = Volumes::default();
        volumes.apply(record("vol_1", ("p", 1), 1));
        let mut deleted = record("vol_2", ("p", 2), 1);
        deleted.volume.state = VolumeState::PendingDestroy;
        volumes.apply(deleted);
        assert_eq!((volumes.count_of_app("app"), volumes.count_of_app("other")), (1, 0));
    }
}
