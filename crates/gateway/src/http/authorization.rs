//! What a caller may see and change. Apps, machines, volumes, snapshots and organizations that
//! requests name are found here and nowhere else: the names in a path are handed out only to
//! callers that may see what they are names of.
//!
//! A caller that may not see an app gets the answer that it would get if there were none. So the
//! decision is by name, before anything is looked up: neither the answer nor the time that it takes
//! tells one from the other. The answer is given where the app would be looked up, after what else
//! may be wrong with the request, for the same reason.
#![expect(clippy::disallowed_methods, reason = "this is where the caller is asked for")]

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use caddis_api::{
    ApiError, ErrorCode, LeaseNonce, MachineId, SnapshotId, VolumeId, WorkerId, app::Organization,
};
use caddis_bus::message::{
    Action, SnapshotRecord, VolumeAction, VolumeRecord, WorkerReply, WorkerRequest,
};
use caddis_catalog::{AppPage, AppQuery, AppRecord, CatalogError, TokenScope, VolumePlacement};
use caddis_view::{ByReach, CachedMachine};
use futures::future::join_all;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::watch;
use utoipa::IntoParams;

use crate::http::{
    caller::Caller,
    context::Context,
    errors::{HttpError, app_not_found, unexpected},
};

/// What was looked for, or why the caller does not get it.
type Found<T> = Result<T, ApiError>;

impl Caller {
    /// The organization of this slug, or 404.
    pub async fn organization(&self, context: &Context, slug: &str) -> Found<Organization> {
        let slug = self.slug(slug);
        let found = match self.token {
            TokenScope::App { .. } if slug != self.organization => None,
            _ => context.catalog.organization(slug).await?,
        };
        Ok(found.ok_or_else(|| CatalogError::OrganizationNotFound(slug.to_owned()))?)
    }

    /// The apps it may see.
    pub async fn apps(&self, context: &Context, query: AppQuery) -> Found<AppPage> {
        let TokenScope::App { name, .. } = &self.token else {
            return Ok(context.catalog.apps(query).await?);
        };
        let is_asked_for = |app: &AppRecord| {
            query.organization.as_ref().is_none_or(|slug| *slug == app.organization.slug)
                && query.created_until_ms.is_none_or(|until| app.created_ms <= until)
        };
        let mut apps = Vec::from_iter(context.catalog.app(name).await?.filter(is_asked_for));
        let total = apps.len() as u64;
        apps.retain(|app| app.number > query.after);
        Ok(AppPage { apps, total, more: false })
    }
}

impl Caller {
    /// A snapshot that volumes of this app may be made from, and who has it: one of the same
    /// organization, of an app that the caller may see. Its volume and that one's app may be gone.
    pub async fn snapshot(
        &self,
        context: &Context,
        app: &AppRecord,
        id: &SnapshotId,
    ) -> Found<(WorkerId, SnapshotRecord)> {
        let ByReach { heard, silent } = context.view.hosts().by_reach();
        let asked = heard.into_iter().map(|(worker, _)| async move {
            let found = snapshot(context, &worker, id).await;
            (worker, found)
        });
        let mut unasked = silent.into_iter().map(|(worker, _)| worker).next();
        for (worker, answer) in join_all(asked).await {
            match answer {
                Ok(Some(record)) => {
                    let placed = context.catalog.volume(&record.volume).await?;
                    if placed.is_some_and(|placed| self.may_restore(app, &placed)) {
                        return Ok((worker, record));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%worker, %error, "a worker did not tell of a snapshot");
                    unasked = Some(worker);
                }
            }
        }
        match unasked {
            Some(host) => Err(ApiError::new(
                ErrorCode::Unavailable,
                format!("unavailable: host {host}, which may have snapshot {id}, does not answer"),
            )),
            None => Err(ApiError::invalid(format!(
                "invalid snapshot_id, the organization has no snapshot '{id}'"
            ))),
        }
    }

    /// Whether there is an app of this name in the organization of `app`, which the caller may see.
    pub async fn is_of_organization(
        &self,
        context: &Context,
        app: &AppRecord,
        name: &str,
    ) -> Found<bool> {
        if self.may(name).is_err() {
            return Ok(false);
        }
        let found = context.catalog.app(name).await?;
        Ok(found.is_some_and(|other| other.organization.slug == app.organization.slug))
    }

    /// Whether snapshots of that volume may become volumes of this app.
    fn may_restore(&self, app: &AppRecord, placed: &VolumePlacement) -> bool {
        match self.token {
            TokenScope::All => placed.organization == app.organization.slug,
            TokenScope::App { .. } => placed.app_number == app.number,
        }
    }
}

/// What a worker knows of a snapshot.
async fn snapshot(
    context: &Context,
    worker: &WorkerId,
    id: &SnapshotId,
) -> Found<Option<SnapshotRecord>> {
    let request = WorkerRequest::GetSnapshot { snapshot: id.clone() };
    match context.ask(worker, request, context.settings.request_deadline).await? {
        WorkerReply::Snapshots { mut records } => Ok(records.pop()),
        other => Err(unexpected(&other)),
    }
}

/// Whether the caller may do what it wants to this app.
fn decide(parts: &Parts, app: &str) -> Result<(), ApiError> {
    let caller = parts.extensions.get::<Caller>();
    caller.ok_or_else(|| ApiError::internal("an endpoint about an app asks for no token"))?.may(app)
}

async fn app(context: &Context, name: &str) -> Found<AppRecord> {
    context.catalog.app(name).await?.ok_or_else(|| app_not_found(name))
}

/// Without a question to the catalog where the machine is there.
async fn machine(context: &Context, name: &str, id: &MachineId) -> Found<Arc<CachedMachine>> {
    if let Some(shown) = context.view.get(id).filter(|shown| shown.record.app == name) {
        return Ok(shown);
    }
    app(context, name).await?;
    Err(ApiError::machine_not_found())
}

/// Where a volume of this very app is, or was: of an app that had its name before there may be some
/// left.
async fn placed(context: &Context, app: &AppRecord, id: &VolumeId) -> Found<VolumePlacement> {
    let placed = context.catalog.volume(id).await?.filter(|row| row.app_number == app.number);
    placed.ok_or_else(ApiError::volume_not_found)
}

async fn volume(context: &Context, app: &AppRecord, id: &VolumeId) -> Found<VolumeRecord> {
    let placed = placed(context, app, id).await?;
    match context.view.volume(id) {
        Some(record) => Ok(record),
        None if !placed.deleted && context.view.hosts().state(&placed.worker).is_none() => {
            Err(ApiError::new(
                ErrorCode::Unavailable,
                "unavailable: nothing was heard of the host of the volume yet, try again later",
            ))
        }
        None => Err(ApiError::volume_not_found()),
    }
}

async fn in_path<T: DeserializeOwned + Send>(parts: &mut Parts, context: &Context) -> Found<T> {
    let path = Path::<T>::from_request_parts(parts, context).await;
    path.map(|Path(found)| found).map_err(|e| ApiError::invalid(format!("invalid path: {e}")))
}

/// What the path calls it.
#[derive(Deserialize)]
struct OrganizationWord {
    org_slug: String,
}

/// An organization in the path.
pub(crate) struct OrganizationPath {
    slug: String,
}

impl OrganizationPath {
    /// The organization, or 404.
    pub async fn look_up(&self, context: &Context, caller: &Caller) -> Found<Organization> {
        caller.organization(context, &self.slug).await
    }
}

impl FromRequestParts<Context> for OrganizationPath {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, HttpError> {
        let OrganizationWord { org_slug } = in_path(parts, context).await?;
        Ok(Self { slug: org_slug })
    }
}

/// An app in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct AppPath {
    /// Name of the app.
    #[param(rename = "app_name")]
    app: String,
    #[param(ignore)]
    decision: Result<(), ApiError>,
}

impl AppPath {
    /// Its name, or the answer for an app that is not there. It may not be there all the same.
    pub fn name(&self) -> Found<&str> {
        self.decision.clone().map(|()| self.app.as_str())
    }

    /// The app, or 404 with the text that clients look for.
    pub async fn look_up(&self, context: &Context) -> Found<AppRecord> {
        app(context, self.name()?).await
    }

    /// A volume of the app.
    pub async fn volume(&self, context: &Context, id: &VolumeId) -> Found<VolumeRecord> {
        context.volumes_synced().await?;
        volume(context, &self.look_up(context).await?, id).await
    }

    /// A machine of the app.
    pub async fn machine(&self, context: &Context, id: &MachineId) -> Found<Arc<CachedMachine>> {
        context.synced().await?;
        machine(context, self.name()?, id).await
    }
}

/// The app in a path; there may be other parts.
#[derive(Deserialize)]
struct AppWord {
    #[serde(rename = "app_name")]
    app: String,
}

impl FromRequestParts<Context> for AppPath {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, HttpError> {
        let AppWord { app } = in_path(parts, context).await?;
        Ok(Self { decision: decide(parts, &app), app })
    }
}

/// A machine in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct MachinePath {
    /// Name of the app.
    #[param(rename = "app_name")]
    app: String,
    /// Id of the machine.
    #[param(rename = "machine_id", value_type = String, pattern = "^[0-9a-f]{8,32}$")]
    id: MachineId,
    #[param(ignore)]
    decision: Result<(), ApiError>,
}

impl MachinePath {
    /// The machine, or the answer for a machine or an app that is not there.
    pub async fn look_up(&self, context: &Context) -> Found<Arc<CachedMachine>> {
        context.synced().await?;
        self.decision.clone()?;
        machine(context, &self.app, &self.id).await
    }

    /// The machine from now on. The receiver ends when the machine is forgotten.
    pub async fn watch(&self, context: &Context) -> Found<watch::Receiver<Arc<CachedMachine>>> {
        self.look_up(context).await?;
        context.view.watch(&self.id).ok_or_else(ApiError::machine_not_found)
    }

    /// Asks the owner of the machine for a change.
    pub async fn act(
        &self,
        context: &Context,
        nonce: Option<LeaseNonce>,
        action: Action,
    ) -> Result<WorkerReply, ApiError> {
        let shown = self.look_up(context).await?;
        let request = WorkerRequest::Act { machine: self.id.clone(), nonce, action };
        Ok(context.ask(&shown.record.worker, request, context.settings.request_deadline).await?)
    }
}

/// Its parts; there may be others.
#[derive(Deserialize)]
struct Words {
    #[serde(rename = "app_name")]
    app: String,
    #[serde(rename = "machine_id")]
    id: String,
}

impl FromRequestParts<Context> for MachinePath {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, HttpError> {
        let Words { app, id } = in_path(parts, context).await?;
        let id = id.parse().map_err(|_| {
            let shown: String = id.escape_debug().take(100).collect();
            ApiError::invalid(format!("invalid machine ID, '{shown}'"))
        })?;
        Ok(Self { decision: decide(parts, &app), app, id })
    }
}

/// A volume in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct VolumePath {
    /// Name of the app.
    #[param(rename = "app_name")]
    app: String,
    /// Id of the volume.
    #[param(rename = "volume_id", value_type = String, pattern = "^vol_[0-9a-z]{1,40}$")]
    id: VolumeId,
    #[param(ignore)]
    decision: Result<(), ApiError>,
}

impl VolumePath {
    /// The volume, or the answer for a volume or an app that is not there.
    pub async fn look_up(&self, context: &Context) -> Found<VolumeRecord> {
        context.volumes_synced().await?;
        self.decision.clone()?;
        volume(context, &app(context, &self.app).await?, &self.id).await
    }

    /// Where the volume is, or was: also of one that is gone.
    pub async fn placed(&self, context: &Context) -> Found<VolumePlacement> {
        self.decision.clone()?;
        placed(context, &app(context, &self.app).await?, &self.id).await
    }

    /// Asks the owner of the volume for a change.
    pub async fn act(&self, context: &Context, action: VolumeAction) -> Found<VolumeRecord> {
        let record = self.look_up(context).await?;
        let request = WorkerRequest::ActOnVolume { volume: self.id.clone(), action };
        match context.ask(&record.worker, request, context.settings.request_deadline).await? {
            WorkerReply::Volume { record } => Ok(*record),
            other => Err(unexpected(&other)),
        }
    }
}

/// Its parts; there may be others.
#[derive(Deserialize)]
struct VolumeWords {
    #[serde(rename = "app_name")]
    app: String,
    #[serde(rename = "volume_id")]
    id: String,
}

impl FromRequestParts<Context> for VolumePath {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, HttpError> {
        let VolumeWords { app, id } = in_path(parts, context).await?;
        let id = id.parse().map_err(|_| {
            let shown: String = id.escape_debug().take(100).collect();
            ApiError::invalid(format!("invalid volume ID, '{shown}'"))
        })?;
        Ok(Self { decision: decide(parts, &app), app, id })
    }
}

/// A snapshot of a volume in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct SnapshotPath {
    /// Name of the app.
    #[param(rename = "app_name")]
    app: String,
    /// Id of the volume, which may be gone.
    #[param(rename = "volume_id", value_type = String, pattern = "^vol_[0-9a-z]{1,40}$")]
    volume: VolumeId,
    /// Id of the snapshot.
    #[param(rename = "snapshot_id", value_type = String, pattern = "^vs_[0-9A-Za-z]{1,40}$")]
    id: SnapshotId,
    #[param(ignore)]
    decision: Result<(), ApiError>,
}

impl SnapshotPath {
    /// The snapshot, and who has it.
    pub async fn look_up(&self, context: &Context) -> Found<(WorkerId, SnapshotRecord)> {
        self.decision.clone()?;
        let placed = placed(context, &app(context, &self.app).await?, &self.volume).await?;
        let found = snapshot(context, &placed.worker, &self.id).await?;
        let found = found.filter(|record| record.volume == self.volume);
        Ok((placed.worker, found.ok_or_else(ApiError::snapshot_not_found)?))
    }
}

/// Its part beside that of a volume.
#[derive(Deserialize)]
struct SnapshotWord {
    #[serde(rename = "snapshot_id")]
    id: String,
}

impl FromRequestParts<Context> for SnapshotPath {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, HttpError> {
        let VolumePath { app, id: volume, decision } =
            VolumePath::from_request_parts(parts, context).await?;
        let SnapshotWord { id } = in_path(parts, context).await?;
        let id = id.parse().map_err(|_| {
            let shown: String = id.escape_debug().take(100).collect();
            ApiError::invalid(format!("invalid snapshot ID, '{shown}'"))
        })?;
        Ok(Self { app, volume, id, decision })
    }
}
