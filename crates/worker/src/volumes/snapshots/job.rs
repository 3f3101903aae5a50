//! Takes one snapshot: of a volume whose machine runs by way of its VM, of another from its files.
//! What comes of it is recorded; what was broken off, or may do better later, is tried again.

use std::{sync::Arc, time::Duration};

use caddis_api::{
    SnapshotId, UnixMillis,
    volume::{SnapshotStatus, VolumeState},
};
use caddis_snapshot::{NewSnapshot, Progress, Snapshot, SnapshotError, Source};
use caddis_volume::VolumeError;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{Snapshots, backoff, live, offline, row::SnapshotRow, try_record};
use crate::{
    engine::Shared,
    store::{Durability, Room},
    volumes::background::Work,
};

/// Wait before something is tried again that must not fail.
const RETRY: Duration = Duration::from_secs(1);
/// How often what is not the store's or the disk's fault is tried.
const TRIES: u32 = 6;
/// A store that has taken nothing for so long is away.
const STALLED: Duration = Duration::from_secs(5 * 60);

/// Why a snapshot was not taken.
#[derive(Debug)]
pub(super) enum Unable {
    /// It was broken off for something more urgent, or the worker ends.
    Interrupted,
    /// Somebody has just opened the volume, or is about to let it go.
    Busy,
    /// The store or the host's disk is to blame: it is tried until it succeeds.
    Away(String),
    /// It may succeed later, and is tried some times.
    Later(String),
    /// It can't be taken.
    Never(String),
    /// The previous one can't be used: it is tried without.
    WithoutPrevious(String),
}

/// What was taken.
pub(super) struct Taken {
    pub(super) snapshot: Snapshot,
    /// Generation of the volume, if nobody had it open.
    pub(super) generation: Option<u64>,
}

/// A job.
pub(super) struct Job<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) row: &'a SnapshotRow,
    /// The snapshot before, where it can be used.
    pub(super) previous: Option<SnapshotRow>,
    pub(super) work: &'a Work,
    progress: watch::Sender<Progress>,
}

/// Takes a snapshot that is recorded, and records what has come of it.
pub(super) async fn run(
    shared: Arc<Shared>,
    snapshot: SnapshotId,
    work: Work,
    turn: OwnedSemaphorePermit,
) {
    let snapshots = &shared.volumes.snapshots;
    if !edit(&shared, &snapshot, |row| row.status = SnapshotStatus::Running).await {
        return;
    }
    let Some(row) = snapshots.row(&snapshot) else { return };
    shared.reach("running").await;
    let (progress, told) = watch::channel(Progress::default());
    snapshots.rows().progress.insert(snapshot.clone(), told);
    let previous = snapshots.last(&row.volume).filter(|_| !row.is_full);
    let job = Job { shared: &shared, row: &row, previous, work: &work, progress };
    let outcome = job.take().await;
    drop(turn);
    shared.reach("taken").await;
    snapshots.rows().progress.remove(&snapshot);
    if matches!(outcome, Err(Unable::Interrupted)) && shared.volumes.is_ending() {
        // The next worker takes it.
        return;
    }
    if let Ok(taken) = &outcome {
        let (added, read) = (taken.snapshot.added_size, taken.snapshot.read_size);
        tracing::info!(volume = %row.volume, %snapshot, added, read, "took a snapshot");
    }
    let now = shared.clock.unix_now();
    edit(&shared, &snapshot, |row| settle(row, &outcome, now)).await;
    shared.reach("recorded").await;
    if let Some(row) = snapshots.row(&snapshot) {
        tell(&shared, &row, &outcome).await;
    }
}

impl Job<'_> {
    async fn take(&self) -> Result<Taken, Unable> {
        let volumes = &self.shared.volumes;
        let id = &self.row.volume;
        let volume = volumes.row(id).ok_or_else(|| Unable::Never("the volume is gone".into()))?;
        match volume.state {
            VolumeState::Created => {}
            VolumeState::PendingDestroy | VolumeState::Destroyed => {
                return Err(Unable::Never("the volume was deleted".to_owned()));
            }
            VolumeState::Failed => {
                let reason = volume.failure.and_then(|failure| failure.error).unwrap_or_default();
                return Err(Unable::Never(format!("the volume has failed: {reason}")));
            }
            // It is wanted.
            _ => return Err(Unable::Interrupted),
        }
        let attached = volumes.attached(id);
        let vm = attached.as_ref().and_then(|attached| self.shared.vm(&attached.machine));
        match attached.zip(vm) {
            Some((attached, vm)) => live::take(self, &attached, vm).await,
            None => offline::take(self).await,
        }
    }

    /// Has the store take what a source holds, until this is broken off, or `exceeded` ends: there
    /// is no room any more for what the guest overwrites.
    pub(super) async fn store(
        &self,
        source: &mut dyn Source,
        created_at: UnixMillis,
        exceeded: impl Future<Output = ()>,
    ) -> Result<Snapshot, Unable> {
        let Some(store) = &self.shared.volumes.snapshots.store else {
            return Err(Unable::Away("this server has no snapshot store".to_owned()));
        };
        let new = NewSnapshot {
            name: self.row.stored_as(),
            previous: self.previous.as_ref().map(SnapshotRow::stored_as),
            filesystem: self.row.filesystem,
            encrypted: self.row.encrypted,
            created_at: created_at.into(),
        };
        let taken = store.take(new, source, &self.progress);
        tokio::select! {
            taken = taken => taken.map_err(|error| self.unable(error)),
            () = self.work.cancelled.cancelled() => Err(Unable::Interrupted),
            () = exceeded => {
                let text = "the guest overwrites too much of it meanwhile: there is no room on \
                    the host's disk for so much";
                Err(Unable::Away(text.to_owned()))
            }
            () = stalled(self.progress.subscribe()) => {
                let minutes = STALLED.as_secs() / 60;
                let text = format!("the snapshot store has taken nothing for {minutes} minutes");
                Err(Unable::Away(text))
            }
        }
    }

    /// What an error of the store, or of its source, means.
    pub(super) fn unable(&self, error: SnapshotError) -> Unable {
        match error {
            SnapshotError::Store(_) => Unable::Away(error.to_string()),
            SnapshotError::Source(_) => Unable::Later(error.to_string()),
            // It is the previous one: this one is not there yet.
            SnapshotError::NotFound(_)
            | SnapshotError::Damaged { .. }
            | SnapshotError::OtherKey { .. }
                if self.previous.is_some() =>
            {
                Unable::WithoutPrevious(error.to_string())
            }
            error => Unable::Later(error.to_string()),
        }
    }
}

impl From<VolumeError> for Unable {
    fn from(error: VolumeError) -> Self {
        use VolumeError as E;
        match error {
            E::NoSpace { .. } | E::LimitReached { .. } => Self::Away(error.to_string()),
            E::Interrupted(_) => Self::Interrupted,
            E::InUse { .. } | E::Restoring(_) => Self::Busy,
            E::Io { .. } | E::Program { .. } | E::Backing { .. } => Self::Later(error.to_string()),
            error => Self::Never(error.to_string()),
        }
    }
}

/// Ends when nothing was done for long.
async fn stalled(mut progress: watch::Receiver<Progress>) {
    while let Ok(Ok(())) = tokio::time::timeout(STALLED, progress.changed()).await {}
}

/// What becomes of a snapshot. Pure, but for the length of waits.
fn settle(row: &mut SnapshotRow, outcome: &Result<Taken, Unable>, now: UnixMillis) {
    let again = |row: &mut SnapshotRow, reason: &str| {
        row.status = SnapshotStatus::Waiting;
        row.tries = row.tries.saturating_add(1);
        row.error = Some(reason.to_owned());
        row.next_try = Some(now + backoff::wait(row.tries));
    };
    match outcome {
        Ok(taken) => row.is_taken(&taken.snapshot, taken.generation),
        Err(Unable::Interrupted) => row.status = SnapshotStatus::Waiting,
        Err(Unable::Busy) => {
            (row.status, row.next_try) = (SnapshotStatus::Waiting, Some(now + RETRY));
        }
        Err(Unable::Away(reason)) => again(row, reason),
        Err(Unable::Later(reason)) if row.tries + 1 < TRIES => again(row, reason),
        Err(Unable::WithoutPrevious(reason)) if !row.is_full => {
            (row.status, row.is_full) = (SnapshotStatus::Waiting, true);
            row.error =
                Some(format!("all of it is read, since the previous one is lost: {reason}"));
        }
        Err(Unable::Later(reason) | Unable::Never(reason) | Unable::WithoutPrevious(reason)) => {
            (row.status, row.next_try) = (SnapshotStatus::Failed, None);
            row.error = Some(reason.clone());
        }
    }
}

/// Tells of it where users would look: in the log, and among the events of the machine.
async fn tell(shared: &Shared, row: &SnapshotRow, outcome: &Result<Taken, Unable>) {
    let (level, what, reason) = match outcome {
        Ok(_) | Err(Unable::Interrupted | Unable::Busy) => return,
        Err(_) if row.status == SnapshotStatus::Failed => ("error", "failed", &row.error),
        Err(_) => ("info", "is delayed", &row.error),
    };
    let (volume, snapshot, reason) = (&row.volume, &row.id, reason.as_deref().unwrap_or_default());
    tracing::warn!(%volume, %snapshot, tries = row.tries, reason, "a snapshot was not taken");
    let message = format!("Snapshot {snapshot} of volume {volume} {what}: {reason}");
    let details = json!({ "volume": volume, "snapshot": snapshot, "level": level });
    shared.tell_machine_of(volume, message, details).await;
}

/// Changes what is recorded of a snapshot, unless it is deleted; again and again until that is
/// recorded. False where it is deleted, or was not to be taken any more.
async fn edit(shared: &Shared, snapshot: &SnapshotId, change: impl Fn(&mut SnapshotRow)) -> bool {
    let snapshots = &shared.volumes.snapshots;
    let Some(volume) = snapshots.row(snapshot).map(|row| row.volume) else { return false };
    let _turn = shared.volumes.turn(&volume).await;
    while let Some(mut row) = snapshots.row(snapshot).filter(SnapshotRow::is_pending) {
        change(&mut row);
        let durability = match row.status {
            SnapshotStatus::Running | SnapshotStatus::Waiting => Durability::Process,
            SnapshotStatus::Created | SnapshotStatus::Failed => Durability::Synced,
        };
        match try_record(shared, row, None, durability, Room::Reserve).await {
            Ok(()) => return true,
            Err(error) => tracing::error!(%snapshot, %error, "can't record a snapshot"),
        }
        if shared.volumes.is_ending() {
            return false;
        }
        shared.clock.sleep(RETRY).await;
    }
    false
}

impl Snapshots {
    /// What is there to be taken now: the first of each volume.
    pub(super) fn due(&self, now: UnixMillis) -> Vec<SnapshotRow> {
        let rows = self.rows();
        let first = |rows: &Vec<SnapshotRow>| {
            let pending = rows.iter().filter(|row| row.is_pending());
            pending.min_by_key(|row| (row.created_at, row.id.clone())).cloned()
        };
        // Nothing waits for longer, unless the clock was set back.
        let latest = now + backoff::LONGEST;
        let is_due = |row: &SnapshotRow| row.next_try.is_none_or(|at| at <= now || at > latest);
        rows.by_volume.values().filter_map(first).filter(is_due).collect()
    }

    /// When something that waits is to be tried next.
    pub(super) fn next_try(&self) -> Option<UnixMillis> {
        let rows = self.rows();
        let pending = rows.by_volume.values().flatten().filter(|row| row.is_pending());
        pending.filter_map(|row| row.next_try).min()
    }
}

#[cfg(test)]
mod tests {
    use caddis_api::{AppName, volume::Filesystem};

    use super::*;

    fn waiting() -> SnapshotRow {
        SnapshotRow {
            format: super::super::FORMAT,
            id: "vs_1".parse().unwrap(),
            volume: "vol_1".parse().unwrap(),
            name: "data".to_owned(),
            app: AppName::from_trusted("app"),
            org: "personal".to_owned(),
            filesystem: Filesystem::Ext4,
            encrypted: false,
            status: SnapshotStatus::Running,
            fork: None,
            is_deleted: false,
            created_at: UnixMillis::new(1),
            retention_days: 5,
            tries: 0,
            next_try: None,
            error: None,
            is_full: false,
            size: 0,
            volume_size: 1 << 30,
            digest: String::new(),
            generation: None,
        }
    }

    fn settled(row: &mut SnapshotRow, unable: Unable) -> SnapshotStatus {
        settle(row, &Err(unable), UnixMillis::new(1000));
        row.status
    }

    #[test]
    fn a_store_that_is_away_never_fails_a_snapshot_and_other_reasons_do_after_some_tries() {
        let mut row = waiting();
        for _ in 0..100 {
            let status = settled(&mut row, Unable::Away("away".to_owned()));
            assert_eq!(status, SnapshotStatus::Waiting);
            assert!(row.next_try.unwrap() <= UnixMillis::new(1000) + backoff::LONGEST);
        }
        assert_eq!(row.error.as_deref(), Some("away"));
        let mut row = waiting();
        let statuses: Vec<_> =
            (0..TRIES).map(|_| settled(&mut row, Unable::Later("x".to_owned()))).collect();
        let (last, before) = statuses.split_last().unwrap();
        assert!(before.iter().all(|status| *status == SnapshotStatus::Waiting));
        assert_eq!((*last, row.next_try), (SnapshotStatus::Failed, None));
    }

    #[test]
    fn what_is_broken_off_is_tried_at_once_and_without_a_previous_one_that_is_lost_once() {
        let mut row = waiting();
        assert_eq!(settled(&mut row, Unable::Interrupted), SnapshotStatus::Waiting);
        assert_eq!((row.tries, row.next_try, row.error.clone()), (0, None, None));
        let lost = || Unable::WithoutPrevious("damaged".to_owned());
        assert_eq!(settled(&mut row, lost()), SnapshotStatus::Waiting);
        assert!(row.is_full && row.next_try.is_none());
        assert_eq!(settled(&mut row, lost()), SnapshotStatus::Failed);
    }
}
