//! Follows a machine's health checks.

use std::time::Duration;

use caddis_api::{
    Machine, MachineId, MachineState,
    machine::{CheckState, CheckStatus},
};
use caddis_client::Client;
use tokio::time::{Instant, sleep};

use super::choice;
use crate::{CliError, Printer, session::Session};

/// How long they may take, and how often they are looked at: the reference's figures.
const TIMEOUT: Duration = Duration::from_secs(300);
const OFTEN: Duration = Duration::from_secs(1);

/// The same as [`follow`] for a machine that was just made. It is leased meanwhile, since nobody
/// uses it yet: it would be put to sleep if its checks took longer than its idle timeout.
pub async fn follow_new(
    session: &Session,
    client: &Client,
    app: &str,
    id: &MachineId,
) -> Result<(), CliError> {
    let machine = choice::get(client, app, id.as_str()).await?;
    if machine.checks.as_ref().is_some_and(|checks| !checks.is_empty()) {
        session.lease(client, app, &machine).await?;
    }
    let followed = follow(&session.printer, client, app, &machine).await;
    session.release_lease(id).await;
    followed
}

/// Waits until all of a machine's checks pass.
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
