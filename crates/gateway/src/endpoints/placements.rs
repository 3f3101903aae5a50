//! `POST /v1/platform/placements`: where so many machines of a size would go. Nothing is reserved.

use axum::{Extension, Json, extract::State};
use caddis_api::{
    ApiError, ErrorCode, MachineConfig, RawConfig,
    error::ErrorBody,
    platform::{PlacementsReply, PlacementsRequest, RegionPlacement},
    validate,
};
use serde_json::{Value, json};

use crate::{
    http::{
        caller::Caller, context::Context, errors::HttpError, extract::JsonBody, responses::BadBody,
    },
    scheduler,
};

/// Most machines that are asked about.
const MAX_COUNT: u64 = 1_000_000;
/// Bytes of a GB, as clients give the sizes of volumes here.
const GB: u64 = 1_000_000_000;
/// How much the order of the regions counts, and how much that machines are spread over them,
/// unless told otherwise.
const WEIGHTS: [(&str, i64); 2] = [("region", 50), ("spread", 1)];

/// Preview where machines would be placed.
///
/// Nothing is reserved. Without `count`, returns how many would fit.
#[utoipa::path(
    post,
    path = "/v1/platform/placements",
    operation_id = "Platform_placements_post",
    tag = "Platform",
    request_body = PlacementsRequest,
    responses(
        (status = 200, description = "The placements, in the order of the regions",
            body = PlacementsReply),
        BadBody,
        (status = 404, description = "No such organization", body = ErrorBody),
        (status = 422, description = "Not enough capacity", body = ErrorBody),
    ),
)]
pub(crate) async fn place(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<PlacementsRequest>,
) -> Result<Json<PlacementsReply>, HttpError> {
    caller.organization(&context, &request.org_slug).await?;
    // Each would have a volume of its own.
    let volume_gib = request.volume_size_bytes.unwrap_or_default().div_ceil(GB);
    let wanted = request.count.unwrap_or(0);
    if wanted > MAX_COUNT {
        return Err(ApiError::invalid(format!("invalid count, at most {MAX_COUNT}")).into());
    }
    let weight = |name: &str| {
        let given = request.weights.as_ref().and_then(|weights| weights.get(name)).copied();
        given
            .or(WEIGHTS.iter().find(|(known, _)| *known == name).map(|(_, weight)| *weight))
            .unwrap_or_default()
    };
    if let Some(unknown) = request
        .weights
        .iter()
        .flatten()
        .find(|(name, _)| WEIGHTS.iter().all(|(known, _)| known != name))
    {
        return Err(ApiError::invalid(format!(
            "invalid weights, {:?} is neither region nor spread",
            unknown.0
        ))
        .into());
    }
    let config = config(request.compute.as_ref().map(|guest| json!(guest)), None)?;
    let mut room = Vec::new();
    for region in context.regions.resolve(request.region.as_deref())? {
        let hosts = scheduler::room_in(&context, &region, &config, volume_gib).await?;
        room.push(RegionPlacement {
            region,
            count: hosts.iter().sum(),
            concurrency: hosts.len() as u64,
        });
    }
    let fits: u64 = room.iter().map(|region| region.count).sum();
    if fits < wanted {
        let (cpus, memory) = (config.cpus(), config.memory_mib());
        let ending = |count: u64| if count == 1 { "" } else { "s" };
        let text = format!(
            "there is room for {fits} machine{} of {cpus} CPU{} and {memory} MiB, not for {wanted}",
            ending(fits),
            ending(cpus.into())
        );
        return Err(ApiError::new(ErrorCode::InsufficientCapacity, text).into());
    }
    let mut regions =
        if wanted == 0 { room } else { spread(room, wanted, weight("spread") > weight("region")) };
    regions.retain(|region| region.count > 0);
    Ok(Json(PlacementsReply { regions }))
}

/// A machine of this size; performance-1x where none is given.
pub(super) fn config(guest: Option<Value>, image: Option<&str>) -> Result<MachineConfig, ApiError> {
    let guest =
        guest.unwrap_or_else(|| json!({ "cpu_kind": "performance", "cpus": 1, "memory_mb": 2048 }));
    let raw = [("image".to_owned(), json!(image.unwrap_or("any"))), ("guest".to_owned(), guest)];
    Ok(validate::normalise(RawConfig::from(raw.into_iter().collect::<serde_json::Map<_, _>>()))?.1)
}

/// So many machines, for which there is room, in the first regions, or evenly over all.
fn spread(room: Vec<RegionPlacement>, wanted: u64, evenly: bool) -> Vec<RegionPlacement> {
    let mut placed: Vec<_> =
        room.iter().map(|region| RegionPlacement { count: 0, ..region.clone() }).collect();
    let mut left = wanted;
    while left > 0 {
        for (region, placed) in room.iter().zip(&mut placed) {
            let free = region.count - placed.count;
            let taken = if evenly { free.min(1) } else { free };
            placed.count += taken.min(left);
            left -= taken.min(left);
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use caddis_api::RegionCode;

    use super::*;

    fn placed(room: &[u64], wanted: u64, evenly: bool) -> Vec<u64> {
        let region = |count: &u64| RegionPlacement {
            region: RegionCode::from_trusted("local"),
            count: *count,
            concurrency: 1,
        };
        let placed = spread(room.iter().map(region).collect(), wanted, evenly);
        placed.into_iter().map(|region| region.count).collect()
    }

    #[test]
    fn the_first_regions_are_filled_or_all_are_used_alike() {
        assert_eq!(placed(&[2, 5, 5], 4, false), [2, 2, 0]);
        assert_eq!(placed(&[2, 5, 5], 4, true), [2, 1, 1]);
        assert_eq!(placed(&[2, 5, 5], 9, true), [2, 4, 3]);
        assert_eq!(placed(&[2, 5, 5], 12, true), [2, 5, 5]);
        assert_eq!(placed(&[0, 9], 3, true), [0, 3]);
        assert_eq!(placed(&[], 0, true), [0; 0]);
    }
}
