//! The files of a volume that is restored, empty.

use caddis_bus::message::SnapshotSource;
use caddis_snapshot::{Snapshot, SnapshotError, SnapshotName};
use caddis_volume::{NewVolume, SizeGib, Volume};

use crate::{
    engine::Shared,
    volumes::{
        make::{Unmade, reserved},
        row::VolumeRow,
        snapshots::backoff,
    },
};

/// Makes them, once the snapshot is known to be there.
pub(in crate::volumes) async fn make(
    shared: &Shared,
    row: &VolumeRow,
    from: &SnapshotSource,
) -> Result<Volume, Unmade> {
    let size = SizeGib::new(row.size_gb).map_err(|error| Unmade::Files(error.into()))?;
    let snapshot = look_up(shared, row, from).await.map_err(Unmade::Restore)?;
    if snapshot.volume_size > size.bytes() {
        let (id, gib) = (&from.snapshot, snapshot.volume_size.div_ceil(1 << 30));
        let text = format!("snapshot {id} is of {gib} GB, a volume of it can't be smaller");
        return Err(Unmade::Restore(text));
    }
    shared.reach("looked_up").await;
    let new = NewVolume {
        id: row.id.clone(),
        size,
        filesystem: snapshot.filesystem,
        encrypted: row.encrypted,
        created_at: row.created_at.into(),
    };
    // Never closed.
    let _turn = shared.volumes.making[0].acquire().await;
    let made = reserved(shared, &row.id, shared.volumes.files.create_for_restore(new)).await?;
    shared.reach("made").await;
    Ok(made)
}

/// Where a snapshot is in the store.
pub(super) fn name(row: &VolumeRow, from: &SnapshotSource) -> SnapshotName {
    let SnapshotSource { snapshot, volume } = from;
    SnapshotName { organization: row.org.clone(), volume: volume.clone(), id: snapshot.clone() }
}

/// A snapshot that is there; a store that is away is waited for.
async fn look_up(
    shared: &Shared,
    row: &VolumeRow,
    from: &SnapshotSource,
) -> Result<Snapshot, String> {
    let snapshots = &shared.volumes.snapshots;
    let store = snapshots.store.as_ref().ok_or("this server has no snapshot store")?;
    let name = name(row, from);
    for tries in 1.. {
        match store.get(&name).await {
            Err(SnapshotError::Store(reason)) => {
                let error = SnapshotError::Store(reason).to_string();
                shared.volumes.note_trouble(&row.id, Some(error));
                shared.clock.sleep(backoff::wait(tries)).await;
            }
            found => {
                shared.volumes.note_trouble(&row.id, None);
                return found.map_err(|error| error.to_string());
            }
        }
    }
    Err("the snapshot store was away for too long".to_owned())
}
