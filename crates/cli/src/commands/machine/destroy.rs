//! `caddis machine destroy`.

use caddis_api::{Machine, MachineState};
use caddis_client::{Client, ListMachines};
use clap::Args;

use super::choice;
use crate::{
    CliError, prompt,
    render::{machine as cell, words},
    session::Session,
    waiting,
};

#[derive(Debug, Args)]
pub struct Destroy {
    #[command(flatten)]
    which: choice::Many,
    /// Destroy the machine even if it is running.
    #[arg(short, long)]
    force: bool,
    /// Destroy all machines of the app with this image, REPOSITORY:TAG; asks for confirmation.
    #[arg(short, long, value_name = "IMAGE", conflicts_with = "machines")]
    image: Option<String>,
    /// Don't ask for confirmation.
    #[arg(short, long, visible_alias = "auto-confirm")]
    yes: bool,
}

/// Destroys machines.
pub async fn run(destroy: Destroy, session: &Session) -> Result<(), CliError> {
    let found = match &destroy.image {
        Some(image) => of_image(&destroy, image, session).await?,
        None => destroy.which.find_any(session).await?,
    };
    let (client, app, machines) = found;
    if machines.is_empty() {
        return Ok(session.printer.out("No machine to destroy, exiting")?);
    }
    choice::each(session, &machines, async |machine| {
        let (id, state) = (&machine.id, machine.state);
        if !destroy.force {
            refuse_running(machine)?;
        }
        let found = format!(
            "machine {id} was found and is currently in {state} state, attempting to destroy..."
        );
        session.printer.out(found)?;
        let nonce = session.lease(&client, &app, machine).await?;
        let destroyed = client.destroy_machine(&app, id, destroy.force, Some(&nonce)).await;
        destroyed.map_err(|e| CliError::attempted(format!("could not destroy machine {id}"), e))?;
        let gone = ("be destroyed", [MachineState::Destroyed].as_slice());
        waiting::until(&session.printer, &client, &app, id, gone, waiting::BUDGET).await?;
        Ok(session.printer.out(format_args!("{id} has been destroyed"))?)
    })
    .await
}

async fn of_image(
    destroy: &Destroy,
    image: &str,
    session: &Session,
) -> Result<(Client, String, Vec<Machine>), CliError> {
    let (app, client) = (session.app(&destroy.which.app)?, session.client()?);
    let mut machines = client.list_machines(&app, &ListMachines::default()).await?;
    let names =
        |machine: &Machine| [cell::image(&machine.image_ref), cell::full_image(&machine.image_ref)];
    machines.retain(|machine| machine.state != MachineState::Destroying);
    machines.retain(|machine| names(machine).iter().any(|name| name == image));
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    if !machines.is_empty() && !destroy.yes {
        let ids: Vec<_> = machines.iter().map(|machine| machine.id.as_str()).collect();
        let count = words::count(ids.len(), "Machine");
        let question = format!("{count} ({}) will be destroyed, continue?", ids.join(", "));
        prompt::confirm(&session.printer, &question, prompt::NO_YES).await?;
    }
    Ok((client, app, machines))
}

fn refuse_running(machine: &Machine) -> Result<(), CliError> {
    let (id, state) = (&machine.id, machine.state);
    match state {
        MachineState::Stopped
        | MachineState::Suspended
        | MachineState::Created
        | MachineState::Failed => Ok(()),
        MachineState::Started => Err(CliError::new(format!(
            "machine {id} currently started, either stop first or use --force flag"
        ))),
        _ => Err(CliError::new(format!(
            "machine {id} is in a {state} state and cannot be destroyed since it is not stopped or \
             suspended, either stop first or use --force flag"
        ))),
    }
}
