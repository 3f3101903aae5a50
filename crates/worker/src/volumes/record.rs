//! A volume as gateways see it.

use caddis_api::{
    UnixMillis, Volume, time,
    volume::{VolumeOperation, VolumeState, zone_of},
};
use caddis_bus::message::VolumeRecord;
use caddis_volume::{KEPT_AFTER_DELETE, Progress};

use super::Entry;
use crate::engine::Shared;

pub(super) fn record(shared: &Shared, entry: &Entry) -> VolumeRecord {
    let row = &entry.row;
    let usage = row.usage;
    let since = shared.volumes.since_snapshot(&row.id);
    let count = |of: fn(&super::row::Usage) -> u64| Some(usage.as_ref().map_or(0, of));
    let volume = Volume {
        id: row.id.clone(),
        name: row.name.clone(),
        state: row.state,
        size_gb: row.extend_to.unwrap_or(row.size_gb),
        region: row.region.clone(),
        zone: zone_of(&shared.worker),
        encrypted: row.encrypted,
        attached_machine_id: entry.attached.as_ref().map(|attached| attached.machine.clone()),
        attached_alloc_id: None,
        created_at: time::milliseconds(row.created_at.into()),
        fstype: row.filesystem,
        block_size: count(|usage| usage.block_size),
        blocks: count(|usage| usage.blocks),
        blocks_free: count(|usage| usage.blocks_free),
        blocks_avail: count(|usage| usage.blocks_avail),
        bytes_used: usage.map_or(0, |usage| usage.bytes_used()),
        bytes_total: usage.map_or(0, |usage| usage.bytes_total()),
        snapshot_retention: row.snapshot_retention,
        auto_backup_enabled: row.auto_backup_enabled,
        host_status: "ok".to_owned(),
        kind: "local".to_owned(),
        generation: shared.volumes.files.get(&row.id).map_or(0, |volume| volume.generation),
        last_snapshot_at: since.map(|(at, _)| time::milliseconds(at.into())),
        bytes_since_snapshot: since.and_then(|(_, bytes)| bytes),
        deleted_until: row.deleted_at.map(|at| time::milliseconds(kept_until(at).into())),
        operation: operation(entry),
    };
    VolumeRecord {
        worker: shared.worker.clone(),
        incarnation: shared.publisher.incarnation().to_owned(),
        revision: entry.revision,
        app: row.app.clone(),
        updated_at: row.updated_at,
        volume,
    }
}

/// When a volume that was deleted then is removed.
pub(super) fn kept_until(deleted_at: UnixMillis) -> UnixMillis {
    deleted_at + KEPT_AFTER_DELETE.unsigned_abs()
}

fn operation(entry: &Entry) -> Option<VolumeOperation> {
    let Entry { row, progress, trouble, .. } = entry;
    let under_way = |kind: &str, of: Option<Progress>| VolumeOperation {
        kind: kind.to_owned(),
        bytes_done: of.map(|progress| progress.done),
        bytes_total: of.map(|progress| progress.total),
        error: trouble.clone(),
    };
    match row.state {
        VolumeState::Creating => {
            Some(under_way(row.making(), row.source.as_ref().map(|_| *progress)))
        }
        VolumeState::Restoring => Some(under_way(row.making(), None)),
        VolumeState::Hydrating => {
            let known = Some(*progress).filter(|progress| progress.total > 0);
            Some(under_way(row.making(), known))
        }
        VolumeState::Extending => Some(under_way("extend", None)),
        _ => row.failure.clone(),
    }
}
