//! Snapshots that the store has and the database has not, since that is of an earlier time: it was
//! restored from a backup. What is in the store is the truth, as each snapshot is recorded before
//! it is there and for longer than it is.

use std::collections::BTreeSet;

use caddis_snapshot::{Snapshot, SnapshotError, SnapshotStore};

use super::{row::SnapshotRow, try_record};
use crate::{
    engine::Shared,
    store::{Durability, Room},
    volumes::row::VolumeRow,
};

/// Records those of the volumes that are recorded. The others are left alone, and told of.
///
/// # Errors
/// When the store can't be used, or a snapshot can't be recorded. The next time goes on with what
/// is left.
pub(super) async fn record_unrecorded(
    shared: &Shared,
    store: &SnapshotStore,
) -> Result<(), String> {
    let text = |error: SnapshotError| error.to_string();
    let rows = shared.volumes.rows();
    let organizations: BTreeSet<String> = rows.into_iter().map(|row| row.org).collect();
    let mut of_no_volume = 0;
    for organization in organizations {
        for name in store.names(&organization).await.map_err(text)? {
            if shared.volumes.snapshots.row(&name.id).is_some() {
                continue;
            }
            let volume = shared.volumes.row(&name.volume);
            let Some(volume) = volume.filter(|volume| volume.org == organization) else {
                of_no_volume += 1;
                continue;
            };
            match store.get(&name).await {
                Ok(snapshot) => record(shared, &volume, &snapshot).await?,
                Err(SnapshotError::NotFound(_)) => {}
                Err(error @ SnapshotError::Store(_)) => return Err(text(error)),
                Err(error) => tracing::warn!(snapshot = %name.id, %error, "can't read a snapshot"),
            }
        }
    }
    if of_no_volume > 0 {
        tracing::warn!(
            count = of_no_volume,
            "snapshots in the store are of volumes that are not recorded; they are left alone"
        );
    }
    Ok(())
}

async fn record(shared: &Shared, volume: &VolumeRow, snapshot: &Snapshot) -> Result<(), String> {
    let id = &snapshot.name.id;
    let _turn = shared.volumes.turn(&volume.id).await;
    if shared.volumes.snapshots.row(id).is_some() {
        return Ok(());
    }
    let row = SnapshotRow::found(volume, snapshot);
    let recorded = try_record(shared, row, None, Durability::Process, Room::Reserve).await;
    recorded.map_err(|error| error.to_string())?;
    tracing::info!(snapshot = %id, volume = %volume.id, "found a snapshot that was not recorded");
    Ok(())
}
