//! Makes volumes larger: their files, and where a machine runs with them, what it sees of them.

use std::{sync::Arc, time::Duration};

use caddis_api::{ApiError, MachineState, VolumeId, volume::VolumeState};
use caddis_vmm::StartKind;
use caddis_volume::{Growth, SizeGib, VolumeError};
use tokio::sync::oneshot;

use super::{
    Attachment,
    error::{check_created, not_found},
    requests::{record, try_record},
    row::VolumeRow,
    volume_error,
};
use crate::{engine::Shared, owner::RequestId, requests::quiet_session, store::Room};

/// How long who asks waits for the end: most are over at once, and the answer has the new size
/// then.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a guest may take to grow a file system; from 1 to 500 GiB took 2.3 s under emulation.
const GUEST_DEADLINE: Duration = Duration::from_secs(60);
/// Wait before something is tried again that must not fail.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn extend(
    shared: &Arc<Shared>,
    id: &VolumeId,
    size_gb: u32,
    request: RequestId,
) -> Result<(), ApiError> {
    let turn = shared.volumes.turn(id).await;
    let mut row = shared.volumes.row(id).ok_or_else(|| not_found(id))?;
    check_created(&row)?;
    if row.state == VolumeState::Hydrating {
        let text = format!("volume {id} is being restored: try again when it is created");
        return Err(ApiError::precondition(text));
    }
    let size = SizeGib::new(size_gb).map_err(|error| volume_error(error.into()))?;
    if size.get() == row.size_gb {
        return Ok(());
    }
    if size.get() < row.size_gb {
        let text = format!("volume {id} has {} GB: volumes only become larger", row.size_gb);
        return Err(ApiError::invalid(text));
    }
    check_machine_settled(shared, id)?;
    let promise = shared.promise(id, u64::from(size.get() - row.size_gb))?;
    (row.state, row.extend_to, row.failure) = (VolumeState::Extending, Some(size.get()), None);
    record(shared, row, request, Room::Free).await?;
    promise.keep();
    drop(turn);
    let done = begin(shared, id);
    match shared.clock.timeout(TIMEOUT, done).await {
        Some(Ok(Err(error))) => Err(volume_error(error)),
        // It goes on, here or in the next worker.
        _ => Ok(()),
    }
}

/// What a machine sees of its volumes is known while it runs, or not.
fn check_machine_settled(shared: &Shared, id: &VolumeId) -> Result<(), ApiError> {
    let Some(Attachment { machine, .. }) = shared.volumes.attached(id) else { return Ok(()) };
    let record = shared.publisher.get(&machine);
    let is_changing = |state: MachineState| !state.is_settled() && shared.vm(&machine).is_some();
    match record.map(|record| record.machine.state).filter(|state| is_changing(*state)) {
        Some(state) => {
            let text = format!("machine {machine} is {state}, try again when that is over");
            Err(ApiError::precondition(text))
        }
        None => Ok(()),
    }
}

/// Begins an extension that is recorded. Told of its end.
pub(super) fn begin(
    shared: &Arc<Shared>,
    id: &VolumeId,
) -> oneshot::Receiver<Result<(), VolumeError>> {
    let (done, told) = oneshot::channel();
    let (worker, id) = (shared.clone(), id.clone());
    let growing = shared.volumes.spawn(async move {
        let outcome = grow(&worker, &id).await;
        // Nobody may wait any more.
        let _ = done.send(outcome);
    });
    // It is ended with all others.
    drop(growing.detach());
    told
}

/// A VM that is about to start has the size that an earlier one did not see.
pub async fn seen(shared: &Shared, id: &VolumeId) {
    let is_of_extension =
        |row: &VolumeRow| row.failure.as_ref().is_some_and(|f| f.kind == "extend");
    if !shared.volumes.row(id).is_some_and(|row| is_of_extension(&row)) {
        return;
    }
    let _turn = shared.volumes.turn(id).await;
    let Some(mut row) = shared.volumes.row(id).filter(is_of_extension) else { return };
    row.failure = None;
    if let Err(error) = try_record(shared, row, None, Room::Free).await {
        tracing::warn!(volume = %id, %error, "can't record a volume");
    }
}

async fn grow(shared: &Shared, id: &VolumeId) -> Result<(), VolumeError> {
    let Some(size) = shared.volumes.row(id).and_then(|row| row.extend_to) else { return Ok(()) };
    // A snapshot that is being taken is taken anew: it is of one size.
    let wanted = shared.volumes.background.want(id).await;
    let grown = grow_files(shared, id, SizeGib::new(size)?).await;
    if matches!(grown, Err(VolumeError::Interrupted(_))) {
        return Ok(());
    }
    drop(wanted);
    let _turn = shared.volumes.turn(id).await;
    while let Some(mut row) =
        shared.volumes.row(id).filter(|row| row.state == VolumeState::Extending)
    {
        (row.state, row.extend_to) = (VolumeState::Created, None);
        match &grown {
            Ok(unseen) => {
                row.size_gb = size;
                unseen.iter().for_each(|reason| row.fail("extend", reason));
            }
            Err(error) => row.fail("extend", error),
        }
        match try_record(shared, row, None, Room::Reserve).await {
            Ok(()) => break,
            Err(error) => tracing::error!(volume = %id, %error, "can't record a volume"),
        }
        shared.clock.sleep(RETRY).await;
    }
    grown.map(drop)
}

/// Has the files grow, and tells why the machine that runs does not see it, if it does not.
async fn grow_files(
    shared: &Shared,
    id: &VolumeId,
    size: SizeGib,
) -> Result<Option<String>, VolumeError> {
    let grown = shared.volumes.files.grow(id, size).await;
    shared.fulfil(id);
    match grown? {
        Growth::Done => Ok(None),
        Growth::Resize { bytes } => Ok(tell_machine(shared, id, bytes).await),
    }
}

async fn tell_machine(shared: &Shared, id: &VolumeId, bytes: u64) -> Option<String> {
    let Attachment { machine, index, .. } = shared.volumes.attached(id)?;
    // Without a VM the next one has it.
    let vm = shared.vm(&machine)?;
    let unseen = |what: &str, error: String| {
        let text = format!("{what}: {error}; restart the machine to use the added space");
        tracing::warn!(volume = %id, %machine, text, "a machine does not see its volume grow");
        text
    };
    if let Err(error) = vm.resize_volume(index, bytes).await {
        shared.vm(&machine)?;
        return Some(unseen("the VM could not be told", error.to_string()));
    }
    let Some(session) = quiet_session(shared, &machine).await else {
        // One that is not started has its file system grown when it is mounted. A resumed one has
        // mounted it, and may have been caught up with before the VM was told.
        let vm = shared.vm(&machine)?;
        let is_resumed = vm.start().kind == StartKind::Resume;
        return is_resumed
            .then(|| unseen("the guest could not be told", "it does not answer yet".to_owned()));
    };
    tokio::select! {
        grown = session.grow_volume(index, bytes, GUEST_DEADLINE) => {
            let error = grown.err()?.to_string();
            Some(unseen("the guest could not grow the file system", error))
        }
        _ = vm.wait() => None,
    }
}
