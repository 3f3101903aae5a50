//! Which machines a command is about: named, or chosen from a menu.

use std::collections::BTreeSet;

use caddis_api::{Machine, MachineId};
use caddis_client::{Client, ListMachines};
use clap::Args;
use futures::{StreamExt as _, stream};

use crate::{
    CliError, complete, globals::AppArgs, prompt, render::machine as cell, report::report,
    session::Session, suggest,
};

/// So many machines are worked on at once.
const AT_ONCE: usize = 20;

const UNASKED: &str = "a machine ID must be specified when not running interactively";

/// One machine.
#[derive(Debug, Args)]
pub struct One {
    /// ID or name of the machine; prompts if omitted.
    #[arg(value_name = "MACHINE", add = complete::machines())]
    pub machine: Option<String>,
    #[command(flatten)]
    pub app: AppArgs,
    /// Choose the machine from a menu.
    #[arg(long, hide = true)]
    pub select: bool,
}

/// Any number of machines.
#[derive(Debug, Args)]
pub struct Many {
    /// IDs or names of machines; prompts if omitted.
    #[arg(value_name = "MACHINE", add = complete::machines())]
    pub machines: Vec<String>,
    #[command(flatten)]
    pub app: AppArgs,
    /// Choose the machines from a menu.
    #[arg(long, hide = true)]
    pub select: bool,
}

impl One {
    /// Finds it, and its app.
    pub async fn find(&self, session: &Session) -> Result<(Client, String, Machine), CliError> {
        one(session, &self.app, self.machine.as_deref(), self.select).await
    }
}

impl Many {
    /// Finds them, and their app.
    pub async fn find(
        &self,
        session: &Session,
    ) -> Result<(Client, String, Vec<Machine>), CliError> {
        let found = self.find_any(session).await?;
        if found.2.is_empty() {
            return Err(CliError::new("no machines selected"));
        }
        Ok(found)
    }

    /// The same; of a menu there may be none.
    pub async fn find_any(
        &self,
        session: &Session,
    ) -> Result<(Client, String, Vec<Machine>), CliError> {
        let client = session.client()?;
        let first = self.machines.first().map(String::as_str);
        let app = app(session, &client, &self.app, first, self.select).await?;
        if self.machines.is_empty() {
            let there = of_app(&client, &app).await?;
            let chosen = prompt::choose_some(
                &session.printer,
                "Select machines:",
                &options(&there),
                UNASKED,
            )
            .await?;
            let machines = there.into_iter().enumerate().filter(|(at, _)| chosen.contains(at));
            return Ok((client, app, machines.map(|(_, machine)| machine).collect()));
        }
        let (mut machines, mut failures) = (Vec::<Machine>::new(), Vec::new());
        for name in &self.machines {
            match get(&client, &app, name).await {
                // Named twice is meant once.
                Ok(machine) if machines.iter().any(|other| other.id == machine.id) => {}
                Ok(machine) => machines.push(machine),
                Err(error) => failures.push(error),
            }
        }
        // A name that is mistyped is told before anything is done.
        together(session, failures)?;
        Ok((client, app, machines))
    }
}

/// One machine, where it is named by something else than [`One`].
pub async fn one(
    session: &Session,
    arguments: &AppArgs,
    name: Option<&str>,
    select: bool,
) -> Result<(Client, String, Machine), CliError> {
    let client = session.client()?;
    let app = app(session, &client, arguments, name, select).await?;
    let machine = match name {
        Some(name) => get(&client, &app, name).await?,
        None => {
            let mut there = of_app(&client, &app).await?;
            let chosen =
                prompt::choose(&session.printer, "Select a machine:", &options(&there), UNASKED)
                    .await?;
            there.swap_remove(chosen)
        }
    };
    Ok((client, app, machine))
}

/// Does something with each machine, with up to twenty at once. One that fails stops none of the
/// others.
pub async fn each(
    session: &Session,
    machines: &[Machine],
    work: impl AsyncFn(&Machine) -> Result<(), CliError>,
) -> Result<(), CliError> {
    if machines.len() > 1 {
        session.printer.leave_out_progress();
    }
    let (work, several) = (&work, machines.len() > 1);
    let named = async |machine: &Machine| match work(machine).await {
        Err(error) if several => Err(error.about(machine.id.as_str())),
        done => done,
    };
    let done = stream::iter(machines.iter().map(named)).buffered(AT_ONCE);
    together(session, done.filter_map(async |done| done.err()).collect().await)
}

/// Several failures as one: all but a single one have been told.
fn together(session: &Session, mut failures: Vec<CliError>) -> Result<(), CliError> {
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => {
            let codes: Vec<_> =
                failures.iter().map(|error| report(error, &session.printer)).collect();
            Err(CliError::ExitCode(codes.into_iter().find(|code| *code != 0).unwrap_or(0)))
        }
    }
}

/// The app that is named, else the one that has the first machine that is named.
async fn app(
    session: &Session,
    client: &Client,
    arguments: &AppArgs,
    machine: Option<&str>,
    select: bool,
) -> Result<String, CliError> {
    if select && machine.is_some() {
        return Err(CliError::new("machine IDs can't be used with --select"));
    }
    let app = arguments.find(&session.environment)?;
    match (app, machine) {
        (Some(app), _) => Ok(app),
        (None, None) if select => {
            Err(CliError::new("an app name must be specified to use --select"))
        }
        (None, None) => Err(CliError::new("a machine ID or an app name is required")),
        (None, Some(machine)) => match machine.parse() {
            Ok(id) => app_of(client, &id).await,
            // Only ids are unique among all apps.
            Err(_) => Err(CliError::with_hint(
                format!("'{machine}' is not a machine ID, and machine names need an app"),
                "Name the app with -a.",
            )),
        },
    }
}

/// Which app a machine is of.
async fn app_of(client: &Client, id: &MachineId) -> Result<String, CliError> {
    let apps = client.list_apps(None).await?;
    let organizations: BTreeSet<_> = apps.into_iter().map(|app| app.organization.slug).collect();
    for organization in organizations {
        let machines = client.list_organization_machines(&organization).await?;
        if let Some(machine) = machines.into_iter().find(|machine| machine.id == *id) {
            return Ok(machine.app_name.to_string());
        }
    }
    Err(CliError::with_hint(
        format!("machine ID {id} was not found in any app"),
        "'caddis apps list' and 'caddis machine list -a APP' show what exists.",
    ))
}

/// The machine of this id or name.
pub async fn get(client: &Client, app: &str, name: &str) -> Result<Machine, CliError> {
    if let Ok(id) = name.parse::<MachineId>() {
        match client.get_machine(app, &id).await {
            Ok(machine) => return Ok(machine),
            Err(error)
                if error.is_not_found() && error.to_string().contains("machine not found") => {}
            Err(error) => return Err(CliError::attempted("could not get machine ID", error)),
        }
    }
    let mut there = client.list_machines(app, &ListMachines::default()).await?;
    if let Some(at) = there.iter().position(|machine| machine.name == name) {
        return Ok(there.swap_remove(at));
    }
    let unknown = format!("machine ID {name} was not found in app '{app}'");
    let names = there.iter().flat_map(|machine| [machine.id.as_str(), machine.name.as_str()]);
    Err(match suggest::hint(name, names) {
        Some(hint) => CliError::with_hint(unknown, hint),
        None => CliError::new(unknown),
    })
}

/// Refuses a container, of which machines have none yet.
pub fn no_container(container: Option<&str>) -> Result<(), CliError> {
    match container.filter(|container| !container.is_empty()) {
        Some(container) => {
            Err(CliError::new(format!("the machine has no container named '{container}'")))
        }
        None => Ok(()),
    }
}

/// Refuses a machine that nothing can be done with right now.
pub fn reachable(machine: &Machine) -> Result<(), CliError> {
    match machine.host_status.as_str() {
        "ok" | "" => Ok(()),
        // Its host answers; it is the machine that needs something done.
        _ if machine.host_status_reason.is_some() => Ok(()),
        _ => Err(CliError::new("the machine is on an unreachable host, try again later")),
    }
}

/// All machines of an app, of which there must be one at least.
async fn of_app(client: &Client, app: &str) -> Result<Vec<Machine>, CliError> {
    let mut machines = client.list_machines(app, &ListMachines::default()).await?;
    if machines.is_empty() {
        return Err(CliError::new(format!("the app {app} has no machines")));
    }
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(machines)
}

/// Machines as a menu shows them.
pub fn options(machines: &[Machine]) -> Vec<String> {
    let option = |machine: &Machine| {
        let mut text = format!(
            "{} {} ({}, region {}",
            machine.id, machine.name, machine.state, machine.region
        );
        if let Some(group) = cell::metadata(machine, "fly_process_group") {
            text.push_str(&format!(", process group '{group}'"));
        }
        if let Some(role) = cell::role(machine) {
            text.push_str(&format!(", role '{role}'"));
        }
        text + ")"
    };
    machines.iter().map(option).collect()
}
