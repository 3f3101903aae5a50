//! `caddis status`.

use caddis_api::{Machine, app::App};
use caddis_client::ListMachines;
use clap::Args;
use futures::stream;
use jiff::Timestamp;
use serde_json::json;

use super::machine::watch::{self, Form};
use crate::{
    CliError, Printer,
    globals::AppArgs,
    render::{machine as cell, places, table, time},
    session::Session,
};

/// `caddis status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis status -a hello\n  caddis status -a hello --watch")]
pub struct Status {
    #[command(flatten)]
    app: AppArgs,
    /// Include destroyed machines.
    #[arg(long)]
    all: bool,
    /// Show live updates until q or Ctrl-C; with --json one machine per line.
    #[arg(long, conflicts_with = "all")]
    watch: bool,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(status: Status, session: &Session) -> Result<(), CliError> {
    let (name, client, printer) = (session.app(&status.app)?, session.client()?, &session.printer);
    let app = client.get_app(&name).await?;
    if status.watch {
        let form = Form::of(status.json, session);
        let screen = |machines: &[Machine]| {
            screen(printer, facts(&app, machines, false), &name, sorted(machines.to_vec()))
        };
        return watch::machines(session, &client, &name, form, stream::pending(), screen).await;
    }
    let filter = ListMachines { include_deleted: status.all, ..ListMachines::default() };
    let machines = sorted(client.list_machines(&name, &filter).await?);
    if status.json {
        printer.json(&json!({
            "ID": app.id,
            "Name": app.name,
            "Deployed": app.machine_count > 0,
            "Status": app.status,
            "Hostname": app.urls.as_ref().map_or("", |urls| urls.hostname.as_str()),
            "Version": 0,
            "AppURL": url(&app, &machines),
            "Organization": { "Name": app.organization.name, "Slug": app.organization.slug },
            "PlatformVersion": "machines",
            "Machines": machines,
            "Network": app.network,
        }))?;
        return Ok(());
    }
    Ok(printer.raw_out(&screen(printer, facts(&app, &machines, true), &name, machines))?)
}

fn sorted(mut machines: Vec<Machine>) -> Vec<Machine> {
    machines.sort_by(|a, b| (group(a), &a.id).cmp(&(group(b), &b.id)));
    machines
}

fn screen(
    printer: &Printer,
    facts: Vec<(&str, String)>,
    app: &str,
    machines: Vec<Machine>,
) -> String {
    let facts = table::vertical(printer.screen(), &printer.title("App"), &facts);
    if machines.is_empty() {
        return format!("{facts}No machines are available on this app {app}\n");
    }
    let now = Timestamp::now();
    let rows: Vec<_> = machines.iter().map(|machine| row(machine, now)).collect();
    let headers = ["Process", "ID", "Version", "Region", "State", "Role", "Checks", "Last Updated"];
    facts + &table::horizontal(printer.screen(), &printer.title("Machines"), &headers, &rows)
}

/// The app's own status only where it is as fresh as its machines.
fn facts(app: &App, machines: &[Machine], with_status: bool) -> Vec<(&'static str, String)> {
    let mut images: Vec<_> =
        machines.iter().map(|machine| cell::image(&machine.image_ref)).collect();
    images.sort();
    images.dedup();
    let mut facts = vec![("Name", app.name.to_string()), ("Owner", app.organization.slug.clone())];
    facts.extend(with_status.then(|| ("Status", app.status.clone())));
    facts.extend(url(app, machines).map(|url| ("URL", url)));
    facts.extend([("Network", app.network.to_string()), ("Image", images.join(", "))]);
    facts
}

/// Where a browser finds the app, if one of its machines has a service for that.
fn url(app: &App, machines: &[Machine]) -> Option<String> {
    let configs: Vec<_> = machines.iter().map(cell::config).collect();
    let services = configs.iter().flat_map(|config| config.services.iter().flatten());
    // That of HTTPS comes last.
    places::of_browsers(app, services).pop()
}

fn group(machine: &Machine) -> String {
    cell::metadata(machine, "fly_process_group").unwrap_or_default()
}

fn row(machine: &Machine, now: Timestamp) -> Vec<String> {
    vec![
        group(machine),
        machine.id.to_string(),
        cell::metadata(machine, "fly_release_version")
            .unwrap_or_else(|| machine.version.to_string()),
        machine.region.to_string(),
        machine.state.to_string(),
        cell::role(machine).unwrap_or_default().to_owned(),
        cell::checks_in_words(machine),
        time::relative(&machine.updated_at, now),
    ]
}
