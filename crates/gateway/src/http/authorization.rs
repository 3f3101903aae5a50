//! What a caller may see and change. Apps, machines, volumes and organizations that requests name
//! are found here and nowhere else: the names in a path are handed out only to callers that may see
//! what they are names of.
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
use caddis_api::{ApiError, ErrorCode, LeaseNonce, MachineId, VolumeId, app::Organization};
use caddis_bus::message::{Action, VolumeAction, VolumeRecord, WorkerReply, WorkerRequest};
use caddis_catalog::{AppPage, AppQuery, AppRecord, CatalogError, TokenScope};
use caddis_view::CachedMachine;
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

/// A volume of this very app: of an app that had its name before there may be some left.
async fn volume(context: &Context, app: &AppRecord, id: &VolumeId) -> Found<VolumeRecord> {
    let placed = context.catalog.volume(id).await?.filter(|row| row.app_number == app.number);
    let Some(placed) = placed else { return Err(ApiError::volume_not_found()) };
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
        Ok(Self { slug: in_path(parts, context).await? })
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
