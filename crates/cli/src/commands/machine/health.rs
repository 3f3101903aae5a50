//! Follows a machine's health checks.

use std::time::Duration;

use caddis_api::{
    Machine, MachineState,
    hold::HoldRequest,
    machine::{CheckState, CheckStatus},
};
use caddis_client::Client;
use tokio::time::{Instant, sleep};

use super::choice;
use crate::{CliError, Printer};

/// How long they may take, and how often they are looked at: the reference's figures.
const TIMEOUT: Duration = Duration::from_secs(300);
const OFTEN: Duration = Duration::from_secs(1);

/// For how long a machine is held at a time whose checks are waited for, and why.
const HELD: Duration = Duration::from_secs(10);
const REASON: &str = "its checks are waited for";

/// Waits until all checks pass of a machine that was just made. It is held meanwhile: nobody uses
/// it yet, so it would be put to sleep where its checks take longer than its idle timeout.
pub async fn follow_new(
    printer: &Printer,
    client: &Client,
    app: &str,
    machine: &Machine,
) -> Result<(), CliError> {
    let held = async {
        let request = HoldRequest { ttl: Some(HELD.as_secs()), reason: Some(REASON.to_owned()) };
        loop {
            let now = client.get_machine(app, &machine.id).await.ok();
            let hold = now.and_then(|machine| machine.hold);
            // Not in place of one that its program has asked for.
            if hold.is_none_or(|hold| hold.reason.as_deref() == Some(REASON)) {
                // Where it can't be held, how it ends is told.
                let _ = client.hold_machine(app, &machine.id, &request).await;
            }
            sleep(HELD / 2).await;
        }
    };
    tokio::select! {
        biased;
        followed = follow(printer, client, app, machine) => followed,
        () = held => Ok(()),
    }
}

/// Waits until all of a machine's checks pass. It is leased, or held.
pub async fn follow(
    printer: &Printer,
    client: &Client,
    app: &str,
    machine: &Machine,
) -> Result<(), CliError> {
    if machine.checks.as_ref().is_none_or(Vec::is_empty) {
        return Ok(printer.note("No health checks found")?);
    }
    let (id, deadline) = (&machine.id, Instant::now() + TIMEOUT);
    let mut told = String::new();
    loop {
        let machine = choice::get(client, app, id.as_str()).await?;
        let checks = machine.checks.unwrap_or_default();
        let failing: Vec<_> =
            checks.iter().filter(|check| check.status != CheckState::Passing).collect();
        let passing = checks.len() - failing.len();
        // Checks of a machine that does not run have their results from before.
        if failing.is_empty() && machine.state == MachineState::Started {
            return Ok(());
        }
        let line = format!(
            "  Waiting for {id} to become healthy ({}, {passing}/{})",
            machine.state,
            checks.len()
        );
        if line != told {
            printer.note(&line)?;
            told = line;
        }
        if machine.state != MachineState::Started {
            return Err(CliError::new(format!(
                "machine {id} is {} and not healthy",
                machine.state
            )));
        }
        if Instant::now() >= deadline {
            return Err(CliError::DeadlineExceeded(format!(
                "machine {id} did not become healthy in {} s: {}",
                TIMEOUT.as_secs(),
                explain(&failing)
            )));
        }
        sleep(OFTEN).await;
    }
}

/// Which checks do not pass, and why.
fn explain(failing: &[&CheckStatus]) -> String {
    let one = |check: &&CheckStatus| format!("{} ({})", check.name, check.output);
    failing.iter().map(one).collect::<Vec<_>>().join(", ")
}
