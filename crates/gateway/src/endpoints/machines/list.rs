//! The machines of an app.

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use bytes::{BufMut as _, BytesMut};
use caddis_api::{ApiError, Machine, MachineState};
use caddis_view::CachedMachine;
use utoipa::IntoParams;

use super::get::with_lease;
use crate::{
    endpoints::organizations::is_gone,
    http::{
        authorization::AppPath,
        context::Context,
        cursor::{self, PageParams},
        envelope::HttpError,
        query::Params,
        responses::NoApp,
    },
};

/// Most machines per page, as the reference has it.
const MAX_PAGE: u64 = 1000;

/// Which machines are wanted.
pub(crate) struct Filter {
    deleted: bool,
    region: Option<String>,
    states: Vec<MachineState>,
    metadata: Vec<(String, String)>,
}

/// What [`Filter::read`] reads, and `summary`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters")]
pub(crate) struct FilterParams {
    /// Destroyed machines too.
    include_deleted: Option<bool>,
    /// Only of this region.
    region: Option<String>,
    /// Only in this state, or in one of several with commas.
    state: Option<String>,
    /// Only with this value of their metadata.
    #[param(rename = "metadata.{key}")]
    metadata: Option<String>,
    /// Without configuration and events.
    summary: Option<bool>,
}

impl Filter {
    /// Reads `include_deleted`, `region`, `state` and `metadata.*`.
    pub fn read(params: &Params) -> Result<Self, ApiError> {
        let words = params.all("state").flat_map(|value| value.split(',')).map(str::trim);
        let states = words.filter(|word| !word.is_empty()).map(|word| {
            word.parse().map_err(|e| ApiError::invalid(format!("invalid parameter state: {e}")))
        });
        let metadata = params
            .0
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("metadata.")?, value)));
        Ok(Self {
            deleted: params.flag("include_deleted")?,
            region: params.get("region").map(str::to_owned),
            states: states.collect::<Result<_, ApiError>>()?,
            metadata: metadata.map(|(key, value)| (key.to_owned(), value.clone())).collect(),
        })
    }

    /// Whether a machine is wanted.
    pub fn accepts(&self, shown: &CachedMachine) -> bool {
        let machine = &shown.record.machine;
        let metadata = |key: &str| machine.config.as_ref()?.metadata(key);
        (self.deleted || !is_gone(machine.state) || self.states.contains(&machine.state))
            && self.region.as_ref().is_none_or(|region| *region == machine.region)
            && (self.states.is_empty() || self.states.contains(&machine.state))
            && self.metadata.iter().all(|(key, value)| metadata(key).as_ref() == Some(value))
    }
}

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
        ("include_leases" = Option<bool>, Query, description = "With who holds their leases"),
    ),
    responses(
        (status = 200, description = "The machines", body = Vec<Machine>,
            headers(("fly-next-cursor" = String, description = "Where the next page begins; absent at the end"))),
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
        let first = caddis_api::time::seconds(caddis_api::time::from_unix_ms(page.cursor.first_ms));
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
