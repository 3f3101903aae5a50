//! What happened to a machine, and what runs in it.

use std::cmp::Ordering;

use axum::{Json, extract::State};
use caddis_api::{ApiError, MachineId, event::MachineEvent, exec::ProcessStat};
use caddis_bus::message::{WorkerReply, WorkerRequest};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::http::{
    authorization::MachinePath,
    context::Context,
    errors::{HttpError, unexpected},
    query::Params,
    responses::{NoMachine, Refused},
};

/// Events given unless told otherwise, and at most.
const EVENTS: (u64, u64) = (20, 50);

async fn ask(
    context: &Context,
    path: &MachinePath,
    request: impl FnOnce(MachineId) -> WorkerRequest,
) -> Result<WorkerReply, ApiError> {
    let shown = path.look_up(context).await?;
    let request = request(shown.record.machine.id.clone());
    Ok(context.ask(&shown.record.worker, request, context.settings.request_deadline).await?)
}

/// List the events of a machine, newest first.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/events",
    operation_id = "Machines_list_events",
    tag = "Machines",
    params(
        MachinePath,
        ("limit" = Option<u64>, Query, minimum = 1, description = "Maximum number of events; \
            default 20, at most 50"),
    ),
    responses(
        (status = 200, description = "The events", body = Vec<MachineEvent>),
        NoMachine,
    ),
)]
pub(crate) async fn events(
    State(context): State<Context>,
    path: MachinePath,
    params: Params,
) -> Result<Json<Vec<MachineEvent>>, HttpError> {
    let limit = params.number("limit", 1, u64::MAX)?.unwrap_or(EVENTS.0).min(EVENTS.1) as usize;
    match ask(&context, &path, |machine| WorkerRequest::Events { machine, limit }).await? {
        WorkerReply::Events { events } => Ok(Json(events)),
        other => Err(unexpected(&other).into()),
    }
}

/// List the processes in a machine.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/ps",
    operation_id = "Machines_list_processes",
    tag = "Machines",
    params(
        MachinePath,
        ("sort_by" = inline(Option<SortBy>), Query, description = "Field to sort by; default pid"),
        ("order" = inline(Option<SortOrder>), Query, description = "Sort order; default ascending"),
    ),
    responses(
        (status = 200, description = "The processes", body = Vec<ProcessStat>),
        NoMachine,
        Refused,
    ),
)]
pub(crate) async fn processes(
    State(context): State<Context>,
    path: MachinePath,
    params: Params,
) -> Result<Json<Vec<ProcessStat>>, HttpError> {
    let by = params.word::<SortBy>("sort_by")?.unwrap_or(SortBy::Pid).order();
    let descending = params.word::<SortOrder>("order")? == Some(SortOrder::Desc);
    match ask(&context, &path, |machine| WorkerRequest::Processes { machine }).await? {
        WorkerReply::Processes { mut processes } => {
            processes.sort_by(|a, b| if descending { by(b, a) } else { by(a, b) });
            Ok(Json(processes))
        }
        other => Err(unexpected(&other).into()),
    }
}

type Order = fn(&ProcessStat, &ProcessStat) -> Ordering;

/// A field of a process.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SortBy {
    Pid,
    Stime,
    Rtime,
    Command,
    Directory,
    Cpu,
    Rss,
}

impl SortBy {
    fn order(&self) -> Order {
        match self {
            Self::Pid => |a, b| a.pid.cmp(&b.pid),
            Self::Stime => |a, b| a.stime.cmp(&b.stime),
            Self::Rtime => |a, b| a.rtime.cmp(&b.rtime),
            Self::Command => |a, b| a.command.cmp(&b.command),
            Self::Directory => |a, b| a.directory.cmp(&b.directory),
            Self::Cpu => |a, b| a.cpu.cmp(&b.cpu),
            Self::Rss => |a, b| a.rss.cmp(&b.rss),
        }
    }
}

/// Up or down.
#[derive(Debug, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SortOrder {
    Asc,
    Desc,
}
