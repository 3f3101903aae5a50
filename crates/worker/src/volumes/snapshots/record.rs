//! A snapshot as gateways see it.

use caddis_api::{
    time,
    volume::{SnapshotStatus, VolumeOperation, VolumeSnapshot},
};
use caddis_bus::message::SnapshotRecord;
use caddis_snapshot::Progress;

use super::row::SnapshotRow;

/// What operations with snapshots are called.
const KIND: &str = "snapshot";

pub(super) fn record(row: &SnapshotRow, progress: Option<Progress>) -> SnapshotRecord {
    SnapshotRecord {
        volume: row.volume.clone(),
        name: row.name.clone(),
        app: row.app.clone(),
        filesystem: row.filesystem,
        encrypted: row.encrypted,
        snapshot: VolumeSnapshot {
            id: row.id.clone(),
            size: row.size,
            volume_size: row.volume_size,
            digest: row.digest.clone(),
            created_at: time::milliseconds(row.created_at.into()),
            status: row.status,
            retention_days: row.retention_days,
            operation: operation(row, progress),
        },
    }
}

fn operation(row: &SnapshotRow, progress: Option<Progress>) -> Option<VolumeOperation> {
    let progress = progress.filter(|progress| progress.total > 0);
    let of = |progress: Option<Progress>, error: Option<String>| VolumeOperation {
        kind: KIND.to_owned(),
        bytes_done: progress.map(|progress| progress.done),
        bytes_total: progress.map(|progress| progress.total),
        error,
    };
    match row.status {
        SnapshotStatus::Created => None,
        SnapshotStatus::Running => Some(of(progress, None)),
        SnapshotStatus::Failed => Some(of(None, row.error.clone())),
        SnapshotStatus::Waiting => {
            let again = |reason: &String| match row.next_try {
                Some(at) => {
                    let at = time::seconds(at.into());
                    format!("{reason}; it is tried again at {at}")
                }
                None => format!("{reason}; it is tried again"),
            };
            row.error.as_ref().map(|reason| of(None, Some(again(reason))))
        }
    }
}
