//! `GET /v1/platform/status`: the health of the server and the free capacity of its hosts. Caddis
//! extension.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use axum::{Json, body::Body, extract::State, http::Request};
use caddis_api::{
    RegionCode, WorkerId,
    images::ImageSummary,
    platform::{HostStatus, PlatformStatus},
    time,
};
use caddis_bus::{
    AskWindow,
    message::{Offer, Question},
};
use caddis_view::Host;
use futures::future::join_all;
use jiff::SignedDuration;

use crate::{
    endpoints::health,
    http::{
        context::{Context, Inner},
        errors::HttpError,
        extract::small,
        forward,
    },
    scheduler,
};

/// Show the health of the server and the free capacity of its hosts.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/platform/status",
    operation_id = "Platform_status",
    tag = "Platform",
    responses((status = 200, description = "The status", body = PlatformStatus)),
)]
pub(crate) async fn status(
    State(context): State<Context>,
) -> Result<Json<PlatformStatus>, HttpError> {
    context.synced().await?;
    let health::Health { ok, problems, warnings } = health::check(&context).await;
    let known = context.view.hosts().all();
    let regions: BTreeSet<_> = known.iter().map(|(_, host)| host.region.clone()).collect();
    let offers = join_all(regions.iter().map(|region| offers(&context, region))).await;
    let offers: HashMap<_, _> =
        offers.into_iter().flatten().map(|offer| (offer.worker.clone(), offer)).collect();
    let hosts =
        known.iter().map(|(worker, host)| self::host(&context, worker, host, offers.get(worker)));
    let hosts = join_all(hosts).await;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Json(PlatformStatus { version, ok, problems, warnings, hosts }))
}

/// What the hosts of a region would offer somebody who needs nothing: all they have.
async fn offers(context: &Inner, region: &RegionCode) -> Vec<Offer> {
    let question = Question::Place {
        cpus: 0,
        memory_mib: 0,
        disk_gib: 0,
        volume_gib: 0,
        image: String::new(),
    };
    let window =
        AskWindow { quiet: Duration::from_millis(20), deadline: Duration::from_millis(500) };
    scheduler::ask(context, region, &question, window).await.unwrap_or_default()
}

async fn host(
    context: &Context,
    worker: &WorkerId,
    host: &Host,
    offer: Option<&Offer>,
) -> HostStatus {
    let (machines, started) = context.view.counts_of_worker(worker);
    let images = match offer {
        Some(_) => images(context, worker).await,
        None => None,
    };
    let seen = jiff::Timestamp::now()
        - SignedDuration::try_from(host.last_seen.elapsed()).unwrap_or_default();
    HostStatus {
        id: worker.to_string(),
        region: host.region.clone(),
        state: host.state,
        last_seen: time::seconds(seen),
        machines,
        started,
        free_cpus: offer.map_or(0, |offer| offer.free_cpus),
        free_memory_mb: offer.map_or(0, |offer| offer.free_memory_mib),
        free_disk_gb: offer.map_or(0, |offer| offer.free_disk_gib),
        free_volume_gb: offer.and_then(|offer| offer.free_volume_gib),
        volumes: context.view.count_volumes_of_worker(worker) as u64,
        images: images.as_ref().map(|images| images.len() as u64),
        images_bytes: images.map(|images| images.iter().map(|image| image.size).sum()),
    }
}

/// Nothing when the host does not say.
async fn images(context: &Context, worker: &WorkerId) -> Option<Vec<ImageSummary>> {
    let answer =
        forward::call(context, worker, Request::get("/images").body(Body::empty())).await.ok()?;
    serde_json::from_slice(&small(answer.into_body()).await?).ok()
}
