//! Which volumes have a snapshot taken by themselves: once a day, where that is wanted.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use caddis_api::{SnapshotId, UnixMillis, VolumeId, volume::VolumeState};

use super::{row::SnapshotRow, try_record};
use crate::{
    engine::Shared,
    store::{Durability, Room},
    volumes::row::VolumeRow,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Each volume is so much later at most, always by the same time: those that were made together
/// are not all due at once.
const SPREAD: Duration = Duration::from_secs(3600);

/// Has snapshots be taken of all volumes whose last one is a day old.
pub(super) async fn take_due(shared: &Arc<Shared>) {
    let volumes = &shared.volumes;
    if volumes.snapshots.store.is_none() {
        return;
    }
    for id in volumes.snapshots.scheduled(shared) {
        let _turn = volumes.turn(&id).await;
        let row = volumes.row(&id).filter(|row| volumes.snapshots.is_due(shared, row));
        let Some(row) = row else { continue };
        let row = SnapshotRow::new(SnapshotId::random(), &row, shared.clock.unix_now());
        let snapshot = row.id.clone();
        match try_record(shared, row, None, Durability::Process, Room::Reserve).await {
            Ok(()) => tracing::debug!(volume = %id, %snapshot, "the daily snapshot is due"),
            Err(error) => tracing::warn!(volume = %id, %error, "can't record a snapshot"),
        }
    }
}

impl super::Snapshots {
    fn scheduled(&self, shared: &Shared) -> Vec<VolumeId> {
        let rows = shared.volumes.rows();
        let due = rows.into_iter().filter(|row| self.is_due(shared, row));
        due.map(|row| row.id).collect()
    }

    fn is_due(&self, shared: &Shared, volume: &VolumeRow) -> bool {
        let rows = self.rows();
        let own = rows.of(&volume.id).iter().filter(|row| row.is_shown());
        let now = shared.clock.unix_now();
        // Before the clock was set back there may have been later ones.
        let last = own.map(|row| row.created_at).filter(|at| *at <= now).max();
        is_due(volume, last, now)
    }
}

/// Whether the daily snapshot of a volume is due, `last` being when the last one was asked for or
/// taken. Pure.
fn is_due(volume: &VolumeRow, last: Option<UnixMillis>, now: UnixMillis) -> bool {
    let is_there = volume.state == VolumeState::Created;
    let since = last.unwrap_or(volume.created_at);
    volume.auto_backup_enabled && is_there && since + DAY + later(&volume.id) <= now
}

/// By how much a volume is later than others.
fn later(volume: &VolumeId) -> Duration {
    let mut hasher = DefaultHasher::new();
    volume.as_str().hash(&mut hasher);
    Duration::from_secs(hasher.finish() % SPREAD.as_secs())
}

#[cfg(test)]
mod tests {
    use caddis_api::{AppName, RegionCode, volume::Filesystem};

    use super::*;

    #[test]
    fn the_daily_snapshot_is_due_a_day_after_the_last_or_the_volumes_creation() {
        let mut volume = VolumeRow {
            format: crate::volumes::FORMAT,
            id: "vol_1".parse().unwrap(),
            name: "data".to_owned(),
            app: AppName::from_trusted("app"),
            org: "personal".to_owned(),
            region: RegionCode::from_trusted("local"),
            size_gb: 1,
            extend_to: None,
            encrypted: false,
            filesystem: Filesystem::Ext4,
            source: None,
            restore: None,
            snapshot_retention: 5,
            auto_backup_enabled: true,
            created_at: UnixMillis::from_seconds(1000),
            updated_at: UnixMillis::new(1),
            state: VolumeState::Created,
            failure: None,
            deleted_at: None,
            usage: None,
        };
        let at = |seconds: u64| UnixMillis::from_seconds(1000 + seconds);
        let (day, latest) = (24 * 3600, 25 * 3600);
        assert!(!is_due(&volume, None, at(day - 1)));
        assert!(is_due(&volume, None, at(latest)));
        let last = Some(at(day));
        assert!(!is_due(&volume, last, at(2 * day - 1)));
        assert!(is_due(&volume, last, at(day + latest)));
        volume.state = VolumeState::Hydrating;
        assert!(!is_due(&volume, None, at(latest)));
        volume.state = VolumeState::Created;
        volume.auto_backup_enabled = false;
        assert!(!is_due(&volume, None, at(latest)));
        let spread: std::collections::BTreeSet<_> =
            (0..20).map(|n| later(&format!("vol_{n}").parse().unwrap())).collect();
        assert!(spread.len() > 10 && spread.iter().all(|later| *later < SPREAD), "{spread:?}");
    }
}
