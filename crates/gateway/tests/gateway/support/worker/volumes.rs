//! Volumes of the scripted worker: there at once, and attached as soon as a machine has them.

use caddis_api::{
    ApiError, ErrorCode, MachineId, SnapshotId, UnixMillis, Volume, VolumeId, WorkerId,
    config::Mount,
    volume::{SnapshotStatus, VolumeSnapshot, VolumeState, zone_of},
};
use caddis_bus::message::{
    CreateVolume, SnapshotRecord, VolumeAction, VolumeRecord, WorkerReply, WorkerRequest,
    WorkerResult,
};

use super::State;

/// Volumes per page of a listing.
const PAGE: usize = 2;

pub fn new_volume(create: &CreateVolume, worker: &WorkerId) -> Volume {
    Volume {
        id: create.id.clone(),
        name: create.name.clone(),
        state: match (&create.source, &create.snapshot) {
            (Some(_), _) => VolumeState::Hydrating,
            (_, Some(_)) => VolumeState::Restoring,
            _ => VolumeState::Created,
        },
        size_gb: create.size_gb,
        region: create.region.clone(),
        zone: zone_of(worker),
        encrypted: create.encrypted,
        attached_machine_id: None,
        attached_alloc_id: None,
        created_at: "2026-03-31T06:08:08.000Z".to_owned(),
        fstype: create.filesystem,
        block_size: Some(0),
        blocks: Some(0),
        blocks_free: Some(0),
        blocks_avail: Some(0),
        bytes_used: 0,
        bytes_total: 0,
        snapshot_retention: create.snapshot_retention,
        auto_backup_enabled: create.auto_backup_enabled,
        host_status: "ok".to_owned(),
        kind: "local".to_owned(),
        generation: 0,
        last_snapshot_at: None,
        bytes_since_snapshot: None,
        deleted_until: None,
        operation: None,
    }
}

/// The `count`th that it takes.
fn new_snapshot(of: &VolumeRecord, id: SnapshotId, count: usize) -> SnapshotRecord {
    SnapshotRecord {
        volume: of.volume.id.clone(),
        name: of.volume.name.clone(),
        app: of.app.clone(),
        filesystem: of.volume.fstype,
        encrypted: of.volume.encrypted,
        snapshot: VolumeSnapshot {
            id,
            size: 0,
            added_size: None,
            volume_size: u64::from(of.volume.size_gb) << 30,
            digest: String::new(),
            created_at: format!("2026-03-31T06:08:{count:02}.000Z"),
            status: SnapshotStatus::Waiting,
            retention_days: of.volume.snapshot_retention,
            frozen_ms: None,
            operation: None,
        },
    }
}

impl State {
    /// Carries out what is about volumes.
    pub(super) fn volumes(&mut self, worker: &WorkerId, request: WorkerRequest) -> WorkerResult {
        match request {
            WorkerRequest::CreateVolume(create) => {
                if let Some(error) = self.volume_errors.pop_front() {
                    return Err(error);
                }
                if !self.volumes.contains_key(&create.id) {
                    let record = VolumeRecord {
                        worker: worker.clone(),
                        incarnation: self.incarnation.clone(),
                        revision: 0,
                        app: create.app.clone(),
                        updated_at: UnixMillis::new(1_700_000_000_000),
                        volume: new_volume(&create, worker),
                    };
                    self.volumes.insert(create.id.clone(), record);
                }
                self.changed(&create.id)
            }
            WorkerRequest::ActOnVolume { volume, action } => {
                if let Some(error) = self.volume_errors.pop_front() {
                    return Err(error);
                }
                let known = self.volumes.get_mut(&volume).ok_or_else(ApiError::volume_not_found)?;
                let shown = &mut known.volume;
                match action {
                    VolumeAction::Extend { size_gb } => shown.size_gb = size_gb,
                    VolumeAction::Update { snapshot_retention, auto_backup_enabled } => {
                        shown.snapshot_retention =
                            snapshot_retention.unwrap_or(shown.snapshot_retention);
                        shown.auto_backup_enabled =
                            auto_backup_enabled.unwrap_or(shown.auto_backup_enabled);
                    }
                    VolumeAction::Delete => {
                        if let Some(machine) = &shown.attached_machine_id {
                            return Err(ApiError::precondition(format!(
                                "volume {volume} is attached to machine {machine}"
                            )));
                        }
                        shown.state = VolumeState::PendingDestroy;
                        shown.deleted_until = Some("2026-04-01T06:08:08.000Z".to_owned());
                    }
                    VolumeAction::Purge => {
                        (shown.state, shown.deleted_until) = (VolumeState::Destroyed, None);
                    }
                    VolumeAction::Undelete => {
                        if shown.state == VolumeState::Destroyed {
                            return Err(ApiError::precondition("the volume is gone"));
                        }
                        (shown.state, shown.deleted_until) = (VolumeState::Created, None);
                    }
                }
                self.changed(&volume)
            }
            WorkerRequest::GetVolume { volume } => {
                let record = self.volumes.get(&volume).ok_or_else(ApiError::volume_not_found)?;
                Ok(WorkerReply::Volume { record: Box::new(record.clone()) })
            }
            WorkerRequest::ListVolumes { after } => {
                self.volume_lists += 1;
                let later = self.volumes.values();
                let later = later.filter(|record| Some(&record.volume.id) > after.as_ref());
                let mut records: Vec<_> = later.take(PAGE + 1).cloned().collect();
                let more = records.len() > PAGE;
                records.truncate(PAGE);
                Ok(WorkerReply::Volumes {
                    records,
                    more,
                    incarnation: self.incarnation.clone(),
                    revision: self.volume_revision,
                })
            }
            request => self.of_snapshots(request),
        }
    }

    fn of_snapshots(&mut self, request: WorkerRequest) -> WorkerResult {
        let records = match request {
            WorkerRequest::TakeSnapshot { volume, snapshot } => {
                if let Some(error) = self.volume_errors.pop_front() {
                    return Err(error);
                }
                let record = self.volumes.get(&volume).ok_or_else(ApiError::volume_not_found)?;
                if !self.snapshots.iter().any(|known| known.snapshot.id == snapshot) {
                    let new = new_snapshot(record, snapshot.clone(), self.snapshots.len());
                    self.snapshots.push(new);
                }
                self.snapshots_where(|known| known.snapshot.id == snapshot)
            }
            WorkerRequest::ListSnapshots { volume } => {
                self.snapshots_where(|known| known.volume == volume)
            }
            WorkerRequest::GetSnapshot { .. } if self.silent_snapshots => {
                return Err(ApiError::new(ErrorCode::Unavailable, "not now"));
            }
            WorkerRequest::GetSnapshot { snapshot } => {
                self.snapshots_where(|known| known.snapshot.id == snapshot)
            }
            WorkerRequest::DeleteSnapshot { volume, snapshot } => {
                self.snapshots
                    .retain(|known| known.volume != volume || known.snapshot.id != snapshot);
                Vec::new()
            }
            other => {
                return Err(ApiError::internal(format!("{other:?} is not about volumes")));
            }
        };
        Ok(WorkerReply::Snapshots { records })
    }

    /// Newest first.
    fn snapshots_where(&self, holds: impl Fn(&SnapshotRecord) -> bool) -> Vec<SnapshotRecord> {
        self.snapshots.iter().rev().filter(|known| holds(known)).cloned().collect()
    }

    /// Counts a change of a volume.
    pub fn changed(&mut self, id: &VolumeId) -> WorkerResult {
        self.volume_revision += 1;
        let (incarnation, revision) = (self.incarnation.clone(), self.volume_revision);
        let record = self.volumes.get_mut(id).ok_or_else(ApiError::volume_not_found)?;
        (record.incarnation, record.revision) = (incarnation, revision);
        Ok(WorkerReply::Volume { record: Box::new(record.clone()) })
    }

    /// Gives a machine its volumes, all or none.
    pub(super) fn attach(&mut self, machine: &MachineId, mounts: &[Mount]) -> Result<(), ApiError> {
        let ids: Vec<_> = mounts.iter().map(|mount| mount.wanted_id().unwrap()).collect();
        for id in &ids {
            let known = self.volumes.get(id).ok_or_else(ApiError::volume_not_found)?;
            if !known.volume.is_free() {
                return Err(ApiError::precondition(format!("volume {id} is in use")));
            }
        }
        for id in ids {
            self.volumes.get_mut(&id).unwrap().volume.attached_machine_id = Some(machine.clone());
            self.changed(&id).unwrap();
        }
        Ok(())
    }

    /// Takes its volumes from a machine.
    pub(super) fn detach(&mut self, machine: &MachineId) {
        let of_it = self
            .volumes
            .values()
            .filter(|record| record.volume.attached_machine_id.as_ref() == Some(machine));
        for id in of_it.map(|record| record.volume.id.clone()).collect::<Vec<_>>() {
            self.volumes.get_mut(&id).unwrap().volume.attached_machine_id = None;
            self.changed(&id).unwrap();
        }
    }
}
