//! What the proxy knows of a machine.

use axum::{Json, extract::State};
use caddis_api::{ApiError, ErrorCode, traffic::MachineTraffic};

use crate::http::{
    authorization::MachinePath, context::Context, errors::HttpError, responses::NoMachine,
};

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
pub(crate) async fn get(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<MachineTraffic>, HttpError> {
    let shown = path.look_up(&context).await?;
    let (app, machine) = (&shown.record.app, &shown.record.machine.id);
    let known = match &context.settings.traffic.info {
        Some(proxy) => proxy.traffic(app, machine),
        None => None,
    };
    let unknown = || ApiError::new(ErrorCode::NotFound, "no traffic is known of the machine");
    Ok(Json(known.ok_or_else(unknown)?))
}
