//! The volumes of all apps of an organization.

use std::collections::HashSet;

use axum::{Extension, Json, extract::State};
use caddis_api::{
    ApiError, RegionCode,
    error::ErrorBody,
    time::milliseconds,
    volume::{OrgVolume, OrgVolumes, VolumeState},
};
use caddis_bus::message::VolumeRecord;
use caddis_catalog::AppQuery;
use serde::{Deserialize as _, de::IntoDeserializer as _};

use super::summary;
use crate::{
    endpoints::organizations::{MAX_PAGE, after},
    http::{
        authorization::OrganizationPath, caller::Caller, context::Context, cursor::PageParams,
        errors::HttpError, query::Params, responses::BadParameter,
    },
};

/// List the volumes of all apps of an organization, by time of their last change.
///
/// The cursor is the last volume's time and id, so later changes come later.
#[utoipa::path(
    get,
    path = "/v1/orgs/{org_slug}/volumes",
    operation_id = "Volumes_org_list",
    tag = "Volumes",
    params(
        ("org_slug" = String, Path, description = "The organization; `personal` is the caller's \
            own"),
        ("include_deleted" = Option<bool>, Query, description = "Include deleted volumes"),
        ("region" = Option<String>, Query, description = "Only volumes in this region"),
        ("state" = Option<String>, Query, description = "Only volumes in this state, or in one of \
            several, comma-separated"),
        ("summary" = Option<bool>, Query, description = "Leave out the figures of their use"),
        PageParams,
        ("updated_after" = Option<String>, Query, description = "Only volumes changed after this \
            time, RFC 3339"),
    ),
    responses(
        (status = 200, description = "The volumes", body = OrgVolumes),
        BadParameter,
        (status = 404, description = "No such organization", body = ErrorBody),
    ),
)]
pub(crate) async fn list(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    organization: OrganizationPath,
    params: Params,
) -> Result<Json<OrgVolumes>, HttpError> {
    context.volumes_synced().await?;
    let organization = organization.look_up(&context, &caller).await?;
    let filter = Filter::read(&params)?;
    let limit = params.number("limit", 1, MAX_PAGE)?.unwrap_or(MAX_PAGE) as usize;
    let is_summary = params.flag("summary")?;
    let after = after(&params, milliseconds)?;
    let query = AppQuery { organization: Some(organization.slug), ..AppQuery::default() };
    let mut found = Vec::new();
    for app in caller.apps(&context, query).await?.apps {
        let placed = context.catalog.volumes_of(app.number).await?.into_iter();
        let own: HashSet<_> = placed.map(|placed| placed.id).collect();
        let records = context.view.volumes_of_app(&app.name).into_iter();
        found.extend(
            records
                .filter(|record| own.contains(&record.volume.id) && filter.accepts(record))
                .map(|record| {
                    let updated_at = milliseconds(record.updated_at.into());
                    ((updated_at, record.volume.id.to_string()), record)
                })
                .filter(|(key, _)| *key > after),
        );
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let more = found.len() > limit;
    found.truncate(limit);
    let volumes: Vec<_> = found
        .into_iter()
        .map(|((updated_at, _), record)| OrgVolume {
            volume: if is_summary { summary(record.volume) } else { record.volume },
            app_name: record.app,
            updated_at,
        })
        .collect();
    let last = volumes.last();
    let next = last.filter(|_| more).map(|row| format!("{}_{}", row.updated_at, row.volume.id));
    Ok(Json(OrgVolumes {
        next_cursor: next,
        last_volume_id: last.map(|row| row.volume.id.clone()),
        last_updated_at: last.map(|row| row.updated_at.clone()),
        volumes,
    }))
}

/// Which volumes are wanted.
struct Filter {
    deleted: bool,
    region: Option<RegionCode>,
    states: Vec<VolumeState>,
}

impl Filter {
    fn read(params: &Params) -> Result<Self, ApiError> {
        let words = params.all("state").flat_map(|value| value.split(',')).map(str::trim);
        let states = words.filter(|word| !word.is_empty()).map(|word| {
            VolumeState::deserialize(word.into_deserializer()).map_err(
                |e: serde::de::value::Error| {
                    ApiError::invalid(format!("invalid parameter state: {e}"))
                },
            )
        });
        Ok(Self {
            deleted: params.flag("include_deleted")?,
            region: params.get("region").map(RegionCode::from_trusted),
            states: states.collect::<Result<_, ApiError>>()?,
        })
    }

    fn accepts(&self, record: &VolumeRecord) -> bool {
        let volume = &record.volume;
        (self.deleted || !volume.state.is_deleted() || self.states.contains(&volume.state))
            && self.region.as_ref().is_none_or(|region| *region == volume.region)
            && (self.states.is_empty() || self.states.contains(&volume.state))
    }
}
