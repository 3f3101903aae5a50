//! Makes the files of new volumes.

use std::{pin::pin, sync::Arc, time::Duration};

use caddis_api::{VolumeId, volume::VolumeState};
use caddis_volume::{NewCopy, NewVolume, Progress, SizeGib, Volume, VolumeError};
use tokio::{sync::watch, time::Instant};

use super::{Volumes, in_use::once_free, requests::try_record, row::VolumeRow};
use crate::{engine::Shared, store::Room};

/// Wait before something is tried again that must not fail.
const RETRY: Duration = Duration::from_secs(1);
/// Progress is told of at most this often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Begins to make a volume that is recorded.
pub(super) fn begin(shared: &Arc<Shared>, volume: &VolumeId) {
    let (worker, id) = (shared.clone(), volume.clone());
    let making = shared.volumes.spawn(async move { make(&worker, &id).await });
    if let Some(entry) = shared.volumes.state().entries.get_mut(volume) {
        entry.making = Some(making);
    }
}

async fn make(shared: &Shared, id: &VolumeId) {
    let Some(row) = shared.volumes.row(id) else { return };
    let turns = &shared.volumes.making[usize::from(row.source.is_some())];
    // Never closed; and without a turn it would only take longer.
    let turn = turns.acquire().await;
    let made = make_files(shared, &row).await;
    drop(turn);
    if matches!(made, Err(VolumeError::Interrupted(_))) {
        // The next worker makes it.
        return;
    }
    let made = match made {
        // An earlier process had made it and has not noted it.
        Err(VolumeError::Exists(_)) => shared.volumes.files.get(id),
        made => made,
    };
    if let Err(error) = &made {
        tracing::error!(volume = %id, %error, "can't make a volume");
    }
    let _turn = shared.volumes.turn(id).await;
    while let Some(mut row) =
        shared.volumes.row(id).filter(|row| row.state == VolumeState::Creating)
    {
        match &made {
            Ok(volume) => row.is_made(volume),
            Err(error) => {
                row.state = VolumeState::Failed;
                row.fail(row.making(), error);
            }
        }
        match try_record(shared, row, None, Room::Reserve).await {
            Ok(()) => return,
            Err(error) => tracing::error!(volume = %id, %error, "can't record a volume"),
        }
        shared.clock.sleep(RETRY).await;
    }
}

impl VolumeRow {
    /// Its files are there.
    pub(super) fn is_made(&mut self, volume: &Volume) {
        self.state = VolumeState::Created;
        self.size_gb = volume.size.get();
        (self.encrypted, self.filesystem) = (volume.encrypted, volume.filesystem);
        (self.failure, self.extend_to) = (None, None);
    }
}

async fn make_files(shared: &Shared, row: &VolumeRow) -> Result<Volume, VolumeError> {
    let size = SizeGib::new(row.size_gb)?;
    let created_at = row.created_at.into();
    let Some(source) = &row.source else {
        let (filesystem, encrypted) = (row.filesystem, row.encrypted);
        let new = NewVolume { id: row.id.clone(), size, filesystem, encrypted, created_at };
        return reserved(shared, &row.id, shared.volumes.files.create(new)).await;
    };
    let (progress, mut told) = watch::channel(Progress::default());
    // The VM of its machine, which was stopped, may still have the source.
    let copies = once_free(&shared.clock, || {
        let new = NewCopy { id: row.id.clone(), size: Some(size), created_at };
        reserved(shared, &row.id, shared.volumes.files.copy(source, new, &progress))
    });
    let mut copies = pin!(copies);
    loop {
        tokio::select! {
            copied = &mut copies => return copied.map(|copied| copied.volume),
            Ok(()) = told.changed() => {
                let progress = *told.borrow_and_update();
                shared.volumes.note_progress(&row.id, progress);
                let next = Instant::now() + PROGRESS_INTERVAL;
                if let Ok(copied) = tokio::time::timeout_at(next, &mut copies).await {
                    return copied.map(|copied| copied.volume);
                }
            }
        }
    }
}

/// Has the files reserve the space, which was promised until then.
async fn reserved<T>(shared: &Shared, id: &VolumeId, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let first = futures::poll!(work.as_mut());
    shared.fulfil(id);
    match first {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => work.await,
    }
}

impl Volumes {
    fn note_progress(&self, volume: &VolumeId, progress: Progress) {
        self.edit(volume, |entry| entry.progress = progress);
    }
}
