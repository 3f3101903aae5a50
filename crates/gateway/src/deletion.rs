//! The end of things: names of destroyed machines are freed, machines and volumes that were placed
//! but never made are given up, apps in deletion lose their machines, then their volumes, and go.
//! All of it may be done again at any time, and is at each start.
#![expect(
    clippy::disallowed_methods,
    reason = "what the server does by itself is done for no caller"
)]

use std::{collections::HashSet, time::Duration};

use caddis_api::{
    ApiError, AppName, ErrorCode, MachineId, MachineState, UnixMillis, VolumeId, WorkerId,
};
use caddis_bus::message::{
    Action, MachineRecord, VolumeAction, VolumeRecord, WorkerReply, WorkerRequest,
};
use caddis_catalog::{AppState, CatalogError, FIRST_EPOCH, Placement, VolumePlacement};
use caddis_view::{CachedMachine, Change, Superseded};
use futures::stream::{self, TryStreamExt as _};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::http::context::{AskError, Context};

/// First and longest wait before something that failed is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Machines of one app destroyed at the same time.
const AT_ONCE: usize = 8;

/// Follows the view until it is dropped.
pub(crate) async fn tidy(context: Context, mut changes: broadcast::Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change::Machine(id)) => {
                let Some(shown) =
                    context.view.get(&id).filter(|shown| shown.state() == MachineState::Destroyed)
                else {
                    continue;
                };
                retry_forever("release a machine", || release_destroyed(&context, &shown)).await;
            }
            Ok(Change::Listed(worker)) => reconcile(&context, &worker).await,
            Ok(Change::Host(_)) => {}
            Ok(Change::Volume(id)) => {
                let Some(record) = context.view.volume(&id) else { continue };
                retry_forever("keep what became of a volume", || sync_volume(&context, &record))
                    .await;
            }
            Ok(Change::VolumesListed(worker)) => reconcile_volumes(&context, &worker).await,
            Ok(Change::Superseded(copy)) => supersede(&context, copy),
            // What was missed is found by looking at everything.
            Err(RecvError::Lagged(_)) => {
                for (worker, _) in context.view.hosts().all() {
                    reconcile(&context, &worker).await;
                    reconcile_volumes(&context, &worker).await;
                }
                context.view.superseded().into_iter().for_each(|copy| supersede(&context, copy));
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Has a worker stop its copy of a machine that was placed elsewhere since, however often it takes.
fn supersede(context: &Context, copy: Superseded) {
    if !context.superseding.begin(copy.clone()) {
        return;
    }
    let context = context.clone();
    context.clone().background(async move {
        let Superseded { machine, worker, epoch } = &copy;
        tracing::warn!(%machine, %worker, epoch, "stopping a stale copy of a machine that was \
            placed elsewhere");
        retry_forever("stop a stale copy of a machine", || async {
            let request = WorkerRequest::Supersede { machine: machine.clone(), epoch: *epoch };
            match context.workers.ask(worker, request, context.settings.request_deadline).await {
                Err(AskError::Refused(error)) if error.code == ErrorCode::NotFound => Ok(()),
                answer => Ok(answer.map(drop)?),
            }
        })
        .await;
        context.superseding.end(&copy);
    });
}

/// Frees the name of a destroyed machine, unless it was a copy of one that was placed elsewhere
/// since.
async fn release_destroyed(context: &Context, shown: &CachedMachine) -> Result<(), ApiError> {
    let MachineRecord { epoch, app, machine, .. } = &shown.record;
    let placement = context.catalog.placement(&machine.id).await?;
    if placement.is_some_and(|placement| placement.epoch > *epoch) {
        return Ok(());
    }
    release(context, &machine.id, app).await
}

async fn release(context: &Context, machine: &MachineId, app: &str) -> Result<(), ApiError> {
    context.catalog.release(machine).await?;
    if !finish(context, app).await? {
        // Its volumes are free now.
        delete_volumes_in_background(context, app).await?;
    }
    Ok(())
}

/// Ends the deletion of an app that has nothing any more. Whether it is gone.
async fn finish(context: &Context, app: &str) -> Result<bool, ApiError> {
    let gone = context.catalog.finish_app_deletion(app).await?;
    if gone {
        context.view.end_app(app);
        tracing::info!(app, "app deleted");
    }
    Ok(gone)
}

async fn retry_forever<F: Future<Output = Result<(), ApiError>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) {
    let mut pause = BACKOFF.0;
    while let Err(error) = attempt().await {
        tracing::warn!(error = error.message, "can't {what}, retrying");
        tokio::time::sleep(pause).await;
        pause = BACKOFF.1.min(pause * 2);
    }
}

/// Compares the catalog with a worker that was just listed.
async fn reconcile(context: &Context, worker: &WorkerId) {
    retry_forever("compare the catalog with a worker", || async {
        let mut placed = HashSet::new();
        for placement in context.catalog.placements(Some(worker)).await? {
            placed.insert(placement.machine.clone());
            match context.view.get(&placement.machine) {
                Some(shown) if shown.state() == MachineState::Destroyed => {
                    release_destroyed(context, &shown).await?
                }
                Some(_) => {}
                // One that was moved was made, and who moves it sees to it.
                None if placement.epoch > FIRST_EPOCH => {}
                None => context.background(give_up_unless_made(context.clone(), placement)),
            }
        }
        for shown in context.view.of_worker(worker) {
            let (id, epoch) = (&shown.record.machine.id, shown.record.epoch);
            if shown.state() == MachineState::Destroyed || placed.contains(id) {
                continue;
            }
            if let Some(later) =
                context.catalog.placement(id).await?.filter(|placement| placement.epoch > epoch)
            {
                let copy =
                    Superseded { machine: id.clone(), worker: worker.clone(), epoch: later.epoch };
                supersede(context, copy);
            }
        }
        for app in context.catalog.apps_in_deletion().await? {
            begin(context, &app.name);
        }
        Ok(())
    })
    .await;
}

/// Frees the name of a placed machine when its worker does not know it and nobody can still be
/// making it.
pub(crate) async fn give_up_unless_made(context: Context, placement: Placement) {
    // Twice as long as `may_be_under_way`: its request may be sent once more until then.
    tokio::time::sleep((create_takes(&context) * 2).saturating_sub(age(&placement))).await;
    retry_forever("find out whether a machine was created", || {
        release_unless_made(&context, &placement)
    })
    .await;
}

/// Longest time in which the worker may hear of a new machine after it was placed: it is asked
/// twice.
fn create_takes(context: &Context) -> Duration {
    context.settings.create_deadline * 2
}

fn age(placement: &Placement) -> Duration {
    UnixMillis::now().since(placement.created_ms)
}

/// Whether a machine may still be made that was placed.
pub(crate) fn may_be_under_way(context: &Context, placement: &Placement) -> bool {
    age(placement) < create_takes(context)
}

/// Frees the name of a placed machine when its worker does not know it.
pub(crate) async fn release_unless_made(
    context: &Context,
    placement: &Placement,
) -> Result<(), ApiError> {
    let request = WorkerRequest::Get { machine: placement.machine.clone() };
    match context.ask(&placement.worker, request, context.settings.request_deadline).await {
        Err(AskError::Refused(error)) if error.code == ErrorCode::NotFound => {
            tracing::warn!(machine = %placement.machine, "a machine was placed but never created");
            release(context, &placement.machine, &placement.app).await
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Destroys the machines of an app in deletion in the background, deletes its volumes and ends the
/// deletion.
pub(crate) fn begin(context: &Context, app: &AppName) {
    if !context.deletions.begin(app.clone()) {
        return;
    }
    let (context, app) = (context.clone(), app.clone());
    context.clone().background(async move {
        retry_forever("delete what is in an app", || delete_machines(&context, &app)).await;
        context.deletions.end(&app);
    });
}

async fn delete_machines(context: &Context, app: &str) -> Result<(), ApiError> {
    let gone = |state| matches!(state, MachineState::Destroying | MachineState::Destroyed);
    let machines = context.view.of_app(app).into_iter().filter(|shown| !gone(shown.state()));
    stream::iter(machines.map(Ok))
        .try_for_each_concurrent(AT_ONCE, |shown| async move {
            destroy(context, &shown.record.worker, &shown.record.machine.id).await
        })
        .await?;
    delete_volumes(context, app).await
}

/// Destroys a machine whoever holds its lease.
async fn destroy(
    context: &Context,
    worker: &WorkerId,
    machine: &MachineId,
) -> Result<(), ApiError> {
    let deadline = context.settings.request_deadline;
    let act = |nonce, action| WorkerRequest::Act { machine: machine.clone(), nonce, action };
    let nonce = match context.ask(worker, act(None, Action::GetLease), deadline).await {
        Ok(WorkerReply::Lease { lease }) => Some(lease.nonce),
        _ => None,
    };
    match context.ask(worker, act(nonce, Action::Destroy { force: true }), deadline).await {
        Ok(_) => Ok(()),
        Err(AskError::Refused(error)) if error.code == ErrorCode::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes the volumes of an app in deletion whose machines are gone; the others when these go.
async fn delete_volumes(context: &Context, app: &str) -> Result<(), ApiError> {
    let Some(record) = context.catalog.app(app).await? else { return Ok(()) };
    if record.state != AppState::Deleting {
        return Ok(());
    }
    for placed in context.catalog.volumes_of(record.number).await? {
        if !placed.deleted && !is_held(context, &placed.id) {
            delete_volume(context, &placed).await?;
        }
    }
    finish(context, app).await.map(drop)
}

async fn delete_volumes_in_background(context: &Context, app: &str) -> Result<(), ApiError> {
    let record = context.catalog.app(app).await?;
    if record.is_none_or(|record| record.state != AppState::Deleting) {
        return Ok(());
    }
    let (context, app) = (context.clone(), app.to_owned());
    context.clone().background(async move {
        retry_forever("delete the volumes of an app", || delete_volumes(&context, &app)).await;
    });
    Ok(())
}

/// Whether a machine has the volume that is not gone yet.
fn is_held(context: &Context, id: &VolumeId) -> bool {
    let holder = context.view.volume(id).and_then(|record| record.volume.attached_machine_id);
    let shown = holder.and_then(|machine| context.view.get(&machine));
    shown.is_some_and(|shown| shown.state() != MachineState::Destroyed)
}

async fn delete_volume(context: &Context, placed: &VolumePlacement) -> Result<(), ApiError> {
    let volume = placed.id.clone();
    let request = WorkerRequest::ActOnVolume { volume, action: VolumeAction::Delete };
    match context.ask(&placed.worker, request, context.settings.request_deadline).await {
        Ok(_) => {}
        Err(AskError::Refused(error)) if error.code == ErrorCode::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(context.catalog.delete_volume(&placed.id).await?)
}

/// Deletes a volume however often its worker must be asked.
fn delete_volume_in_background(context: &Context, placed: VolumePlacement) {
    if !context.volume_deletions.begin(placed.id.clone()) {
        return;
    }
    let context = context.clone();
    context.clone().background(async move {
        retry_forever("delete a volume", || delete_volume(&context, &placed)).await;
        context.volume_deletions.end(&placed.id);
    });
}

/// Has the catalog know whether a volume is deleted. One of an app that is gone is deleted, in the
/// background: no worker is waited for.
pub(crate) async fn sync_volume(context: &Context, record: &VolumeRecord) -> Result<(), ApiError> {
    let id = &record.volume.id;
    let Some(placed) = context.catalog.volume(id).await? else { return Ok(()) };
    if placed.deleted == record.volume.state.is_deleted() {
        return Ok(());
    }
    if record.volume.state.is_deleted() {
        context.catalog.delete_volume(id).await?;
        return finish(context, &placed.app).await.map(drop);
    }
    match context.catalog.undelete_volume(id).await {
        Err(CatalogError::VolumeNotFound(_) | CatalogError::AppInDeletion(_)) => {
            tracing::warn!(volume = %id, "deleting a volume of an app that is deleted");
            delete_volume_in_background(context, placed);
            Ok(())
        }
        undeleted => Ok(undeleted?),
    }
}

/// Compares the catalog with a worker whose volumes were just listed.
async fn reconcile_volumes(context: &Context, worker: &WorkerId) {
    retry_forever("compare the catalog with the volumes of a worker", || async {
        let mut placed = HashSet::new();
        for row in context.catalog.volumes_on(worker).await? {
            placed.insert(row.id.clone());
            match context.view.volume(&row.id) {
                Some(record) if row.deleted != record.volume.state.is_deleted() => {
                    sync_volume(context, &record).await?
                }
                Some(_) => {}
                None => give_up_volume_unless_made(context, row),
            }
        }
        for record in context.view.volumes_of_worker(worker) {
            if !record.volume.state.is_deleted() && !placed.contains(&record.volume.id) {
                sync_volume(context, &record).await?;
            }
        }
        Ok(())
    })
    .await;
}

/// Gives a placed volume up when its worker does not know it and nobody can still be making it,
/// in the background. One task watches it, however often it is missed.
pub(crate) fn give_up_volume_unless_made(context: &Context, placed: VolumePlacement) {
    if !context.missing_volumes.begin(placed.id.clone()) {
        return;
    }
    let context = context.clone();
    context.clone().background(async move {
        let age = UnixMillis::now().since(placed.created_ms);
        tokio::time::sleep((create_takes(&context) * 2).saturating_sub(age)).await;
        retry_forever("find out whether a volume was created", || async {
            let request = WorkerRequest::GetVolume { volume: placed.id.clone() };
            match context.ask(&placed.worker, request, context.settings.request_deadline).await {
                Err(AskError::Refused(error)) if error.code == ErrorCode::NotFound => {
                    tracing::warn!(volume = %placed.id, "a volume was placed, and is not there");
                    give_up_volume(&context, &placed).await
                }
                answer => Ok(answer.map(drop)?),
            }
        })
        .await;
        context.missing_volumes.end(&placed.id);
    });
}

/// A volume that was placed was not made.
pub(crate) async fn give_up_volume(
    context: &Context,
    placed: &VolumePlacement,
) -> Result<(), ApiError> {
    context.catalog.delete_volume(&placed.id).await?;
    finish(context, &placed.app).await.map(drop)
}
