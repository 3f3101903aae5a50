//! Waits for a state, by push from the view.

use std::time::Duration;

use axum::{Json, extract::State};
use caddis_api::{
    ApiError, ErrorCode, EventId, MachineState, VersionId, error::ErrorBody, requests::WaitReply,
};
use caddis_view::CachedMachine;
use tokio::time::Instant;

use super::reached::{Reached, Since, Targets, out_of_reach, reached};
use crate::http::{
    authorization::MachinePath,
    context::Context,
    errors::HttpError,
    query::{Params, invalid},
};

/// Default and longest wait, seconds: proxies in the field cut requests at a minute.
const MAX_SECONDS: u64 = 60;

const STATES: &[MachineState] = &[
    MachineState::Started,
    MachineState::Stopped,
    MachineState::Suspended,
    MachineState::Destroyed,
    MachineState::Failed,
    MachineState::Created,
];

fn targets(params: &Params) -> Result<Targets, ApiError> {
    let mut targets = Targets { states: Vec::new(), settled: false };
    let words = params.all("state").flat_map(|value| value.split(',')).map(str::trim);
    for word in words.filter(|word| !word.is_empty()) {
        match STATES.iter().find(|state| state.as_str() == word) {
            Some(state) => targets.states.push(*state),
            None if word == "settled" => targets.settled = true,
            None => {
                let known: Vec<_> = STATES.iter().map(|state| state.as_str()).collect();
                return Err(invalid("state", word, &format!("{} or settled", known.join(", "))));
            }
        }
    }
    if targets.states.is_empty() && !targets.settled {
        targets.states.push(MachineState::Started);
    }
    Ok(targets)
}

/// Ids of versions and events have 26 characters.
fn id<'a>(params: &'a Params, name: &str) -> Result<Option<&'a str>, ApiError> {
    let text = params.get(name);
    match text
        .filter(|text| text.len() != 26 || !text.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    {
        Some(text) => Err(invalid(name, text, "an id of 26 letters and digits")),
        None => Ok(text),
    }
}

fn timeout(params: &Params) -> Result<Duration, ApiError> {
    let wanted =
        params.duration("timeout")?.map_or(Duration::from_secs(MAX_SECONDS), |duration| duration.0);
    Ok(wanted.clamp(Duration::from_secs(1), Duration::from_secs(MAX_SECONDS)))
}

/// Wait for a machine to reach a state.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/wait",
    operation_id = "Machines_wait",
    tag = "Machines",
    params(
        MachinePath,
        ("state" = Option<String>, Query,
            description = "started (default), stopped, suspended, destroyed, failed, created or \
                           settled; or several, comma-separated"),
        ("timeout" = Option<String>, Query, description = "Whole seconds or Go's notation; default \
            and maximum: 60 seconds"),
        ("version" = Option<String>, Query, description = "The version that must be current"),
        ("instance_id" = Option<String>, Query, deprecated, description = "Old name of version"),
        ("from_event_id" = Option<String>, Query, description = "Only changes after this event \
            count"),
    ),
    responses(
        (status = 200, description = "Reached", body = WaitReply),
        (status = 400, body = ErrorBody,
            description = "Invalid request, or the machine has failed or ended and will not reach \
                           the state by itself"),
        (status = 404, description = "No such app, machine or version", body = ErrorBody),
        (status = 408, description = "Not reached in time", body = ErrorBody),
        (status = 409, description = "The version was replaced", body = ErrorBody),
    ),
)]
pub(crate) async fn wait(
    State(context): State<Context>,
    path: MachinePath,
    params: Params,
) -> Result<Json<WaitReply>, HttpError> {
    let (targets, timeout) = (targets(&params)?, timeout(&params)?);
    let version = match id(&params, "version")? {
        Some(version) => Some(version),
        None => id(&params, "instance_id")?,
    };
    let from = id(&params, "from_event_id")?.map(EventId::from_trusted);
    let mut machine = path.watch(&context).await?;
    let since = from.map_or_else(|| Since::Now(newest_event(&machine.borrow())), Since::Event);
    let deadline = Instant::now() + timeout;
    let mut closing = std::pin::pin!(context.closing.cancelled());
    loop {
        let shown = machine.borrow_and_update().clone();
        if let Some(reply) = look(&shown, &targets, &since, version)? {
            return Ok(Json(reply));
        }
        tokio::select! {
            changed = machine.changed() => changed.map_err(|_| ApiError::machine_not_found())?,
            () = tokio::time::sleep_until(deadline) => {
                return Err(timed_out(&targets, shown.state()).into());
            }
            () = &mut closing => {
                return Err(ApiError::new(ErrorCode::Unavailable, "unavailable: the server is \
                    stopping").into());
            }
        }
    }
}

fn newest_event(shown: &CachedMachine) -> Option<EventId> {
    Some(shown.record.machine.events.as_ref()?.first()?.id.clone())
}

fn look(
    shown: &CachedMachine,
    targets: &Targets,
    since: &Since,
    version: Option<&str>,
) -> Result<Option<WaitReply>, ApiError> {
    let machine = &shown.record.machine;
    match version.map(VersionId::from_trusted) {
        // Versions rise: an earlier one was replaced, a later one never was.
        Some(version) if version < machine.version => {
            return Err(ApiError::aborted(format!(
                "machine failed to reach desired state, {}, currently replaced",
                names(targets)
            )));
        }
        Some(version) if version > machine.version => {
            return Err(ApiError::new(ErrorCode::NotFound, "machine version not found"));
        }
        _ => {}
    }
    if let Some(Reached { state, event }) = reached(&shown.record, targets, since) {
        return Ok(Some(WaitReply {
            ok: true,
            state,
            version: machine.version.clone(),
            event_id: event,
        }));
    }
    // It will never be anything else.
    if machine.state == MachineState::Destroyed {
        return Err(ApiError::machine_not_found());
    }
    match out_of_reach(&shown.record, targets, since) {
        // Of all codes the usual client gives up at once at this one only; at the text of a 408 it
        // may panic.
        Some(reason) => {
            Err(ApiError::invalid(format!("machine will not reach {}: {reason}", names(targets))))
        }
        None => Ok(None),
    }
}

fn names(targets: &Targets) -> String {
    let states = targets.states.iter().map(|state| state.as_str());
    states.chain(targets.settled.then_some("settled")).collect::<Vec<_>>().join(",")
}

fn timed_out(targets: &Targets, state: MachineState) -> ApiError {
    ApiError::new(
        ErrorCode::DeadlineExceeded,
        format!(
            "deadline_exceeded: machine failed to reach desired state, {}, currently {state}",
            names(targets)
        ),
    )
}
