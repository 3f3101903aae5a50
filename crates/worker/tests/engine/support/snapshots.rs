//! Snapshots of volumes.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, path::PathBuf, time::Duration};

use caddis_api::{
    ApiError, SnapshotId, VolumeId,
    volume::{SnapshotStatus, VolumeSnapshot},
};
use caddis_bus::message::{CreateVolume, SnapshotSource, WorkerReply, WorkerRequest};

use super::{Fixture, TIMEOUT, new_volume};

/// A volume that is made from a snapshot.
pub fn restored(volume: &VolumeId, snapshot: &SnapshotId) -> CreateVolume {
    let source = SnapshotSource { snapshot: snapshot.clone(), volume: volume.clone() };
    CreateVolume { snapshot: Some(source), ..new_volume() }
}

impl Fixture {
    async fn about_snapshots(
        &self,
        request: WorkerRequest,
    ) -> Result<Vec<VolumeSnapshot>, ApiError> {
        match self.ask(request).await? {
            WorkerReply::Snapshots { records } => {
                Ok(records.into_iter().map(|record| record.snapshot).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Has a snapshot be taken.
    pub async fn take_snapshot(&self, volume: &VolumeId) -> Result<SnapshotId, ApiError> {
        let id = SnapshotId::random();
        self.take_snapshot_as(volume, &id).await.map(|_| id)
    }

    /// Has one of this id be taken.
    pub async fn take_snapshot_as(
        &self,
        volume: &VolumeId,
        id: &SnapshotId,
    ) -> Result<VolumeSnapshot, ApiError> {
        let (volume, snapshot) = (volume.clone(), id.clone());
        let taken = self.about_snapshots(WorkerRequest::TakeSnapshot { volume, snapshot }).await?;
        Ok(taken.into_iter().next().unwrap())
    }

    /// One that is there.
    pub async fn created_snapshot(&self, volume: &VolumeId) -> SnapshotId {
        let id = self.take_snapshot(volume).await.unwrap();
        self.until_snapshot(&id, |snapshot| snapshot.status == SnapshotStatus::Created).await;
        id
    }

    /// The snapshots of a volume.
    pub async fn snapshots(&self, volume: &VolumeId) -> Vec<VolumeSnapshot> {
        let list = WorkerRequest::ListSnapshots { volume: volume.clone() };
        self.about_snapshots(list).await.unwrap()
    }

    /// A snapshot, if it is shown.
    pub async fn snapshot(&self, id: &SnapshotId) -> Option<VolumeSnapshot> {
        let get = WorkerRequest::GetSnapshot { snapshot: id.clone() };
        self.about_snapshots(get).await.unwrap().into_iter().next()
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(&self, volume: &VolumeId, id: &SnapshotId) {
        let (volume, snapshot) = (volume.clone(), id.clone());
        let delete = WorkerRequest::DeleteSnapshot { volume, snapshot };
        assert_eq!(self.about_snapshots(delete).await.unwrap(), []);
    }

    /// Waits until this holds of a snapshot, which is looked at when the worker announces a change
    /// of its volume.
    pub async fn until_snapshot(
        &self,
        id: &SnapshotId,
        holds: impl Fn(&VolumeSnapshot) -> bool,
    ) -> VolumeSnapshot {
        let mut announcements = self.announcements().await;
        let found = async {
            loop {
                if let Some(found) = self.snapshot(id).await.filter(&holds) {
                    return found;
                }
                announcements.recv().await.unwrap();
            }
        };
        match tokio::time::timeout(TIMEOUT, found).await {
            Ok(found) => found,
            Err(_) => panic!("not reached: {:#?}", self.snapshot(id).await),
        }
    }

    /// The same, while time passes.
    pub async fn until_snapshots_in_time(
        &self,
        volume: &VolumeId,
        holds: impl Fn(&[VolumeSnapshot]) -> bool,
    ) -> Vec<VolumeSnapshot> {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        loop {
            let snapshots = self.snapshots(volume).await;
            if holds(&snapshots) {
                return snapshots;
            }
            assert!(tokio::time::Instant::now() < deadline, "{snapshots:#?}");
            self.clock.advance(Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the store has no more than so many objects, while time passes.
    pub async fn until_objects_in_time(&self, most: usize) {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        while self.stored_objects() > most {
            let objects = self.stored_objects();
            assert!(tokio::time::Instant::now() < deadline, "{objects} objects in the store");
            self.clock.advance(Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where the snapshots are.
    pub fn snapshot_files(&self) -> PathBuf {
        self.directory.path().join("snapshots")
    }

    /// Has the snapshot store be away from now on, or back.
    pub fn put_store_away(&self, away: bool) {
        let (place, elsewhere) = (self.snapshot_files(), self.directory.path().join("elsewhere"));
        if away {
            fs::rename(&place, &elsewhere).unwrap();
            // Nothing can be in it.
            fs::write(&place, "").unwrap();
        } else {
            fs::remove_file(&place).unwrap();
            fs::rename(&elsewhere, &place).unwrap();
        }
    }

    /// The objects of the store with this in their path.
    pub fn stored_files(&self, part: &str) -> Vec<PathBuf> {
        let (mut left, mut files) = (vec![self.snapshot_files()], Vec::new());
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => left.push(entry.path()),
                    false => files.push(entry.path()),
                }
            }
        }
        files.retain(|file| file.to_string_lossy().contains(part));
        files
    }

    /// How many objects the store has.
    pub fn stored_objects(&self) -> usize {
        self.stored_files("").len()
    }

    /// How many snapshots the database has.
    pub fn recorded_snapshots(&self) -> i64 {
        let database = rusqlite::Connection::open(self.database()).unwrap();
        database.query_row("SELECT count(*) FROM snapshots", [], |row| row.get(0)).unwrap()
    }

    /// Waits until a snapshot is neither recorded nor in the store any more, while time passes.
    pub async fn until_forgotten(&self, id: &SnapshotId) {
        let is_recorded = || {
            let database = rusqlite::Connection::open(self.database()).unwrap();
            let text = "SELECT count(*) FROM snapshots WHERE id = ?1";
            let count: i64 = database.query_row(text, [id.as_str()], |row| row.get(0)).unwrap();
            count > 0
        };
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        while is_recorded() || !self.stored_files(id.as_str()).is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "{id} is not removed");
            self.clock.advance(Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nobody has the files of a volume open: a program that is just ending may.
    pub async fn until_unused(&self, volume: &VolumeId) {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        while self.has_user(volume) {
            assert!(tokio::time::Instant::now() < deadline, "{volume} stays in use");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether anybody has the files of a volume open.
    pub fn has_user(&self, volume: &VolumeId) -> bool {
        let disk = fs::File::open(self.volume_files(volume).join("disk.qcow2")).unwrap();
        disk.try_lock().is_err()
    }
}
