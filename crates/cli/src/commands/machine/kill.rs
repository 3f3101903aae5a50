//! `caddis machine kill`.

use caddis_api::{MachineState, Signal};
use clap::Args;

use super::choice;
use crate::{CliError, session::Session};

/// `caddis machine kill`.
#[derive(Debug, Args)]
pub struct Kill {
    #[command(flatten)]
    which: choice::One,
}

/// Kills a machine's program.
pub async fn run(kill: Kill, session: &Session) -> Result<(), CliError> {
    let (client, app, machine) = kill.which.find(session).await?;
    let (id, state) = (&machine.id, machine.state);
    if state == MachineState::Destroyed {
        return Err(CliError::new(format!("machine {id} has already been destroyed")));
    }
    session.printer.out(format_args!(
        "machine {id} was found and is currently in a {state} state, attempting to kill..."
    ))?;
    let killed = client.signal_machine(&app, id, Signal::KILL).await;
    killed.map_err(|e| CliError::attempted(format!("could not kill machine {id}"), e))?;
    session.printer.out("kill signal has been sent")?;
    Ok(())
}
