//! A snapshot of a volume whose machine runs: its guest holds the file system still for the moment
//! in which the VM begins to keep what it overwrites, and goes on.
//!
//! ```text
//! fleecing image ▸ prepare ▸ frozen ▸ begin, the instant ▸ thawed ▸ export ▸ read, stored ▸ end
//! ```

use std::{sync::Arc, time::Duration};

use caddis_guest_protocol::host::{Session, SessionError};
use caddis_vmm::{Passphrase, PointInTime, Vm, VmmError, VolumeExport};
use caddis_volume::{FleecingImage, FleecingSpace};

use super::job::{Job, Taken, Unable};
use crate::{
    requests::quiet_session,
    volumes::{Attachment, extend::machine_changing},
};

/// How long a guest holds its file systems still at most: it goes on by itself then.
pub(in crate::volumes) const FROZEN_AT_MOST: Duration = Duration::from_secs(5);
/// How long it may take to let them go on.
const THAW_DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take to hear that a VM has ended after what was read of it has.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// How often it is looked how much the guest has overwritten. Nothing tells of it.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn take(
    job: &Job<'_>,
    attached: &Attachment,
    vm: Arc<dyn Vm>,
) -> Result<Taken, Unable> {
    let shared = job.shared;
    match take_of(job, attached, vm.as_ref()).await {
        Err(Unable::Later(reason)) => {
            let is_over = tokio::select! {
                () = job.work.cancelled.cancelled() => return Err(Unable::Interrupted),
                ended = shared.clock.timeout(END_DEADLINE, vm.wait()) => ended.is_some(),
            };
            // The VM has ended meanwhile: it is tried again by way of the files, as soon as its
            // owner has let go of it.
            match is_over {
                true if shared.vm(&attached.machine).is_none() => Err(Unable::Interrupted),
                true => Err(Unable::Busy),
                false => Err(Unable::Later(reason)),
            }
        }
        taken => taken,
    }
}

async fn take_of(job: &Job<'_>, attached: &Attachment, vm: &dyn Vm) -> Result<Taken, Unable> {
    let (shared, row, index) = (job.shared, job.row, attached.index);
    // What an earlier try may have left.
    vm.end_snapshot(index, false).await.map_err(later)?;
    let session = quiet_session(shared, &attached.machine).await;
    let session = session.ok_or_else(|| match machine_changing(shared, &attached.machine) {
        Some(_) => Unable::Busy,
        None => Unable::Later("the guest does not answer".to_owned()),
    })?;
    let image = shared.volumes.files.fleecing_image(&row.volume).await?;
    shared.reach("fleecing").await;
    let FleecingImage { file: fleecing, key, space } = image;
    let point = PointInTime {
        id: row.id.to_string(),
        previous: job.previous.as_ref().map(|previous| previous.id.to_string()),
        passphrase: key.as_ref().map(|key| Passphrase::new(key.passphrase().to_string())),
        fleecing,
    };
    let prepared = vm.prepare_snapshot(index, point).await.map_err(later)?;
    let begun = held_still(&session, async {
        let created_at = shared.clock.unix_now();
        shared.reach("frozen").await;
        let begun = vm.begin_snapshot(index, prepared).await?;
        Ok::<_, VmmError>((begun, created_at))
    });
    let exported = async {
        let ((begun, created_at), still) = begun.await?;
        shared.reach("begun").await;
        let export = vm.export_snapshot(index, begun).await.map_err(|error| error.to_string())?;
        Ok((export, created_at, still))
    };
    let (export, created_at, still) = match exported.await {
        Ok(exported) => exported,
        Err(reason) => {
            end(vm, index).await;
            return Err(Unable::Later(reason));
        }
    };
    let VolumeExport { socket, name, changed } = export;
    let exports = &shared.volumes.snapshots.exports;
    let taken = async {
        let connected = exports.connect(&row.volume, &socket, &name, changed.as_deref()).await;
        let mut source = connected.map_err(|error| job.unable(error))?;
        job.store(source.as_mut(), created_at, exceeded(&space)).await
    };
    match taken.await {
        Ok(snapshot) => {
            shared.reach("stored").await;
            // What is to be forked is gone soon: the next one follows the one before.
            let ended = vm.end_snapshot(index, row.fork.is_none()).await;
            if let Err(error) = ended {
                // It is there all the same; the next one reads all.
                tracing::warn!(volume = %row.volume, %error, "can't end a snapshot in the VM");
            }
            Ok(Taken { snapshot, generation: None, still })
        }
        Err(unable) => {
            end(vm, index).await;
            Err(unable)
        }
    }
}

/// Ends when more was overwritten than there is room for.
async fn exceeded(space: &FleecingSpace) {
    while !space.is_exceeded() {
        tokio::time::sleep(SPACE_INTERVAL).await;
    }
}

async fn end(vm: &dyn Vm, index: u8) {
    if let Err(error) = vm.end_snapshot(index, false).await {
        // It is ended before the next one.
        tracing::debug!(%error, "can't end a snapshot in the VM");
    }
}

fn later(error: impl ToString) -> Unable {
    Unable::Later(error.to_string())
}

/// Does something while the guest holds its file systems still, and tells for how long it did, if
/// it says so. They go on in any case: where that was before it was done, it failed.
pub(in crate::volumes) async fn held_still<T, E: ToString>(
    session: &Session,
    work: impl Future<Output = Result<T, E>>,
) -> Result<(T, Option<Duration>), String> {
    let frozen = session.freeze_volumes(FROZEN_AT_MOST).await;
    let done = match &frozen {
        Ok(()) => Some(work.await),
        Err(_) => None,
    };
    // Also when it did not say that they stand still: they may.
    let thawed = match &frozen {
        Err(SessionError::Refused(_)) => Ok(None),
        _ => session.thaw_volumes(THAW_DEADLINE).await,
    };
    frozen.map_err(|error| format!("the guest can't hold its file systems still: {error}"))?;
    let done = done.map_or_else(|| Err("not done".to_owned()), |d| d.map_err(|e| e.to_string()))?;
    let still = thawed.map_err(|error| format!("the guest went on too early: {error}"))?;
    Ok((done, still))
}
