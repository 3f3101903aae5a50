//! Which machines a command is about.

use caddis_api::{Machine, MachineId};
use caddis_client::{Client, ListMachines};

use crate::{CliError, prompt, session::Session};

/// The machine of this id.
pub async fn get(client: &Client, app: &str, id: &str) -> Result<Machine, CliError> {
    let unknown = || CliError::new(format!("machine ID {id} was not found in app '{app}'"));
    let parsed = id.parse::<MachineId>().map_err(|_| unknown())?;
    client.get_machine(app, &parsed).await.map_err(|error| {
        if error.is_not_found() && error.to_string().contains("machine not found") {
            unknown()
        } else {
            CliError::attempted("could not get machine", error)
        }
    })
}

/// Refuses a machine that nothing can be done with right now.
pub fn reachable(machine: &Machine) -> Result<(), CliError> {
    match machine.host_status.as_str() {
        "ok" | "" => Ok(()),
        _ => Err(CliError::new("the machine is on an unreachable host, try again later")),
    }
}

/// The machine named, or one chosen from a menu.
pub async fn one(session: &Session, client: &Client, app: &str, id: Option<&str>) -> Result<Machine, CliError> {
    match id {
        Some(id) => get(client, app, id).await,
        None => choose(session, client, app).await,
    }
}

/// The machines named, or one chosen from a menu.
pub async fn some(session: &Session, client: &Client, app: &str, ids: &[String]) -> Result<Vec<Machine>, CliError> {
    if ids.is_empty() {
        return Ok(vec![choose(session, client, app).await?]);
    }
    let mut machines = Vec::new();
    for id in ids {
        machines.push(get(client, app, id).await?);
    }
    Ok(machines)
}

async fn choose(session: &Session, client: &Client, app: &str) -> Result<Machine, CliError> {
    let mut machines = client.list_machines(app, &ListMachines::default()).await?;
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    if machines.is_empty() {
        return Err(CliError::new(format!("the app {app} has no machines")));
    }
    let options: Vec<_> = machines
        .iter()
        .map(|machine| format!("{} {} ({}, region {})", machine.id, machine.name, machine.state, machine.region))
        .collect();
    let unasked = "a machine ID must be specified when not running interactively";
    let chosen = prompt::choose(&session.printer, "Select a machine:", &options, unasked).await?;
    Ok(machines.swap_remove(chosen))
}
