//! What the proxy knows of apps and machines.

use axum::{Json, extract::State};
use caddis_api::{
    ApiError, ErrorCode,
    traffic::{AppTraffic, MachineTraffic},
};

use crate::http::{
    authorization::{AppPath, MachinePath},
    context::{Context, Inner},
    errors::HttpError,
    responses::{NoApp, NoMachine},
};

/// Show the traffic of an app and its machines.
///
/// 404 for an app of which the proxy knows nothing: none of its machines has services. Caddis
/// extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/traffic",
    operation_id = "Apps_traffic",
    tag = "Apps",
    params(AppPath),
    responses(
        (status = 200, description = "The traffic", body = AppTraffic),
        NoApp,
    ),
)]
pub(crate) async fn of_app(
    State(context): State<Context>,
    app: AppPath,
) -> Result<Json<AppTraffic>, HttpError> {
    let app = app.look_up(&context).await?;
    let unknown = || ApiError::new(ErrorCode::NotFound, "no traffic is known of the app");
    Ok(Json(known(&context, &app.name).ok_or_else(unknown)?))
}

/// Show the traffic of a machine, and the proxy's last decision about it.
///
/// 404 for a machine of which the proxy knows nothing. Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/traffic",
    operation_id = "Machines_traffic",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "The traffic", body = MachineTraffic),
        NoMachine,
    ),
)]
pub(crate) async fn of_machine(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<MachineTraffic>, HttpError> {
    let shown = path.look_up(&context).await?;
    let machine = &shown.record.machine.id;
    let known = known(&context, &shown.record.app).and_then(|mut app| app.machines.remove(machine));
    let unknown = || ApiError::new(ErrorCode::NotFound, "no traffic is known of the machine");
    Ok(Json(known.ok_or_else(unknown)?))
}

fn known(context: &Inner, app: &str) -> Option<AppTraffic> {
    context.settings.traffic.info.as_ref()?.traffic(app)
}
