//! `caddis machine status`.

use caddis_api::{
    Machine,
    event::MachineEvent,
    traffic::{MachineTraffic, TrafficDecision},
};
use clap::Args;
use serde_json::json;

use super::choice;
use crate::{
    CliError,
    render::{
        json as json_text,
        machine::{self as cell, process_group, volume},
        size, time,
    },
    session::Session,
};

/// Events shown.
const EVENTS: usize = 50;

/// `caddis machine status`.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    which: choice::One,
    /// Print only the configuration, as JSON.
    #[arg(short, long)]
    display_config: bool,
    /// Print the machine as JSON.
    #[arg(short, long)]
    json: bool,
}

/// Shows a machine.
pub async fn run(status: Status, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let (client, app, machine) = status.which.find(session).await?;
    if status.display_config {
        printer.out(json_text::to_string(&machine.config, "  "))?;
        return Ok(());
    }
    if status.json {
        printer.json(&machine)?;
        return Ok(());
    }
    printer.out(format_args!("Machine ID: {}", machine.id))?;
    printer.out(format_args!("Instance ID: {}", machine.instance_id))?;
    printer.out(format_args!("State: {}", machine.state))?;
    let reason = machine
        .host_status_reason
        .as_ref()
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    printer.out(format_args!("HostStatus: {}{reason}\n", machine.host_status))?;
    if let Some(operation) = &machine.operation {
        let tried = if operation.attempt > 1 {
            format!(", attempt {}", operation.attempt)
        } else {
            String::new()
        };
        printer.out(format_args!(
            "In progress: {} (step: {}{tried})\n",
            operation.kind, operation.step
        ))?;
    }
    printer.facts("VM", &facts(&machine))?;
    if let Some(checks) = machine.checks.as_deref().filter(|checks| !checks.is_empty()) {
        let title = format!("Checks [{}]", cell::checks(&machine));
        let rows: Vec<_> = checks
            .iter()
            .map(|check| {
                let status = cell::check_status(&machine, check);
                vec![check.name.clone(), status, check.updated_at.clone(), check.output.clone()]
            })
            .collect();
        printer.table(&title, &["Name", "Status", "Last Updated", "Output"], &rows)?;
    }
    if let Some(traffic) = client.machine_traffic(&app, &machine.id).await? {
        printer.facts("Traffic", &traffic_facts(&traffic))?;
    }
    let events = client.events(&app, &machine.id, EVENTS).await?;
    let rows: Vec<_> = events.iter().map(event_row).collect();
    let headers = ["State", "Event", "Source", "Timestamp", "Info"];
    printer.table("Event Logs", &headers, &rows)?;
    Ok(())
}

fn facts(machine: &Machine) -> Vec<(&'static str, String)> {
    let config = cell::config(machine);
    let guest = config.guest.clone().unwrap_or_default();
    let init = config.init.clone().unwrap_or_default();
    let words = |words: Option<Vec<String>>| json!(words.unwrap_or_default()).to_string();
    let mut facts = vec![
        ("ID", machine.id.to_string()),
        ("Instance ID", machine.instance_id.to_string()),
        ("State", machine.state.to_string()),
        ("Image", cell::full_image(&machine.image_ref)),
        ("Name", machine.name.clone()),
        ("Private IP", machine.private_ip.clone()),
        ("Region", machine.region.to_string()),
        ("Process Group", process_group(&config)),
        ("CPU Kind", guest.cpu_kind.clone().unwrap_or_default()),
        ("vCPUs", guest.cpus.unwrap_or(1).to_string()),
        ("Memory", format!("{} MB", guest.memory_mb.unwrap_or(256))),
        ("Created", machine.created_at.clone()),
        ("Updated", machine.updated_at.clone()),
        ("Entrypoint", words(init.entrypoint)),
        ("Command", words(init.cmd)),
    ];
    if let Some(hold) = &machine.hold {
        let reason = hold.reason.as_ref().map(|reason| format!(" ({reason})"));
        facts.push(("Hold", format!("until {}{}", hold.until, reason.unwrap_or_default())));
    }
    if let Some(isolation) = &machine.isolation {
        facts.push(("Isolation", isolation.clone()));
    }
    match config.mounts.as_deref() {
        None | Some([]) => {}
        Some([_]) => facts.push(("Volume", volume(&config))),
        Some(_) => facts.push(("Volumes", cell::mounts(&config).join(", "))),
    }
    facts
}

fn traffic_facts(traffic: &MachineTraffic) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("Connections", traffic.connections.to_string()),
        ("Requests", traffic.requests.to_string()),
        ("Waiting", traffic.waiting.to_string()),
        ("In", size::decimal(traffic.bytes_in)),
        ("Out", size::decimal(traffic.bytes_out)),
    ];
    if let Some(TrafficDecision { what, why, at }) = &traffic.decision {
        facts.push(("Last Decision", format!("{what}: {why}")));
        facts.push(("Decided", at.clone()));
    }
    facts
}

fn event_row(event: &MachineEvent) -> Vec<String> {
    let error = event.error();
    let info = error.map_or_else(|| cell::event_info(event), |error| format!("error={error}"));
    vec![
        event.status.clone(),
        event.kind.clone(),
        event.source.clone(),
        time::local(event.timestamp),
        info,
    ]
}
