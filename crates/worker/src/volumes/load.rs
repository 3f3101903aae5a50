//! What a worker that starts finds of its volumes.

use std::sync::Arc;

use caddis_api::{UnixMillis, VolumeId, volume::VolumeState};
use caddis_volume::{Volume, VolumeError};

use super::{Entry, extend, make, restore, row::VolumeRow};
use crate::{
    WorkerError,
    engine::Shared,
    store::{Durability, Room},
};

/// Reads the volumes that are recorded, and compares them with their files.
///
/// # Errors
/// When they can't be read, or what was found can't be recorded; and when there is nothing at all
/// where their files should be: to take them for lost would forget the deleted ones for good.
pub async fn load(shared: &Shared) -> Result<(), WorkerError> {
    let volumes = &shared.volumes;
    let (mut changed, mut rows) = (Vec::new(), Vec::new());
    let recorded = shared.store.volumes().await?;
    if let Some(row) = recorded.iter().find(|row| has_files(row.state))
        && !volumes.files.was_used()
    {
        let directory = volumes.files.directory().to_owned();
        return Err(WorkerError::VolumesMissing { volume: row.id.clone(), directory });
    }
    for row in recorded {
        let found = found(row.clone(), volumes.files.get(&row.id));
        match found {
            Some(found) => {
                if found != row {
                    changed.push(found.clone());
                }
                rows.push(found);
            }
            // It was removed for good.
            None => shared.store.forget_volume(&row.id, None).await?,
        }
    }
    if !changed.is_empty() {
        shared.store.record_volumes(changed, None, Durability::Synced, Room::Reserve).await?;
    }
    for row in rows {
        let files = volumes.files.get(&row.id).ok();
        let missing = unreserved(&row, files.map_or(0, |files| files.size.get()));
        let mut state = volumes.state();
        if missing > 0 {
            state.promised.insert(row.id.clone(), missing);
        }
        let mut entry = Entry::new(row);
        volumes.touch(&mut entry);
        state.entries.insert(entry.row.id.clone(), entry);
    }
    for volume in volumes.files.list() {
        if volumes.row(&volume.id).is_none() {
            tracing::warn!(volume = %volume.id, "there are files of a volume that is not recorded; \
                they are left as they are and take space");
        }
    }
    Ok(())
}

/// Goes on with serving what volumes are restored from. Before VMs are adopted: one that waits for
/// it answers nothing.
pub fn serve(shared: &Arc<Shared>) {
    for id in unfinished(shared, VolumeState::Hydrating) {
        restore::begin(shared, &id);
    }
}

fn unfinished(shared: &Shared, wanted: VolumeState) -> Vec<VolumeId> {
    let state = shared.volumes.state();
    let rows = state.entries.values().map(|entry| &entry.row);
    rows.filter(|row| row.state == wanted).map(|row| row.id.clone()).collect()
}

/// Goes on with what was not finished.
pub fn resume(shared: &Arc<Shared>) {
    for state in [VolumeState::Creating, VolumeState::Restoring] {
        for id in unfinished(shared, state) {
            make::begin(shared, &id);
        }
    }
    for id in unfinished(shared, VolumeState::Extending) {
        // Nobody waits for it.
        drop(extend::begin(shared, &id));
    }
}

/// Whether a volume in this state has files, unless they were lost.
fn has_files(state: VolumeState) -> bool {
    !matches!(state, VolumeState::Creating | VolumeState::Restoring | VolumeState::Failed)
}

/// What has become of a volume; `None` where it is gone for good. Pure.
fn found(mut row: VolumeRow, files: Result<Volume, VolumeError>) -> Option<VolumeRow> {
    match files {
        Ok(volume) => match volume.deleted_at {
            Some(at) => {
                (row.state, row.extend_to) = (VolumeState::PendingDestroy, None);
                row.deleted_at = Some(row.deleted_at.unwrap_or(UnixMillis::from(at)));
            }
            None => {
                row.deleted_at = None;
                if row.state != VolumeState::Extending {
                    let failure = row.failure.take().filter(|_| row.state == VolumeState::Created);
                    row.is_made(&volume);
                    row.failure = failure;
                }
            }
        },
        Err(VolumeError::NotFound(_)) => match row.state {
            VolumeState::Creating | VolumeState::Restoring | VolumeState::Failed => {}
            state if state.is_deleted() => return None,
            _ => {
                row.state = VolumeState::Failed;
                row.fail("create", "its files are missing");
            }
        },
        Err(error) => {
            (row.state, row.extend_to) = (VolumeState::Failed, None);
            row.fail("create", error);
        }
    }
    Some(row)
}

/// GiB that were promised to a volume, beyond those that its files have reserved. Pure.
fn unreserved(row: &VolumeRow, reserved: u32) -> u64 {
    let promised = match row.state {
        VolumeState::Creating | VolumeState::Restoring => row.size_gb,
        VolumeState::Extending => row.extend_to.unwrap_or(0),
        _ => 0,
    };
    promised.saturating_sub(reserved).into()
}

#[cfg(test)]
mod tests {
    use caddis_api::{AppName, RegionCode, volume::Filesystem};
    use caddis_volume::SizeGib;

    use super::*;
    use crate::volumes::FORMAT;

    fn row(state: VolumeState) -> VolumeRow {
        VolumeRow {
            format: FORMAT,
            id: "vol_1".parse().unwrap(),
            name: "data".to_owned(),
            app: AppName::from_trusted("app"),
            org: "personal".to_owned(),
            region: RegionCode::from_trusted("local"),
            size_gb: 1,
            extend_to: (state == VolumeState::Extending).then_some(2),
            encrypted: false,
            filesystem: Filesystem::Ext4,
            source: None,
            restore: None,
            snapshot_retention: 5,
            auto_backup_enabled: true,
            created_at: UnixMillis::new(1),
            updated_at: UnixMillis::new(1),
            state,
            failure: None,
            deleted_at: None,
            usage: None,
        }
    }

    fn files(deleted_at: Option<u64>) -> Result<Volume, VolumeError> {
        Ok(Volume {
            id: "vol_1".parse().unwrap(),
            size: SizeGib::new(1).unwrap(),
            filesystem: Filesystem::Ext4,
            encrypted: false,
            generation: 1,
            last_writer: None,
            created_at: UnixMillis::new(1).into(),
            deleted_at: deleted_at.map(|at| UnixMillis::new(at).into()),
            copied_from: None,
            restoring: false,
        })
    }

    #[test]
    fn what_the_files_say_decides_where_the_server_was_killed_in_between() {
        use VolumeState::{Created, Creating, Destroyed, Extending, Failed, PendingDestroy};
        let state = |before, files| found(row(before), files).map(|row| row.state);
        let none = || Err(VolumeError::NotFound("vol_1".parse().unwrap()));
        for (before, with_files, deleted, without) in [
            (Creating, Created, PendingDestroy, Some(Creating)),
            (Created, Created, PendingDestroy, Some(Failed)),
            (Extending, Extending, PendingDestroy, Some(Failed)),
            (Failed, Created, PendingDestroy, Some(Failed)),
            (PendingDestroy, Created, PendingDestroy, None),
            (Destroyed, Created, PendingDestroy, None),
        ] {
            assert_eq!(state(before, files(None)), Some(with_files), "{before:?}");
            assert_eq!(state(before, files(Some(7))), Some(deleted), "{before:?}, deleted");
            assert_eq!(state(before, none()), without, "{before:?}, nothing there");
        }
        let damaged = Err(VolumeError::KeyDamaged("vol_1".parse().unwrap()));
        let found = found(row(Created), damaged).unwrap();
        assert!(found.failure.unwrap().error.unwrap().contains("damaged"));
    }

    #[test]
    fn space_is_promised_to_what_is_to_be_made_or_extended_and_has_not_reserved_it() {
        use VolumeState::{Created, Creating, Extending, Failed, PendingDestroy};
        for (state, reserved, missing) in [
            (Creating, 0, 1),
            (Extending, 1, 1),
            (Extending, 2, 0),
            (Created, 1, 0),
            (Failed, 0, 0),
            (PendingDestroy, 1, 0),
        ] {
            assert_eq!(unreserved(&row(state), reserved), missing, "{state:?} {reserved}");
        }
    }
}
