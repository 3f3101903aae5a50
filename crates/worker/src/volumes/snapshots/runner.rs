//! Begins what is to be done with snapshots, for as long as the worker runs.

use std::{sync::Arc, time::Duration};

use caddis_api::volume::{SnapshotStatus, VolumeState};
use tokio::time::Instant;

use super::{expire, job, row::SnapshotRow, schedule};
use crate::{WorkerError, engine::Shared};

/// How often, at least, it is looked what is due.
const INTERVAL: Duration = Duration::from_secs(30);

/// Finds what is recorded. What an earlier process was just taking is taken anew.
///
/// # Errors
/// When the database can't be read.
pub async fn load(shared: &Shared) -> Result<(), WorkerError> {
    let recorded = shared.store.snapshots().await?;
    let mut rows = shared.volumes.snapshots.rows();
    for mut row in recorded {
        if row.status == SnapshotStatus::Running {
            row.status = SnapshotStatus::Waiting;
        }
        rows.put(row);
    }
    Ok(())
}

/// Has snapshots be taken that are due, and those be removed that are not to be any more; never
/// ends.
pub async fn run(shared: Arc<Shared>) {
    end_left_over(&shared).await;
    tokio::join!(take(&shared), expire::run(&shared));
}

/// Ends what an earlier process had begun in the VMs that outlived it.
async fn end_left_over(shared: &Shared) {
    for (machine, vm) in shared.running() {
        for (volume, index) in shared.volumes.of_machine(&machine) {
            if let Err(error) = vm.end_snapshot(index, false).await {
                // It is done again before the next one is taken.
                tracing::warn!(%machine, %volume, %error, "can't end a snapshot in the VM");
            }
        }
    }
}

async fn take(shared: &Arc<Shared>) {
    let snapshots = &shared.volumes.snapshots;
    let mut freed = shared.volumes.background.changes();
    let mut looked: Option<Instant> = None;
    loop {
        let now = shared.clock.now();
        if looked.is_none_or(|looked| now >= looked + INTERVAL) {
            looked = Some(now);
            schedule::take_due(shared).await;
        }
        freed.borrow_and_update();
        begin_due(shared);
        let now = shared.clock.unix_now();
        let next = snapshots.next_try().map_or(INTERVAL, |at| at.since(now).min(INTERVAL));
        tokio::select! {
            () = shared.clock.sleep(next.max(Duration::from_millis(10))) => {}
            () = snapshots.wake.notified() => {}
            // The sender is ours.
            _ = freed.changed() => {}
        }
    }
}

/// Begins as many as may be taken at once.
fn begin_due(shared: &Arc<Shared>) {
    let volumes = &shared.volumes;
    for row in volumes.snapshots.due(shared.clock.unix_now()) {
        if !may_begin(shared, &row) {
            continue;
        }
        let Ok(turn) = volumes.snapshots.turns.clone().try_acquire_owned() else { return };
        let Some(work) = volumes.background.begin(&row.volume) else { continue };
        let job = job::run(shared.clone(), row.id, work, turn);
        volumes.tasks.spawn(job);
    }
}

/// Of a volume that is being made, extended or restored it is taken afterwards.
fn may_begin(shared: &Shared, row: &SnapshotRow) -> bool {
    use VolumeState::{Creating, Extending, Hydrating, Restoring};
    let state = shared.volumes.row(&row.volume).map(|volume| volume.state);
    !matches!(state, Some(Creating | Extending | Hydrating | Restoring))
}
