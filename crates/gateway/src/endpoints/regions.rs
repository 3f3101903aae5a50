//! `/v1/platform/regions`: the regions, and how many machines would fit.

use axum::{Json, extract::State};
use caddis_api::{MachineConfig, platform::RegionsReply};

use crate::{http::context::Context, scheduler};

/// List the regions.
#[utoipa::path(
    get,
    path = "/v1/platform/regions",
    operation_id = "Platform_regions_get",
    tag = "Platform",
    responses((status = 200, description = "The regions", body = RegionsReply)),
)]
pub(crate) async fn list(State(context): State<Context>) -> Json<RegionsReply> {
    let nearest = context.regions.own().clone();
    if let Some(regions) = context.regions.with_capacity() {
        return Json(RegionsReply { nearest, regions });
    }
    let mut regions = context.regions.all();
    for region in &mut regions {
        // Of the smallest size.
        let room = scheduler::room_in(&context, &region.code, &MachineConfig::default(), 0)
            .await
            .unwrap_or_default();
        region.capacity = i64::try_from(room.iter().sum::<u64>()).unwrap_or(i64::MAX);
    }
    context.regions.keep_capacity(regions.clone());
    Json(RegionsReply { nearest, regions })
}
