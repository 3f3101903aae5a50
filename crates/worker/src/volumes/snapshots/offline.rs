//! A snapshot of a volume that nobody uses, from its files; of one that nobody has opened since the
//! last one nothing is read.

use async_trait::async_trait;
use caddis_snapshot::{Extent, SnapshotError, Source};

use super::job::{Job, Taken, Unable};

pub(super) async fn take(job: &Job<'_>) -> Result<Taken, Unable> {
    let (shared, row) = (job.shared, job.row);
    let files = &shared.volumes.files;
    let generation = files.get(&row.volume)?.generation;
    let created_at = shared.clock.unix_now();
    let size = files.get(&row.volume)?.size.bytes();
    let unchanged = job
        .previous
        .as_ref()
        .filter(|previous| previous.generation == Some(generation) && previous.volume_size == size);
    if unchanged.is_some() {
        let snapshot = job.store(&mut Unchanged { size }, created_at, std::future::pending()).await;
        return match snapshot {
            // The store does not have all of it any more.
            Err(Unable::Later(reason)) => Err(Unable::WithoutPrevious(reason)),
            snapshot => Ok(Taken { snapshot: snapshot?, generation: Some(generation) }),
        };
    }
    let export = tokio::select! {
        export = files.export(&row.volume) => export?,
        () = job.work.cancelled.cancelled() => return Err(Unable::Interrupted),
    };
    shared.reach("exported").await;
    // Whoever opens it later than this can't, for as long as the export is there.
    let generation = files.get(&row.volume)?.generation;
    let exports = &shared.volumes.snapshots.exports;
    let taken = async {
        let (socket, name) = (&export.socket, &export.name);
        let connected = exports.connect(&row.volume, socket, name, None).await;
        let mut source = connected.map_err(|error| job.unable(error))?;
        job.store(source.as_mut(), created_at, std::future::pending()).await
    };
    let snapshot = taken.await;
    drop(export);
    shared.reach("closed").await;
    Ok(Taken { snapshot: snapshot?, generation: Some(generation) })
}

/// A volume of which nothing has changed since the previous snapshot.
struct Unchanged {
    size: u64,
}

#[async_trait]
impl Source for Unchanged {
    fn size(&self) -> u64 {
        self.size
    }

    async fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>, SnapshotError> {
        Ok(vec![Extent { offset, length, is_zero: false, is_unchanged: true }])
    }

    async fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), SnapshotError> {
        let text = "the previous snapshot is not there as a whole";
        Err(SnapshotError::Source(std::io::Error::other(text)))
    }
}
