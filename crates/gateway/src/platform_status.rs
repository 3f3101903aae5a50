//! `GET /v1/platform/status`: whether the server is well, and what its hosts have left. Our addition.

use std::time::Duration;

use axum::{Json, body::Body, extract::State, http::Request};
use caddis_api::{
    images::ImageSummary,
    platform::{HostStatus, PlatformStatus},
};
use caddis_bus::{
    AskWindow,
    message::{Offer, Question},
};

use crate::{
    context::{Context, Inner},
    envelope::Failure,
    extract::small,
    forward, health, placement,
};

/// Say whether the server is well, and what its hosts have left.
///
/// Our addition.
#[utoipa::path(
    get,
    path = "/v1/platform/status",
    operation_id = "Platform_status",
    tag = "Platform",
    responses((status = 200, description = "How it is", body = PlatformStatus)),
)]
pub(crate) async fn status(State(context): State<Context>) -> Result<Json<PlatformStatus>, Failure> {
    context.synced().await?;
    let health::Health { ok, problems, warnings } = health::check(&context).await;
    let mut hosts = Vec::new();
    for region in context.regions.codes() {
        for offer in offers(&context, region).await {
            hosts.push(host(&context, region, offer).await);
        }
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Json(PlatformStatus { version, ok, problems, warnings, hosts }))
}

/// What the hosts of a region would offer somebody who needs nothing: all they have.
async fn offers(context: &Inner, region: &str) -> Vec<Offer> {
    let question = Question::Place { cpus: 0, memory_mib: 0, disk_gib: 0, image: String::new() };
    let window = AskWindow { quiet: Duration::from_millis(20), deadline: Duration::from_millis(500) };
    let mut offers = placement::ask(context, region, &question, window).await.unwrap_or_default();
    offers.sort_by(|a, b| a.worker.as_str().cmp(b.worker.as_str()));
    offers
}

async fn host(context: &Context, region: &str, offer: Offer) -> HostStatus {
    let (machines, started) = context.view.counts_of_worker(&offer.worker);
    let images = images(context, &offer).await;
    HostStatus {
        id: offer.worker.to_string(),
        region: region.to_owned(),
        machines,
        started,
        free_cpus: offer.free_cpus,
        free_memory_mb: offer.free_memory_mib,
        free_disk_gb: offer.free_disk_gib,
        images: images.as_ref().map(|images| images.len() as u64),
        images_bytes: images.map(|images| images.iter().map(|image| image.size).sum()),
    }
}

/// Nothing when the host does not say.
async fn images(context: &Context, offer: &Offer) -> Option<Vec<ImageSummary>> {
    let answer = forward::call(context, &offer.worker, Request::get("/images").body(Body::empty())).await.ok()?;
    serde_json::from_slice(&small(answer.into_body()).await?).ok()
}
