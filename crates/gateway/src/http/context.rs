//! What all endpoints share, and how they reach machines and workers.

use std::{sync::Arc, time::Duration};

use caddis_api::{ApiError, AppName, ErrorCode, VolumeId, WorkerId};
use caddis_bus::{
    WorkerClient,
    message::{AppPolicies, MachineEgress, WorkerReply, WorkerRequest},
};
use caddis_catalog::Catalog;
use caddis_view::{Superseded, View, ViewSettings};
use tokio_util::sync::CancellationToken;

use crate::{
    http::{in_flight::InFlight, limits::Limits, underway::Underway},
    regions::Regions,
    settings::{GatewayParts, Settings},
    told::Workers,
};

pub(crate) use caddis_bus::AskError;

/// Shared by all requests.
pub(crate) type Context = Arc<Inner>;

/// How long a request waits for the first listing of the workers.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Inner {
    pub bus: Arc<dyn caddis_bus::Bus>,
    pub streams: Arc<dyn caddis_bus::stream::Streams>,
    pub workers: WorkerClient,
    pub catalog: Catalog,
    pub regions: Regions,
    pub settings: Settings,
    pub view: Arc<View>,
    /// Apps whose machines are being destroyed.
    pub deletions: Underway<AppName>,
    /// Copies that workers are being told to stop.
    pub superseding: Underway<Superseded>,
    /// Volumes of apps that are gone, which are being deleted.
    pub volume_deletions: Underway<VolumeId>,
    /// Volumes that were placed, and may never be made.
    pub missing_volumes: Underway<VolumeId>,
    /// What workers know of network policies.
    pub policies: Workers<Vec<AppPolicies>>,
    /// What workers know of the egress addresses of their machines.
    pub egress: Workers<Vec<MachineEgress>>,
    pub limits: Option<Arc<Limits>>,
    pub in_flight: InFlight,
    /// Ends waits and event streams.
    pub closing: CancellationToken,
    /// Ends work in the background.
    pub ending: CancellationToken,
}

impl Inner {
    pub fn new(parts: GatewayParts) -> Context {
        let view = View::new(ViewSettings {
            workers: parts.workers,
            region: parts.region.clone(),
            suspected_after: parts.settings.suspected_after,
            unreachable_after: parts.settings.unreachable_after,
            destroyed_retention: parts.settings.destroyed_retention,
        });
        let view = Arc::new(view);
        Arc::new(Self {
            workers: WorkerClient::new(parts.bus.clone(), parts.streams.clone()),
            bus: parts.bus,
            streams: parts.streams,
            catalog: parts.catalog,
            regions: Regions::new(parts.region, parts.regions, view.clone()),
            view,
            limits: Limits::new(parts.settings.rate_limit).map(Arc::new),
            settings: parts.settings,
            deletions: Underway::default(),
            superseding: Underway::default(),
            volume_deletions: Underway::default(),
            missing_volumes: Underway::default(),
            policies: Workers::default(),
            egress: Workers::default(),
            in_flight: InFlight::default(),
            closing: CancellationToken::new(),
            ending: CancellationToken::new(),
        })
    }

    /// Runs work that ends with the gateway, if not earlier.
    pub fn background(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.ending.clone().run_until_cancelled_owned(work));
    }

    /// Waits until the view holds what the workers had when we began.
    pub async fn synced(&self) -> Result<(), ApiError> {
        tokio::time::timeout(SYNC_TIMEOUT, self.view.synced()).await.map_err(|_| {
            ApiError::new(
                ErrorCode::Unavailable,
                "unavailable: the state of the machines is not known yet, try again",
            )
        })
    }

    /// Waits until the view holds the volumes that the workers had when we began.
    pub async fn volumes_synced(&self) -> Result<(), ApiError> {
        tokio::time::timeout(SYNC_TIMEOUT, self.view.volumes_synced()).await.map_err(|_| {
            ApiError::new(
                ErrorCode::Unavailable,
                "unavailable: the state of the volumes is not known yet, try again",
            )
        })
    }

    /// Asks a worker. Records in the answer go into the view, so that a client reads its own
    /// writes.
    pub async fn ask(
        &self,
        worker: &WorkerId,
        request: WorkerRequest,
        deadline: Duration,
    ) -> Result<WorkerReply, AskError> {
        let mut reply = self.workers.ask(worker, request, deadline).await?;
        self.view.heard(worker);
        if let WorkerReply::Volume { record } = &reply {
            self.view.apply_volume((**record).clone());
        }
        if let WorkerReply::Created { record, .. }
        | WorkerReply::Started { record, .. }
        | WorkerReply::Updated { record, .. }
        | WorkerReply::Done { record }
        | WorkerReply::Machine { record } = &mut reply
            && self.view.apply((**record).clone()).is_none()
        {
            // Its configuration is another one than we know.
            let whole = WorkerRequest::Get { machine: record.machine.id.clone() };
            match self.workers.ask(worker, whole, deadline).await {
                Ok(WorkerReply::Machine { record }) => drop(self.view.apply(*record)),
                // The change was made all the same, and the view finds its way.
                other => {
                    tracing::warn!(%worker, ?other, "can't ask for the configuration of a machine")
                }
            }
        }
        Ok(reply)
    }
}
