//! `/v1/apps`.

use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use caddis_api::{
    ApiError, AppName, NetworkName,
    app::{App, CreateAppReply, CreateAppRequest, ListAppsReply},
    error::ErrorBody,
    names,
};
use caddis_catalog::{AppQuery, AppRecord, AppState, NewApp};

use crate::{
    deletion,
    http::{
        authorization::AppPath,
        caller::Caller,
        context::{Context, Inner},
        cursor::{self, PageParams},
        errors::HttpError,
        extract::JsonBody,
        idempotency::RequestId,
        query::Params,
        responses::{BadBody, BadParameter, NoApp},
    },
};

/// Most apps per page, as the reference has it.
const MAX_PAGE: u64 = 5000;

fn show(context: &Inner, app: AppRecord) -> App {
    let machines = context.view.count_of_app(&app.name);
    let volumes = context.view.count_volumes_of_app(&app.name);
    let status = match (app.state, machines) {
        (AppState::Deleting, _) => "deleting",
        (AppState::Active, 0) => "pending",
        (AppState::Active, _) => "deployed",
    };
    let listeners = context.settings.traffic.listeners.as_ref();
    App {
        urls: listeners.map(|listeners| listeners.urls(&app.name)),
        id: app.id,
        internal_numeric_id: app.number,
        name: app.name,
        status: status.to_owned(),
        network: app.network,
        network_cidr: app.network_prefix,
        machine_count: machines as u64,
        volume_count: volumes as u64,
        organization: app.organization,
    }
}

/// Create an app.
///
/// Without a name, one is generated. Requests with the same `idempotency_key` return the same app.
#[utoipa::path(
    post,
    path = "/v1/apps",
    operation_id = "Apps_create",
    tag = "Apps",
    request_body = CreateAppRequest,
    responses(
        (status = 201, description = "The app", body = CreateAppReply),
        BadBody,
        (status = 404, description = "No such organization", body = ErrorBody),
        (status = 422, description = "The name is taken or not allowed", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Option<Extension<RequestId>>,
    JsonBody(request): JsonBody<CreateAppRequest>,
) -> Result<Response, HttpError> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let organization = given(request.org_slug).ok_or_else(|| {
        ApiError::invalid("invalid org_slug, it is required; use personal for your own")
    })?;
    let name = given(request.name).or(given(request.app_name));
    let name = name.map(|name| name.parse::<AppName>()).transpose()?;
    let network = given(request.network);
    if network.as_ref().is_some_and(|network| names::check_machine_name(network).is_err()) {
        return Err(ApiError::invalid(
            "invalid network, use 1 to 63 letters, digits, dashes, dots and underscores",
        )
        .into());
    }
    // Of the two ways to name a key this one is the reference's.
    let idempotency_key = given(request.idempotency_key)
        .or(id.map(|Extension(RequestId(id))| format!("request {id}")));
    if idempotency_key.as_ref().is_some_and(|key| key.len() > 255) {
        return Err(ApiError::invalid("invalid idempotency_key, at most 255 bytes").into());
    }
    let network = network.map(NetworkName::from_trusted);
    let organization = caller.slug(&organization).to_owned();
    let app =
        context.catalog.create_app(NewApp { name, organization, network, idempotency_key }).await?;
    let reply = CreateAppReply { created_at: app.created_ms.as_u64(), app: show(&context, app) };
    Ok((StatusCode::CREATED, Json(reply)).into_response())
}

/// List apps.
#[utoipa::path(
    get,
    path = "/v1/apps",
    operation_id = "Apps_list",
    tag = "Apps",
    params(
        ("org_slug" = Option<String>, Query, description = "Only apps of this organization; \
            `personal` is the caller's own"),
        PageParams,
    ),
    responses(
        (status = 200, description = "The apps", body = ListAppsReply),
        BadParameter,
        (status = 404, description = "No such organization", body = ErrorBody),
    ),
)]
pub(crate) async fn list(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    params: Params,
) -> Result<Json<ListAppsReply>, HttpError> {
    context.synced().await?;
    let organization = match params.get("org_slug") {
        Some(slug) => Some(caller.organization(&context, slug).await?.slug),
        None => None,
    };
    let Some(page) = cursor::page(&params, MAX_PAGE)? else {
        let all = caller.apps(&context, AppQuery { organization, ..AppQuery::default() }).await?;
        let apps = all.apps.into_iter().map(|app| show(&context, app)).collect();
        return Ok(Json(ListAppsReply { total_apps: all.total, apps, next_cursor: None }));
    };
    let after = if page.cursor.after.is_empty() { Ok(0) } else { page.cursor.after.parse() };
    let query = AppQuery {
        organization,
        after: after.map_err(|_| {
            ApiError::invalid("invalid parameter cursor, start again from the first page")
        })?,
        created_until_ms: Some(page.cursor.first_ms),
        limit: Some(page.limit),
    };
    let found = caller.apps(&context, query).await?;
    let total_apps = if page.cursor.after.is_empty() { found.total } else { page.cursor.total };
    let last = found.apps.last().filter(|_| found.more);
    let next_cursor = last.map(|last| page.cursor.following(last.number, total_apps));
    let apps = found.apps.into_iter().map(|app| show(&context, app)).collect();
    Ok(Json(ListAppsReply { total_apps, apps, next_cursor }))
}

/// Show an app.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}",
    operation_id = "Apps_show",
    tag = "Apps",
    params(AppPath),
    responses((status = 200, description = "The app", body = App), NoApp),
)]
pub(crate) async fn get(
    State(context): State<Context>,
    app: AppPath,
) -> Result<Json<App>, HttpError> {
    context.synced().await?;
    Ok(Json(show(&context, app.look_up(&context).await?)))
}

/// Delete an app.
///
/// Its machines are destroyed too, running or not, and its volumes are deleted. The name is free
/// once they are gone.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}",
    operation_id = "Apps_delete",
    tag = "Apps",
    params(AppPath),
    responses((status = 202, description = "The app is being deleted"), NoApp),
)]
pub(crate) async fn delete(
    State(context): State<Context>,
    app: AppPath,
) -> Result<StatusCode, HttpError> {
    context.synced().await?;
    let name = app.name()?;
    let app = context.catalog.begin_app_deletion(name).await?;
    if context.catalog.finish_app_deletion(name).await? {
        context.view.end_app(name);
    } else {
        deletion::begin(&context, &app.name);
    }
    Ok(StatusCode::ACCEPTED)
}
