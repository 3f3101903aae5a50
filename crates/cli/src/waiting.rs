//! Waits for states of machines, in slices of what the API allows.

use std::time::Duration;

use caddis_api::{MachineId, MachineState, requests::WaitReply};
use caddis_client::{Client, WaitFor};
use tokio::time::Instant;

use crate::{CliError, Printer, progress};

/// Default budget.
pub const BUDGET: Duration = Duration::from_secs(300);
/// Failures in a row that are tried again.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

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
        () = progress::follow(printer, client, app, machine) => unreachable!("following never ends"),
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
                    let text = "timeout reached waiting for machine's state to change";
                    return Err(CliError::DeadlineExceeded(text.to_owned()));
                }
            }
            Err(error) if error.is_transient() && failures < TRIES => {
                failures += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(CliError::attempted("failed waiting for machine", error)),
        }
    }
}

/// Waits until a machine runs its program; says so when it ran and ended meanwhile.
pub async fn until_started(
    printer: &Printer,
    client: &Client,
    app: &str,
    machine: &MachineId,
) -> Result<MachineState, CliError> {
    let ends = [MachineState::Started, MachineState::Stopped, MachineState::Failed, MachineState::Destroyed];
    let reply = wait(printer, client, app, machine, &WaitFor::States(ends.to_vec()), BUDGET).await?;
    if reply.state == MachineState::Failed {
        let events = client.events(app, machine, 10).await.unwrap_or_default();
        let reason = events.iter().find_map(|event| event.request.as_ref()?.get("error")?.as_str().map(str::to_owned));
        let reason = reason.unwrap_or_else(|| format!("see 'caddis machine status {machine} -a {app}'"));
        return Err(CliError::new(format!("machine {machine} failed to start: {reason}")));
    }
    Ok(reply.state)
}
