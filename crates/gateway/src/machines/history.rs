//! What happened to a machine, and what runs in it.

use std::cmp::Ordering;

use axum::{Json, extract::State};
use caddis_api::{ApiError, event::MachineEvent, exec::ProcessStat};
use caddis_bus::message::{WorkerReply, WorkerRequest};

use crate::{
    context::{Context, unexpected},
    envelope::Failure,
    extract::MachinePath,
    query::{Params, invalid},
};

/// Events given unless told otherwise, and at most.
const EVENTS: (u64, u64) = (20, 50);

async fn ask(context: &Context, path: &MachinePath, request: WorkerRequest) -> Result<WorkerReply, ApiError> {
    let shown = context.machine(&path.app, &path.id).await?;
    Ok(context.ask(&shown.record.worker, request, context.settings.request_deadline).await?)
}

/// `GET …/events`, newest first.
pub(crate) async fn events(
    State(context): State<Context>,
    path: MachinePath,
    params: Params,
) -> Result<Json<Vec<MachineEvent>>, Failure> {
    let limit = params.number("limit", 1, u64::MAX)?.unwrap_or(EVENTS.0).min(EVENTS.1) as usize;
    match ask(&context, &path, WorkerRequest::Events { machine: path.id.clone(), limit }).await? {
        WorkerReply::Events { events } => Ok(Json(events)),
        other => Err(unexpected(&other).into()),
    }
}

/// `GET …/ps`.
pub(crate) async fn processes(
    State(context): State<Context>,
    path: MachinePath,
    params: Params,
) -> Result<Json<Vec<ProcessStat>>, Failure> {
    let field = params.get("sort_by").unwrap_or("pid");
    let by =
        order(field).ok_or_else(|| invalid("sort_by", field, "pid, stime, rtime, command, directory, cpu or rss"))?;
    let descending = match params.get("order") {
        None | Some("asc") => false,
        Some("desc") => true,
        Some(other) => return Err(invalid("order", other, "asc or desc").into()),
    };
    match ask(&context, &path, WorkerRequest::Processes { machine: path.id.clone() }).await? {
        WorkerReply::Processes { mut processes } => {
            processes.sort_by(|a, b| if descending { by(b, a) } else { by(a, b) });
            Ok(Json(processes))
        }
        other => Err(unexpected(&other).into()),
    }
}

type Order = fn(&ProcessStat, &ProcessStat) -> Ordering;

fn order(field: &str) -> Option<Order> {
    Some(match field {
        "pid" => |a, b| a.pid.cmp(&b.pid),
        "stime" => |a, b| a.stime.cmp(&b.stime),
        "rtime" => |a, b| a.rtime.cmp(&b.rtime),
        "command" => |a, b| a.command.cmp(&b.command),
        "directory" => |a, b| a.directory.cmp(&b.directory),
        "cpu" => |a, b| a.cpu.cmp(&b.cpu),
        "rss" => |a, b| a.rss.cmp(&b.rss),
        _ => return None,
    })
}
