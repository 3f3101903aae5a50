//! Waits for states of machines, in slices of what the API allows.

use std::time::Duration;

use caddis_api::{EventId, MachineId, MachineState, Signal, event::ExitEvent, requests::WaitReply};
use caddis_client::{Client, WaitFor};
use tokio::time::Instant;

use crate::{CliError, Printer, progress};

/// Default budget.
pub const BUDGET: Duration = Duration::from_secs(300);
/// Failures in a row that are tried again.
const TRIES: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(500);
/// How long a program is looked at after its start: the least that the API waits.
const MOMENT: Duration = Duration::from_secs(1);
/// Events that may have come meanwhile.
const EVENTS: usize = 20;

/// Waits, showing what goes on meanwhile.
pub async fn wait(
    printer: &Printer,
    client: &Client,
    app: &str,
    machine: &MachineId,
    condition: &WaitFor,
    budget: Duration,
) -> Result<WaitReply, CliError> {
    tokio::select! {
        reply = slices(client, app, machine, condition, budget) => reply,
        () = progress::follow(printer, client, app, machine) => unreachable!("following never \
            ends"),
    }
}

async fn slices(
    client: &Client,
    app: &str,
    machine: &MachineId,
    condition: &WaitFor,
    budget: Duration,
) -> Result<WaitReply, CliError> {
    let deadline = Instant::now() + budget;
    let mut failures = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.wait_machine(app, machine, condition, left).await {
            Ok(reply) => return Ok(reply),
            Err(error) if error.status() == Some(408) => {
                failures = 0;
                if Instant::now() >= deadline {
                    let seen = seen(client, app, machine).await.unwrap_or_default();
                    let text =
                        format!("timeout reached waiting for machine's state to change{seen}");
                    return Err(CliError::DeadlineExceeded(text));
                }
            }
            Err(error) if error.is_transient() && failures < TRIES => {
                failures += 1;
                tokio::time::sleep(BACKOFF).await;
            }
            Err(error) => return Err(CliError::attempted("failed waiting for machine", error)),
        }
    }
}

/// What state a machine is in that was waited for in vain, as the end of a sentence.
async fn seen(client: &Client, app: &str, machine: &MachineId) -> Option<String> {
    let machine = client.get_machine(app, machine).await.ok()?;
    let doing = machine
        .operation
        .map(|operation| format!(" ({} in progress, step {})", operation.kind, operation.step));
    Some(format!("; it is {}{}", machine.state, doing.unwrap_or_default()))
}

/// Waits until a machine runs its program; says so when it ran and ended meanwhile.
pub async fn until_started(
    printer: &Printer,
    client: &Client,
    app: &str,
    machine: &MachineId,
) -> Result<MachineState, CliError> {
    let ends = [
        MachineState::Started,
        MachineState::Stopped,
        MachineState::Failed,
        MachineState::Destroyed,
    ];
    let ends = WaitFor::States(ends.to_vec());
    let deadline = Instant::now() + BUDGET;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let reply = wait(printer, client, app, machine, &ends, left).await?;
        match reply.state {
            MachineState::Failed => return Err(failed(client, app, machine, "start").await),
            // A stop that was under way has ended, and the start that was waiting for that goes on.
            MachineState::Stopped if is_on_its_way(client, app, machine).await? => {}
            state => return Ok(state),
        }
    }
}

async fn is_on_its_way(client: &Client, app: &str, machine: &MachineId) -> Result<bool, CliError> {
    let machine = client.get_machine(app, machine).await;
    let machine =
        machine.map_err(|error| CliError::attempted("failed waiting for machine", error))?;
    Ok(machine.operation.is_some_and(|operation| operation.kind == "start"))
}

/// The error about a machine that has failed while something was done to it.
pub async fn failed(client: &Client, app: &str, machine: &MachineId, what: &str) -> CliError {
    // Without them the error is still that.
    let events = client.events(app, machine, 10).await.unwrap_or_default();
    let reason = events.iter().find_map(|event| event.error().map(str::to_owned));
    let reason =
        reason.unwrap_or_else(|| format!("see 'caddis machine status {machine} -a {app}'"));
    CliError::new(format!("machine {machine} failed to {what}: {reason}"))
}

/// Waits until a machine is in one of these states, at which it ends well.
///
/// # Errors
/// Also when it has failed instead, with the reason.
pub async fn until(
    printer: &Printer,
    client: &Client,
    app: &str,
    machine: &MachineId,
    (what, states): (&str, &[MachineState]),
    budget: Duration,
) -> Result<MachineState, CliError> {
    let states = WaitFor::States(states.iter().copied().chain([MachineState::Failed]).collect());
    match wait(printer, client, app, machine, &states, budget).await?.state {
        MachineState::Failed => Err(failed(client, app, machine, what).await),
        state => Ok(state),
    }
}

/// What became of a machine that was started.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs.
    Runs,
    /// Its program has done its work, and it is in this state.
    Done(MachineState),
}

/// The same, and looks a moment longer whether its program goes on: one that can't work mostly ends
/// at once.
///
/// # Errors
/// See [`how_it_went`].
pub async fn until_it_runs(
    printer: &Printer,
    client: &Client,
    app: &str,
    machine: &MachineId,
    before: Option<&EventId>,
) -> Result<Outcome, CliError> {
    let mut state = until_started(printer, client, app, machine).await?;
    if state == MachineState::Started {
        let ends = WaitFor::States(vec![
            MachineState::Stopped,
            MachineState::Failed,
            MachineState::Destroyed,
        ]);
        match client.wait_machine(app, machine, &ends, MOMENT).await {
            Ok(reply) => state = reply.state,
            Err(error) if error.status() == Some(408) || error.is_transient() => {}
            Err(error) => return Err(CliError::attempted("failed waiting for machine", error)),
        }
    }
    how_it_went(client, app, machine, before, state).await
}

/// What became of a machine that has started and is in this state. `before` is its newest event of
/// before it was started.
///
/// # Errors
/// Also when the program has failed meanwhile, whether it is restarted or not.
pub async fn how_it_went(
    client: &Client,
    app: &str,
    machine: &MachineId,
    before: Option<&EventId>,
    state: MachineState,
) -> Result<Outcome, CliError> {
    let events = match client.events(app, machine, EVENTS).await {
        Ok(events) => events,
        // A machine that is gone with its program may have left none.
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => {
            return Err(CliError::attempted("could not find out how the program ended", error));
        }
    };
    let exits = events.iter().take_while(|event| before.is_none_or(|before| event.id > *before));
    let mut exits =
        exits.filter_map(|event| event.exit_details()).map(|details| details.exit_event);
    match exits.find(|exit| !exit.requested_stop) {
        Some(exit) if exit.exit_code != 0 || exit.oom_killed => {
            let after = if exit.restarting { ", it is being restarted" } else { "" };
            let text =
                format!("machine {machine} failed: its program ended with {}{after}", how(&exit));
            Err(CliError::with_hint(
                text,
                format!("See 'caddis logs -a {app} -m {machine} --no-tail' for its output."),
            ))
        }
        _ if state == MachineState::Started => Ok(Outcome::Runs),
        _ => Ok(Outcome::Done(state)),
    }
}

/// How a program ended.
pub fn how(exit: &ExitEvent) -> String {
    let signal = Signal::from_number(exit.guest_signal)
        .map(|signal| format!(" ({signal})"))
        .unwrap_or_default();
    let cause = exit.cause.as_ref().map(|cause| format!(", {cause}")).unwrap_or_default();
    let message = exit.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    format!("exit code {}{signal}{cause}{message}", exit.exit_code)
}
