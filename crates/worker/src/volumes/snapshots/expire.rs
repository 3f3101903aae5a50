//! Removes snapshots that are deleted or expired, and what nothing in the store needs any more.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use caddis_api::{SnapshotId, volume::VolumeState};
use caddis_snapshot::{SnapshotError, SnapshotStore};
use tokio::time::Instant;

use super::{backoff, found, row::SnapshotRow, try_record};
use crate::{
    clock,
    engine::Shared,
    store::{Durability, Room},
    volumes::delete::Rounds,
};

/// How often, at least, it is looked what has expired.
const INTERVAL: Duration = Duration::from_secs(60);
/// The store is swept this often at most, where something was removed from it.
const SWEEP_AFTER: Duration = Duration::from_secs(10 * 60);
/// And this often at least: a snapshot that was broken off leaves chunks.
const SWEEP_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Never ends.
pub(super) async fn run(shared: &Arc<Shared>) {
    let snapshots = &shared.volumes.snapshots;
    let Some(store) = snapshots.store.clone() else { return };
    let mut rounds = Rounds::default();
    // What an earlier process has left is swept.
    let mut sweep = Sweep { last: shared.clock.now(), is_needed: true };
    let (mut tries, mut looked) = (0, None::<Instant>);
    let mut has_all = false;
    loop {
        if !has_all {
            match found::record_unrecorded(shared, &store).await {
                Ok(()) => has_all = true,
                Err(error) => tracing::debug!(%error, "can't look for snapshots in the store"),
            }
        }
        let now = shared.clock.now();
        if looked.is_none_or(|looked| now >= looked + INTERVAL) {
            looked = Some(now);
            mark_expired(shared, &mut rounds).await;
            mark_forked(shared).await;
        }
        match remove_deleted(shared, &store).await {
            Ok(0) => tries = 0,
            Ok(_) => (tries, sweep.is_needed) = (0, true),
            Err(error) => {
                tries += 1;
                tracing::warn!(%error, "can't remove a snapshot from the store");
            }
        }
        if sweep.is_due(shared.clock.now()) {
            let is_needed = !sweep_store(&store).await;
            sweep = Sweep { last: shared.clock.now(), is_needed };
            // A directory that was not mounted looks like an empty store.
            has_all = false;
        }
        let next = if tries > 0 { backoff::wait(tries).min(INTERVAL) } else { INTERVAL };
        tokio::select! {
            () = shared.clock.sleep(next) => {}
            () = snapshots.removals.notified() => {}
        }
    }
}

struct Sweep {
    last: Instant,
    /// There may be chunks that no snapshot has.
    is_needed: bool,
}

impl Sweep {
    fn is_due(&self, now: Instant) -> bool {
        let after = if self.is_needed { SWEEP_AFTER } else { SWEEP_INTERVAL };
        now >= self.last + after
    }
}

/// False where something of it is left to be swept.
async fn sweep_store(store: &SnapshotStore) -> bool {
    match store.sweep().await {
        Ok(swept) => {
            tracing::debug!(chunks = swept.chunks, bytes = swept.bytes, "swept the snapshot store");
            swept.busy == 0
        }
        Err(error) => {
            tracing::warn!(%error, "can't sweep the snapshot store");
            false
        }
    }
}

/// Marks those whose time is over by a clock that was not set meanwhile.
async fn mark_expired(shared: &Shared, rounds: &mut Rounds<SnapshotId>) {
    let snapshots = &shared.volumes.snapshots;
    let now = shared.clock.unix_now();
    let expired: BTreeSet<_> =
        snapshots.select(|row| row.is_expired(now)).into_iter().map(|row| row.id).collect();
    for id in rounds.next(clock::offset_ms(), expired) {
        mark_deleted(shared, &id).await;
    }
}

/// Marks those that were taken for a fork alone, which is whole or gone.
async fn mark_forked(shared: &Shared) {
    let snapshots = &shared.volumes.snapshots;
    let is_left = |row: &SnapshotRow| row.fork.is_some() && !row.is_deleted;
    for row in snapshots.select(is_left) {
        if !shared.volumes.is_restored_from(&row.id) {
            mark_deleted(shared, &row.id).await;
        }
    }
}

/// Has a snapshot be removed, if it is there.
pub(in crate::volumes) async fn mark_deleted(shared: &Shared, snapshot: &SnapshotId) {
    let snapshots = &shared.volumes.snapshots;
    let Some(row) = snapshots.row(snapshot) else { return };
    let _wanted = match row.is_pending() {
        true => Some(shared.volumes.background.want(&row.volume).await),
        false => None,
    };
    let _turn = shared.volumes.turn(&row.volume).await;
    let Some(mut row) = snapshots.row(snapshot).filter(|row| !row.is_deleted) else { return };
    row.is_deleted = true;
    let recorded = try_record(shared, row, None, Durability::Process, Room::Reserve).await;
    if let Err(error) = recorded {
        tracing::warn!(%snapshot, %error, "can't record a snapshot");
    }
}

/// Removes what is marked, but for what volumes are being restored from. Returns how many.
async fn remove_deleted(shared: &Shared, store: &SnapshotStore) -> Result<usize, SnapshotError> {
    let snapshots = &shared.volumes.snapshots;
    let mut removed = 0;
    for SnapshotRow { id, volume, org, .. } in snapshots.select(|row| row.is_deleted) {
        if shared.volumes.is_restored_from(&id) {
            continue;
        }
        let name = caddis_snapshot::SnapshotName { organization: org, volume, id };
        store.delete(&name).await?;
        shared.reach("removed").await;
        let id = name.id;
        match shared.store.forget_snapshot(&id).await {
            Ok(()) => {
                snapshots.rows().remove(&id);
                removed += 1;
                tracing::info!(snapshot = %id, "removed a snapshot");
            }
            Err(error) => tracing::warn!(snapshot = %id, %error, "can't forget a snapshot"),
        }
    }
    Ok(removed)
}

impl crate::volumes::Volumes {
    /// Whether a volume needs this snapshot to be whole, also one that may be undeleted.
    fn is_restored_from(&self, snapshot: &SnapshotId) -> bool {
        let needs = |row: &crate::volumes::VolumeRow| {
            row.state != VolumeState::Destroyed
                && row.restore.as_ref().is_some_and(|from| from.snapshot == *snapshot)
        };
        self.state().entries.values().any(|entry| needs(&entry.row))
    }
}
