//! What all endpoints share, and how they reach machines and workers.

use std::{sync::Arc, time::Duration};

use caddis_api::{ApiError, ErrorCode, LeaseNonce, MachineId, WorkerId, platform::HostState};
use caddis_bus::{
    BusError,
    message::{self, Action, Envelope, WorkerReply, WorkerRequest, WorkerResult},
};
use caddis_catalog::{AppRecord, Catalog};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    GatewayParts, Settings,
    deletion::{Deletions, Destroyed},
    hosts::Hosts,
    idempotency::Turns,
    limits::Limits,
    regions::Regions,
    view::{Shown, View},
};

/// Shared by all requests.
pub(crate) type Context = Arc<Inner>;

/// How long a request waits for the first listing of the workers.
const SYNC_PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Inner {
    pub bus: Arc<dyn caddis_bus::Bus>,
    pub streams: Arc<dyn caddis_bus::stream::Streams>,
    pub catalog: Catalog,
    pub regions: Regions,
    pub hosts: Hosts,
    pub settings: Settings,
    pub view: View,
    pub deletions: Deletions,
    pub limits: Option<Limits>,
    pub turns: Turns,
    /// Ends waits and event streams.
    pub closing: CancellationToken,
    /// Ends work in the background.
    pub ending: CancellationToken,
}

impl Inner {
    pub fn new(parts: GatewayParts) -> (Context, mpsc::UnboundedReceiver<Destroyed>) {
        let (destroyed, receiver) = mpsc::unbounded_channel();
        let inner = Self {
            bus: parts.bus,
            streams: parts.streams,
            catalog: parts.catalog,
            view: View::new(destroyed, parts.settings.destroyed_retention, parts.workers.is_empty()),
            hosts: Hosts::new(
                parts.workers,
                &parts.region,
                (parts.settings.suspected_after, parts.settings.unreachable_after),
            ),
            regions: Regions::new(parts.region, parts.regions),
            limits: Limits::new(parts.settings.rate_limit),
            settings: parts.settings,
            deletions: Deletions::default(),
            turns: Turns::default(),
            closing: CancellationToken::new(),
            ending: CancellationToken::new(),
        };
        (Arc::new(inner), receiver)
    }

    /// Runs work that ends with the gateway, if not earlier.
    pub fn background(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.ending.clone().run_until_cancelled_owned(work));
    }

    /// The app, or 404 with the text that clients look for.
    pub async fn app(&self, name: &str) -> Result<AppRecord, ApiError> {
        self.catalog.app(name).await?.ok_or_else(|| app_not_found(name))
    }

    /// Waits until the view holds what the workers had when we began.
    pub async fn synced(&self) -> Result<(), ApiError> {
        tokio::time::timeout(SYNC_PATIENCE, self.view.synced()).await.map_err(|_| {
            ApiError::new(ErrorCode::Unavailable, "unavailable: the state of the machines is not known yet, try again")
        })
    }

    /// A machine of an app.
    pub async fn machine(&self, app: &str, id: &MachineId) -> Result<Arc<Shown>, ApiError> {
        self.synced().await?;
        if let Some(shown) = self.view.get(id).filter(|shown| shown.record.app == app) {
            return Ok(shown);
        }
        self.app(app).await?;
        Err(ApiError::machine_not_found())
    }

    /// Asks a worker, twice when it stays silent: it does nothing twice for the same request id. Records in the
    /// answer go into the view, so that a client reads its own writes.
    pub async fn ask(
        &self,
        worker: &WorkerId,
        request: WorkerRequest,
        deadline: Duration,
    ) -> Result<WorkerReply, AskError> {
        let subject = message::worker_subject(worker);
        let payload = message::encode(&Envelope::new(ulid::Ulid::new().to_string(), deadline * 2, request));
        let answer = match self.bus.request(&subject, payload.clone(), deadline).await {
            Err(timed_out @ BusError::TimedOut { .. }) => match self.bus.request(&subject, payload, deadline).await {
                // The first may have arrived.
                Err(BusError::NotDelivered(_)) => Err(timed_out),
                answer => answer,
            },
            answer => answer,
        };
        let answer = answer.map_err(AskError::Bus)?;
        if let Some(state) = self.hosts.heard(worker) {
            self.host_changed(worker, state);
        }
        let reply =
            message::decode::<WorkerResult>(&subject, &answer).map_err(AskError::Bus)?.map_err(AskError::Refused)?;
        match &reply {
            WorkerReply::Created { record, .. }
            | WorkerReply::Started { record, .. }
            | WorkerReply::Updated { record, .. }
            | WorkerReply::Done { record }
            | WorkerReply::Machine { record } => drop(self.view.apply((**record).clone())),
            _ => {}
        }
        Ok(reply)
    }

    /// A host is in another state now: so are its machines.
    pub fn host_changed(&self, worker: &WorkerId, state: HostState) {
        let status = match state {
            HostState::Ok | HostState::Draining => None,
            HostState::Suspected => Some("unknown"),
            HostState::Unreachable => Some("unreachable"),
        };
        match state {
            HostState::Ok => tracing::info!(%worker, "the host is there"),
            HostState::Draining => tracing::info!(%worker, "the host is being drained"),
            HostState::Suspected | HostState::Unreachable => {
                tracing::warn!(%worker, state = state.as_str(), "nothing is heard of a host");
            }
        }
        self.view.set_host_status(worker, status);
    }

    /// Asks the owner of a machine for a change.
    pub async fn act(
        &self,
        app: &str,
        id: &MachineId,
        nonce: Option<LeaseNonce>,
        action: Action,
    ) -> Result<WorkerReply, ApiError> {
        let shown = self.machine(app, id).await?;
        let request = WorkerRequest::Act { machine: id.clone(), nonce, action };
        Ok(self.ask(&shown.record.worker, request, self.settings.request_deadline).await?)
    }
}

/// Why a worker gave no reply.
#[derive(Debug)]
pub(crate) enum AskError {
    /// It refused.
    Refused(ApiError),
    /// It may or may not have carried it out.
    Bus(BusError),
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Refused(error) => error,
            AskError::Bus(error) => bus_error(&error),
        }
    }
}

/// What clients are told when the bus fails.
pub(crate) fn bus_error(error: &BusError) -> ApiError {
    match error {
        BusError::Unreadable { .. } => ApiError::internal(error),
        BusError::NotDelivered(_) => ApiError {
            nothing_done: true,
            ..ApiError::new(ErrorCode::Unavailable, format!("unavailable: {error}; nothing was done, try again"))
        },
        BusError::TimedOut { .. } => ApiError::new(
            ErrorCode::Unavailable,
            format!("unavailable: {error}; the request may still be carried out, look before trying again"),
        ),
    }
}

/// 404 with the text that clients look for.
pub(crate) fn app_not_found(name: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("Could not find App \"{}\"", name.escape_debug()))
}

/// A worker answered something that does not fit the request.
pub(crate) fn unexpected(reply: &WorkerReply) -> ApiError {
    tracing::error!(?reply, "a worker's answer does not fit the request");
    ApiError::internal("the worker's answer does not fit the request")
}
