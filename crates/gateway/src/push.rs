//! What workers are told all of at once: when something of it has changed, and when a worker is new
//! or was away. The catalog knows it.
//!
//! Several gateways may tell a worker at once. Each takes a number from the catalog first and reads
//! then, and the worker takes nothing under a lower number than it knows. So what it has holds all
//! changes that there were before its number was taken, and what it does not take is older.

use std::time::Duration;

use caddis_api::{ApiError, WorkerId};
use caddis_bus::{
    AskError,
    message::{WorkerReply, WorkerRequest},
};
use caddis_catalog::Push;
use caddis_view::{ByReach, Change};
use futures::future::join_all;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

use crate::{
    http::{context::Context, errors::unexpected},
    told::{Told, Workers},
};

/// Until a worker that could not be told is told again.
const AGAIN: Duration = Duration::from_secs(1);

/// Something that each worker is told as a whole.
pub(crate) trait Pushed: Sized + Clone + PartialEq + Send + Sync {
    const PUSH: Push;
    /// What it is called in the log.
    const NAME: &'static str;

    /// What workers know of it.
    fn workers(context: &Context) -> &Workers<Self>;

    /// Reads what a worker should know.
    fn read(
        context: &Context,
        worker: &WorkerId,
    ) -> impl Future<Output = Result<Self, ApiError>> + Send;

    fn request(self, revision: u64) -> WorkerRequest;

    /// Tells all workers; whether all know it now.
    fn tell_all(context: &Context) -> impl Future<Output = bool> + Send;
}

/// Tells a worker, if it does not know. Once this has ended, what the catalog said when this began
/// is in force there, or what it said later.
pub(crate) async fn tell<T: Pushed>(context: &Context, worker: &WorkerId) -> Result<(), AskError> {
    let refused = |error| AskError::Refused(ApiError::from(error));
    let catalog = &context.catalog;
    let told = T::workers(context).of(worker);
    // While it is held, so that what is read later is told later.
    let mut told = told.lock().await;
    let mut newest = catalog.push_revision(T::PUSH, worker).await.map_err(refused)?;
    let known = T::read(context, worker).await.map_err(AskError::Refused)?;
    if told.as_ref().is_some_and(|told| told.revision == newest && told.content == known) {
        return Ok(());
    }
    // Whether it has taken it is not known until it says so.
    *told = None;
    loop {
        let raised = catalog.raise_push_revision(T::PUSH, worker, newest).await;
        let revision = raised.map_err(refused)?;
        let content = T::read(context, worker).await.map_err(AskError::Refused)?;
        let request = content.clone().request(revision);
        let theirs = match context.ask(worker, request, context.settings.request_deadline).await? {
            WorkerReply::PoliciesSet { revision } | WorkerReply::Egress { revision } => revision,
            other => return Err(AskError::Refused(unexpected(&other))),
        };
        if theirs <= revision {
            *told = Some(Told { revision, content });
            return Ok(());
        }
        if catalog.push_revision(T::PUSH, worker).await.map_err(refused)? >= theirs {
            // Another gateway has begun after this one, and told it.
            return Ok(());
        }
        // The catalog is an earlier one than the worker has known, as from a backup.
        newest = theirs;
    }
}

/// Tells all workers that are not silent. Whether all know it now, and what one of them, which it
/// names, says against it.
pub(crate) async fn tell_each<T: Pushed>(
    context: &Context,
) -> (bool, Result<(), (WorkerId, ApiError)>) {
    let ByReach { heard, silent } = context.view.hosts().by_reach();
    let told = heard.into_iter().map(|(worker, _)| async move {
        let outcome = tell::<T>(context, &worker).await;
        (worker, outcome)
    });
    // Those that are silent are not waited for.
    let (mut all, mut refused) = (silent.is_empty(), Ok(()));
    for (worker, outcome) in join_all(told).await {
        let Err(error) = outcome else { continue };
        all = false;
        let is_refused = matches!(error, AskError::Refused(_));
        let error = ApiError::from(error);
        tracing::warn!(%worker, error = error.message, "can't tell a worker the {}, will try again",
            T::NAME);
        if is_refused {
            refused = Err((worker, error));
        }
    }
    (all, refused)
}

/// Keeps all workers told, also after each change that this gateway makes; never ends.
pub(crate) async fn follow<T: Pushed>(
    context: Context,
    mut changes: broadcast::Receiver<Change>,
    mut changed: watch::Receiver<u64>,
) {
    let workers = T::workers(&context);
    let (mut all_told, mut again) = (false, tokio::time::interval(AGAIN));
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                // It may be another process than before.
                Ok(Change::Listed(worker)) => workers.forget(&worker),
                Ok(Change::Host(_)) | Err(RecvError::Lagged(_)) => {}
                Ok(_) => continue,
                Err(RecvError::Closed) => return,
            },
            changed = changed.changed() => if changed.is_err() { return },
            () = workers.due.notified() => {}
            _ = again.tick(), if !all_told => {}
        }
        all_told = T::tell_all(&context).await;
    }
}
