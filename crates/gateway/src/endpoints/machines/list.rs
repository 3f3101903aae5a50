//! The machines of an app.

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use bytes::{BufMut as _, BytesMut};
use caddis_api::Machine;
use caddis_view::CachedMachine;

use super::get::with_lease;
use crate::{
    endpoints::filter::{Filter, FilterParams, is_gone},
    http::{
        authorization::AppPath,
        context::Context,
        cursor::{self, PageParams},
        errors::HttpError,
        query::Params,
        responses::NoApp,
    },
};

/// Most machines per page, as the reference has it.
const MAX_PAGE: u64 = 1000;

/// List the machines of an app, in the order of their ids.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines",
    operation_id = "Machines_list",
    tag = "Machines",
    params(
        AppPath,
        FilterParams,
        PageParams,
        ("include_leases" = Option<bool>, Query, description = "Include the holders of their \
            leases"),
    ),
    responses(
        (status = 200, description = "The machines", body = Vec<Machine>,
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
    context.synced().await?;
    let (filter, page) = (Filter::read(&params)?, cursor::page(&params, MAX_PAGE)?);
    let (summary, leases) = (params.flag("summary")?, params.flag("include_leases")?);
    let mut found = context.view.of_app(app.name()?);
    // An app with machines exists; destroyed ones are shown for longer than their app.
    if found.iter().all(|shown| is_gone(shown.record.machine.state)) {
        app.look_up(&context).await?;
    }
    found.retain(|shown| filter.accepts(shown));
    let mut next = None;
    if let Some(page) = page {
        let first = caddis_api::time::seconds(page.cursor.first_ms.into());
        found.retain(|shown| {
            let machine = &shown.record.machine;
            machine.id.as_str() > page.cursor.after.as_str() && machine.created_at <= first
        });
        let more = found.len() > page.limit;
        found.truncate(page.limit);
        let last = found.last().filter(|_| more);
        next = last.map(|last| page.cursor.following(&last.record.machine.id, 0));
    }
    let mut body = BytesMut::from(&b"["[..]);
    for (index, shown) in found.iter().enumerate() {
        if index > 0 {
            body.put_u8(b',');
        }
        body.extend_from_slice(&row(shown, summary, leases));
    }
    body.put_u8(b']');
    let mut response = ([(CONTENT_TYPE, "application/json")], body.freeze()).into_response();
    if let Some(next) = next.and_then(|next| next.parse().ok()) {
        response.headers_mut().insert("fly-next-cursor", next);
    }
    Ok(response)
}

fn row(shown: &CachedMachine, summary: bool, leases: bool) -> bytes::Bytes {
    if !summary && !leases {
        return shown.body();
    }
    let mut machine = if leases { with_lease(shown) } else { shown.record.machine.clone() };
    if summary {
        (machine.config, machine.events, machine.checks) = (None, None, None);
        machine.host_status.clear();
        machine.host_status_reason = None;
        (machine.operation, machine.isolation) = (None, None);
    }
    // All of it is plain data with string keys, for which serialisation has no way to fail.
    serde_json::to_vec(&machine).unwrap_or_default().into()
}
