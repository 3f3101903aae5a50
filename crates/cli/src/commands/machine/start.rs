//! `caddis machine start`.

use caddis_api::MachineState;
use clap::Args;

use super::{arguments::Unasked, choice};
use crate::{CliError, session::Session, waiting};

/// `caddis machine start`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis machine start 148e001b123d89\n  caddis machine start \
                  148e001b123d89 --timing")]
pub struct Start {
    #[command(flatten)]
    which: choice::Many,
    #[command(flatten)]
    _unasked: Unasked,
    /// Show how long each step took.
    #[arg(long)]
    timing: bool,
}

/// Starts machines.
pub async fn run(start: Start, session: &Session) -> Result<(), CliError> {
    let (client, app, machines) = start.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let nonce = session.lease(&client, &app, machine).await?;
        let started = client.start_machine(&app, &machine.id, Some(&nonce)).await;
        started.map_err(|e| {
            CliError::attempted(format!("could not start machine {}", machine.id), e)
        })?;
        session.release_lease(&machine.id).await;
        let before = machine.events.iter().flatten().next().map(|event| &event.id);
        let state = waiting::until_started(&session.printer, &client, &app, &machine.id).await?;
        if state != MachineState::Started {
            waiting::how_it_went(&client, &app, &machine.id, before, state).await?;
        }
        match state {
            MachineState::Started => {
                session.printer.out(format_args!("{} has been started", machine.id))?
            }
            state => session
                .printer
                .out(format_args!("{} was started and is now {state}", machine.id))?,
        }
        if start.timing {
            let machine = client.get_machine(&app, &machine.id).await;
            let machine =
                machine.map_err(|e| CliError::attempted("could not get machine ID", e))?;
            show_timing(session, &machine)?;
        }
        Ok(())
    })
    .await
}

/// Shows what the newest event of a start tells.
fn show_timing(session: &Session, machine: &caddis_api::Machine) -> Result<(), CliError> {
    let event = machine
        .events
        .iter()
        .flatten()
        .find(|event| event.kind == "start" || event.kind == "restart");
    let told = event.and_then(|event| event.details.as_ref());
    let text =
        |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let Some(steps) = told.and_then(|told| told["timing"].as_array()) else {
        let reason =
            told.map(|told| text(told, "start_reason")).filter(|reason| !reason.is_empty());
        return match reason {
            // Nothing was started.
            Some(reason) => Ok(session.printer.out(format_args!("No start needed: {reason}"))?),
            None => Err(CliError::new(format!("machine {} has not started", machine.id))),
        };
    };
    let told = told.unwrap_or(&serde_json::Value::Null);
    let pool = told["pool"].as_str().map(|pool| format!("(pool: {pool}) ")).unwrap_or_default();
    let mut lines =
        vec![format!("Start: {} {pool}{}", text(told, "start_kind"), text(told, "start_reason"))];
    // What the VMM and the guest did lies within the host's steps `launch` and `configure`.
    let host = |step: &&serde_json::Value| step["where"] == "host";
    let total: f64 = steps.iter().filter(host).filter_map(|step| step["ms"].as_f64()).sum();
    for step in steps {
        let milliseconds = step["ms"].as_f64().unwrap_or(0.0);
        lines.push(format!(
            "  {:<6} {:<14} {milliseconds:>8.1} ms",
            text(step, "where"),
            text(step, "step")
        ));
    }
    lines.push(format!("  {:<6} {:<14} {total:>8.1} ms", "host", "total"));
    for line in lines {
        session.printer.out(format_args!("{}", line.trim_end()))?;
    }
    Ok(())
}
