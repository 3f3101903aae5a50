//! `caddis machine list`.

use caddis_api::Machine;
use caddis_client::ListMachines;
use clap::Args;
use futures::stream;
use jiff::Timestamp;

use super::watch::{self, Form};
use crate::{
    CliError, Printer,
    globals::AppArgs,
    render::{
        machine::{self as cell, process_group, volume},
        table, time, words,
    },
    session::Session,
};

/// `caddis machine list`.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    app: AppArgs,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
    /// Print IDs only.
    #[arg(short, long)]
    quiet: bool,
    /// Show live updates until q or Ctrl-C; with --json one document per line.
    #[arg(long, conflicts_with = "quiet")]
    watch: bool,
}

/// Lists machines.
pub async fn run(list: List, session: &Session) -> Result<(), CliError> {
    let (app, client, printer) = (session.app(&list.app)?, session.client()?, &session.printer);
    if list.watch {
        let table = |machines: &[Machine]| table_of(printer, &app, machines);
        return watch::machines(
            session,
            &client,
            &app,
            Form::of(list.json, session),
            stream::pending(),
            table,
        )
        .await;
    }
    let filter = ListMachines::default();
    if list.json {
        printer.json(&client.list_machines_json(&app, &filter).await?)?;
        return Ok(());
    }
    let machines = client.list_machines(&app, &filter).await?;
    if list.quiet {
        machines.iter().try_for_each(|machine| printer.out(format_args!(" {}", machine.id)))?;
        return Ok(());
    }
    if machines.is_empty() {
        printer.out(format_args!("No machines are available on this app {app}"))?;
        return Ok(());
    }
    let have = if machines.len() == 1 { "has" } else { "have" };
    let count = words::count(machines.len(), "machine");
    printer.out(format_args!("{count} {have} been retrieved from app {app}.\n"))?;
    printer.raw_out(&table_of(printer, &app, &machines))?;
    Ok(())
}

fn table_of(printer: &Printer, app: &str, machines: &[Machine]) -> String {
    let headers = [
        "ID",
        "Name",
        "State",
        "Checks",
        "Region",
        "Role",
        "Image",
        "IP Address",
        "Volume",
        "Created",
        "Last Updated",
        "Process Group",
        "Size",
    ];
    let now = Timestamp::now();
    let rows: Vec<_> = machines.iter().map(|machine| row(machine, now)).collect();
    table::horizontal(printer.screen(), &printer.title(app), &headers, &rows)
}

fn row(machine: &Machine, now: Timestamp) -> Vec<String> {
    let config = cell::config(machine);
    vec![
        machine.id.to_string(),
        machine.name.clone(),
        machine.state.to_string(),
        cell::checks(machine),
        machine.region.to_string(),
        cell::role(machine).unwrap_or_default().to_owned(),
        cell::image(&machine.image_ref),
        machine.private_ip.clone(),
        volume(&config),
        time::relative(&machine.created_at, now),
        time::relative(&machine.updated_at, now),
        process_group(&config),
        cell::size(&config.guest.unwrap_or_default()),
    ]
}
