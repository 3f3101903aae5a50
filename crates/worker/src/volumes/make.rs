//! Makes the files of new volumes.

use std::{pin::pin, sync::Arc, time::Duration};

use caddis_api::{VolumeId, volume::VolumeState};
use caddis_volume::{NewVolume, SizeGib, Volume, VolumeError};

use super::{fork, requests::try_record, restore, row::VolumeRow};
use crate::{engine::Shared, store::Room};

/// Wait before something is tried again that must not fail.
const RETRY: Duration = Duration::from_secs(1);

/// Begins to make a volume that is recorded.
pub(super) fn begin(shared: &Arc<Shared>, volume: &VolumeId) {
    let (worker, id) = (shared.clone(), volume.clone());
    let making = shared.volumes.spawn(async move { make(&worker, &id).await });
    if let Some(entry) = shared.volumes.state().entries.get_mut(volume) {
        entry.making = Some(making);
    }
}

async fn make(shared: &Arc<Shared>, id: &VolumeId) {
    let Some(row) = shared.volumes.row(id) else { return };
    let made = make_files(shared, &row).await;
    if matches!(made, Err(Unmade::Files(VolumeError::Interrupted(_)))) {
        // The next worker makes it.
        return;
    }
    let made = match made {
        // An earlier process had made it and has not noted it.
        Err(Unmade::Files(VolumeError::Exists(_))) => {
            shared.volumes.files.get(id).map_err(Unmade::Files)
        }
        made => made,
    };
    if let Err(error) = &made {
        tracing::error!(volume = %id, %error, "can't make a volume");
    }
    record_made(shared, id, &made).await;
    if shared.volumes.row(id).is_some_and(|row| row.state == VolumeState::Hydrating) {
        restore::begin(shared, id);
    }
}

async fn record_made(shared: &Shared, id: &VolumeId, made: &Result<Volume, Unmade>) {
    let _turn = shared.volumes.turn(id).await;
    let is_being_made =
        |row: &VolumeRow| matches!(row.state, VolumeState::Creating | VolumeState::Restoring);
    while let Some(mut row) = shared.volumes.row(id).filter(is_being_made) {
        match made {
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

/// Why a volume was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unmade {
    /// Its files could not be.
    #[error(transparent)]
    Files(#[from] VolumeError),
    /// There is no snapshot to make it from.
    #[error("{0}")]
    Restore(String),
}

impl VolumeRow {
    /// Its files are there.
    pub(super) fn is_made(&mut self, volume: &Volume) {
        if volume.restoring {
            self.state = VolumeState::Hydrating;
        } else {
            (self.state, self.restore) = (VolumeState::Created, None);
        }
        self.size_gb = volume.size.get();
        (self.encrypted, self.filesystem) = (volume.encrypted, volume.filesystem);
        (self.failure, self.extend_to) = (None, None);
    }
}

async fn make_files(shared: &Arc<Shared>, row: &VolumeRow) -> Result<Volume, Unmade> {
    if let Some(source) = &row.source {
        return fork::make(shared, row, source).await;
    }
    if let Some(from) = &row.restore {
        return restore::make(shared, row, from).await;
    }
    let (filesystem, encrypted) = (row.filesystem, row.encrypted);
    let size = SizeGib::new(row.size_gb).map_err(VolumeError::from)?;
    let created_at = row.created_at.into();
    let new = NewVolume { id: row.id.clone(), size, filesystem, encrypted, created_at };
    // Never closed; and without a turn it would only take longer.
    let _turn = shared.volumes.making[0].acquire().await;
    Ok(reserved(shared, &row.id, shared.volumes.files.create(new)).await?)
}

/// Has the files reserve the space, which was promised until then.
pub(super) async fn reserved<T>(
    shared: &Shared,
    id: &VolumeId,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    let first = futures::poll!(work.as_mut());
    shared.fulfil(id);
    match first {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => work.await,
    }
}
