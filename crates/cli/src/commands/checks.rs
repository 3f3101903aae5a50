//! `caddis checks`.

use caddis_api::Machine;
use caddis_client::ListMachines;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Map, json};

use super::machine::choice;
use crate::{
    CliError, complete,
    globals::AppArgs,
    render::{machine as cell, time},
    session::Session,
};

/// `caddis checks …`.
#[derive(Debug, Args)]
pub struct Checks {
    #[command(subcommand)]
    command: ChecksCommand,
}

#[derive(Debug, Subcommand)]
enum ChecksCommand {
    /// List health checks and their last results; n/a where the machine is not running.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  caddis checks list -a hello\n  caddis checks list -a hello -m \
                      148ed193b95389 --json"
    )]
    List(List),
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    app: AppArgs,
    /// Only checks of this machine, by ID or name.
    #[arg(short, long, value_name = "MACHINE", add = complete::machines())]
    machine: Option<String>,
    /// Only checks of this name.
    #[arg(long, value_name = "NAME")]
    check_name: Option<String>,
    /// Print checks by machine ID as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(checks: Checks, session: &Session) -> Result<(), CliError> {
    let ChecksCommand::List(list) = checks.command;
    let (app, client, printer) = (session.app(&list.app)?, session.client()?, &session.printer);
    let mut machines = match &list.machine {
        Some(name) => vec![choice::get(&client, &app, name).await?],
        None => client.list_machines(&app, &ListMachines::default()).await?,
    };
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    if let Some(name) = &list.check_name {
        for machine in &mut machines {
            machine.checks.iter_mut().for_each(|checks| checks.retain(|check| check.name == *name));
        }
    }
    if list.json {
        let by_machine: Map<_, _> = machines
            .into_iter()
            .map(|machine| (machine.id.to_string(), json!(machine.checks.unwrap_or_default())))
            .collect();
        return Ok(printer.json(&by_machine)?);
    }
    printer.out(format_args!("Health Checks for {app}"))?;
    let now = Timestamp::now();
    let rows: Vec<_> = machines.iter().flat_map(|machine| rows(machine, now)).collect();
    let headers = ["Name", "Status", "Machine", "Last Updated", "Output"];
    Ok(printer.table("", &headers, &rows)?)
}

fn rows(machine: &Machine, now: Timestamp) -> impl Iterator<Item = Vec<String>> {
    machine.checks.iter().flatten().map(move |check| {
        vec![
            check.name.clone(),
            cell::check_status(machine, check),
            machine.id.to_string(),
            time::relative(&check.updated_at, now),
            check.output.clone(),
        ]
    })
}
