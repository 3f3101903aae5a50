//! `GET /api/v1/apps/{app}/logs`.

use axum::{extract::State, response::Response};
use caddis_api::{ApiError, MachineId, logs::LogsReply};

use crate::http::{
    authorization::AppPath,
    context::Context,
    errors::HttpError,
    query::{Params, invalid},
    responses::{BadParameter, NoApp},
};

mod merge;

/// Longest wait for the first entry, seconds: proxies in the field cut requests at a minute.
const MAX_WAIT_SECONDS: u64 = 60;
/// Most entries per page.
const MAX_ENTRIES: u64 = 1000;

/// Read the logs of an app, or of one of its machines, page by page.
#[utoipa::path(
    get,
    path = "/api/v1/apps/{app_name}/logs",
    operation_id = "Apps_logs",
    tag = "Apps",
    params(
        AppPath,
        ("instance" = Option<String>, Query, description = "Id of a machine"),
        ("region" = Option<String>, Query, description = "Only machines in this region; ignored \
            with instance"),
        ("since" = Option<String>, Query, format = DateTime,
            description = "Only entries from this time on, RFC 3339; the first page begins there. \
                           Caddis extension"),
        ("until" = Option<String>, Query, format = DateTime,
            description = "Only entries up to this time, RFC 3339. Caddis extension"),
        ("next_token" = Option<String>, Query, description = "The next_token of a page: return \
            what comes after it"),
        ("until_token" = Option<String>, Query,
            description = "The next_token of a page: return nothing after it, so that reading a \
                           growing log ends. Caddis extension"),
        ("limit" = Option<u64>, Query, minimum = 1, description = "Maximum number of entries, at \
            most 1000"),
        ("wait_seconds" = Option<u64>, Query, minimum = 0,
            description = "Wait up to this long for entries when there are none, at most 60. \
                           Caddis extension"),
    ),
    responses(
        (status = 200, description = "A page, oldest first; the newest entries unless told where \
                                      to begin",
            body = LogsReply),
        BadParameter,
        NoApp,
    ),
)]
pub(crate) async fn logs(
    State(context): State<Context>,
    app: AppPath,
    params: Params,
) -> Result<Response, HttpError> {
    let limit = params.number("limit", 1, u64::MAX)?.map(|limit| limit.min(MAX_ENTRIES));
    let wait = params.number("wait_seconds", 0, u64::MAX)?.map(|wait| wait.min(MAX_WAIT_SECONDS));
    let machine = params.get("instance").map(|id| {
        id.parse::<MachineId>().map_err(|_| invalid("instance", id, "the id of a machine"))
    });
    let machine = machine.transpose()?;
    let region = params.get("region").filter(|_| machine.is_none());
    if let Some(region) = region
        && !context.regions.knows(region)
    {
        return Err(invalid("region", region, "the code of a region").into());
    }
    let (since, until) = (time(&params, "since")?, time(&params, "until")?);
    let query = merge::Query {
        app: app.name()?.to_owned(),
        instance: machine.as_ref().map(ToString::to_string),
        limit,
        region: region.map(str::to_owned),
        since,
        until,
    };
    let (from, bound) = (params.get("next_token"), params.get("until_token"));
    let answer = async {
        match &machine {
            Some(id) => {
                let worker = app.machine(&context, id).await?.record.worker.clone();
                merge::page_of_one(&context, &worker, &query, (from, bound), wait).await
            }
            None => {
                context.synced().await?;
                app.look_up(&context).await?;
                merge::page(&context, &query, (from, bound), wait).await
            }
        }
    };
    tokio::select! {
        answer = answer => answer,
        () = context.closing.cancelled() => {
            Err(ApiError::new(caddis_api::ErrorCode::Unavailable, "unavailable: the server is \
                stopping").into())
        }
    }
}

/// A time as nanoseconds since the Unix epoch.
fn time(params: &Params, name: &str) -> Result<Option<String>, ApiError> {
    let Some(text) = params.get(name) else { return Ok(None) };
    let time: jiff::Timestamp =
        text.parse().map_err(|_| invalid(name, text, "a time such as 2026-08-21T10:00:00Z"))?;
    Ok(Some(time.as_nanosecond().max(0).to_string()))
}
