//! `/v1/orgs`: organizations; `/v1/orgs/{org}/machines`: machines of all apps of an organization,
//! by time of their last change.

use axum::{Extension, Json, extract::State};
use caddis_api::{
    ApiError,
    error::ErrorBody,
    organization::{MachineOverview, OrganizationList, OrganizationMachine, OrganizationMachines},
    time::unix_ms,
};
use caddis_catalog::{AppQuery, PERSONAL};
use jiff::Timestamp;

use crate::{
    endpoints::filter::{Filter, FilterParams},
    http::{
        authorization::OrganizationPath,
        caller::Caller,
        context::Context,
        cursor::PageParams,
        errors::HttpError,
        query::{Params, invalid},
        responses::BadParameter,
    },
};

/// Most entries per page, and how many there are unless told otherwise.
pub(crate) const MAX_PAGE: u64 = 1000;

/// List the organizations that the token has access to.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/orgs",
    operation_id = "Organizations_list",
    tag = "Apps",
    responses((status = 200, description = "The organizations", body = OrganizationList)),
)]
pub(crate) async fn list(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<OrganizationList>, HttpError> {
    let known = context.catalog.organization(caller.slug(PERSONAL)).await?;
    Ok(Json(OrganizationList { organizations: known.into_iter().collect() }))
}

/// List the machines of all apps of an organization, by time of their last change.
///
/// The cursor is the last machine's time and id, so later changes come later.
#[utoipa::path(
    get,
    path = "/v1/orgs/{org_slug}/machines",
    operation_id = "Machines_org_list",
    tag = "Machines",
    params(
        ("org_slug" = String, Path, description = "The organization; `personal` is the caller's \
            own"),
        FilterParams,
        PageParams,
        ("updated_after" = Option<String>, Query, description = "Only machines changed after this \
            time, RFC 3339"),
    ),
    responses(
        (status = 200, description = "The machines", body = OrganizationMachines),
        BadParameter,
        (status = 404, description = "No such organization", body = ErrorBody),
    ),
)]
pub(crate) async fn machines(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    organization: OrganizationPath,
    params: Params,
) -> Result<Json<OrganizationMachines>, HttpError> {
    context.synced().await?;
    let organization = organization.look_up(&context, &caller).await?;
    let filter = Filter::read(&params)?;
    let limit = params.number("limit", 1, MAX_PAGE)?.unwrap_or(MAX_PAGE) as usize;
    let summary = params.flag("summary")?;
    let after = after(&params, caddis_api::time::seconds)?;
    let query = AppQuery { organization: Some(organization.slug), ..AppQuery::default() };
    let apps = caller.apps(&context, query).await?.apps;
    let mut found: Vec<_> = apps
        .iter()
        .flat_map(|app| context.view.of_app(&app.name))
        .filter(|shown| filter.accepts(shown))
        .map(|shown| {
            ((shown.record.machine.updated_at.clone(), shown.record.machine.id.to_string()), shown)
        })
        .filter(|(key, _)| *key > after)
        .collect();
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().map(|(key, _)| key.clone());
    let machines = found.iter().map(|(_, shown)| show(&shown.record, summary)).collect();
    let (last_updated_at, last_machine_id) = last.unzip();
    let next_cursor = match (more, &last_updated_at, &last_machine_id) {
        (true, Some(updated_at), Some(id)) => Some(format!("{updated_at}_{id}")),
        _ => None,
    };
    Ok(Json(OrganizationMachines {
        machines,
        error_regions: Vec::new(),
        next_cursor,
        last_machine_id,
        last_updated_at,
    }))
}

/// The time and id after which a page begins; times are written so.
pub(crate) fn after(
    params: &Params,
    write: fn(Timestamp) -> String,
) -> Result<(String, String), ApiError> {
    if let Some(cursor) = params.get("cursor") {
        let (time, id) = cursor
            .split_once('_')
            .ok_or_else(|| invalid("cursor", cursor, "the next_cursor of a page"))?;
        return Ok((time.to_owned(), id.to_owned()));
    }
    let Some(text) = params.get("updated_after") else { return Ok(Default::default()) };
    let time: Timestamp = text
        .parse()
        .map_err(|_| invalid("updated_after", text, "a time like 2026-03-31T06:08:08Z"))?;
    // Ids sort before this, so that what changed at that very time is left out.
    Ok((write(caddis_api::time::from_unix_ms(unix_ms(time))), "~".to_owned()))
}

fn show(record: &caddis_bus::message::MachineRecord, summary: bool) -> OrganizationMachine {
    let machine = record.machine.clone();
    OrganizationMachine {
        id: machine.id,
        app_name: record.app.clone(),
        name: machine.name,
        state: machine.state,
        region: machine.region,
        private_ip: machine.private_ip,
        version: machine.version,
        created_at: machine.created_at,
        updated_at: machine.updated_at,
        config: machine.config.filter(|_| !summary).map(MachineOverview::from),
    }
}
