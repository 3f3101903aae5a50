//! The volumes of an app.

use std::collections::HashSet;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use caddis_api::Volume;

use super::summary;
use crate::http::{
    authorization::AppPath,
    context::Context,
    cursor::{self, PageParams},
    errors::HttpError,
    query::Params,
    responses::NoApp,
};

/// Most volumes per page, as the reference has it.
const MAX_PAGE: u64 = 1000;

/// List the volumes of an app, oldest first.
///
/// Deleted ones are in it until they are gone.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/volumes",
    operation_id = "Volumes_list",
    tag = "Volumes",
    params(
        AppPath,
        PageParams,
        ("summary" = Option<bool>, Query, description = "Leave out the figures of their use"),
    ),
    responses(
        (status = 200, description = "The volumes", body = Vec<Volume>,
            headers(("fly-next-cursor" = String, description = "Cursor of the next page; absent on \
                the last page"))),
        NoApp,
    ),
)]
pub(crate) async fn list(
    State(context): State<Context>,
    app: AppPath,
    params: Params,
) -> Result<Response, HttpError> {
    context.volumes_synced().await?;
    let page = cursor::page(&params, MAX_PAGE)?;
    let is_summary = params.flag("summary")?;
    let app = app.look_up(&context).await?;
    // Of an app that had the name before there may be some left.
    let placed = context.catalog.volumes_of(app.number).await?.into_iter();
    let own: HashSet<_> = placed.map(|placed| placed.id).collect();
    let found = context.view.volumes_of_app(&app.name).into_iter().map(|record| record.volume);
    let mut found: Vec<_> = found.filter(|volume| own.contains(&volume.id)).collect();
    found.sort_by_cached_key(place);
    let mut next = None;
    if let Some(page) = page {
        let first = caddis_api::time::milliseconds(page.cursor.first_ms.into());
        found.retain(|volume| place(volume) > page.cursor.after && volume.created_at <= first);
        let more = found.len() > page.limit;
        found.truncate(page.limit);
        next = found.last().filter(|_| more).map(|last| page.cursor.following(place(last), 0));
    }
    if is_summary {
        found = found.into_iter().map(summary).collect();
    }
    let mut response = Json(found).into_response();
    if let Some(next) = next.and_then(|next| next.parse().ok()) {
        response.headers_mut().insert("fly-next-cursor", next);
    }
    Ok(response)
}

/// By what lists are sorted: all times are written alike.
fn place(volume: &Volume) -> String {
    format!("{} {}", volume.created_at, volume.id)
}
