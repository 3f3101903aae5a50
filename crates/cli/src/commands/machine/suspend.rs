//! `caddis machine suspend`.

use caddis_api::MachineState;
use caddis_client::WaitFor;
use clap::Args;

use super::{arguments::Unasked, choice};
use crate::{CliError, durations::duration, session::Session, waiting};

/// `caddis machine suspend`.
#[derive(Debug, Args)]
pub struct Suspend {
    #[command(flatten)]
    which: choice::Many,
    #[command(flatten)]
    _unasked: Unasked,
    /// Wait up to this long for it to suspend, e.g. 60s or 2m.
    #[arg(short, long, value_name = "DURATION")]
    wait_timeout: Option<String>,
}

/// Suspends machines.
pub async fn run(suspend: Suspend, session: &Session) -> Result<(), CliError> {
    let patience =
        suspend.wait_timeout.as_deref().map(duration).transpose()?.filter(|time| !time.is_zero());
    let (client, app, machines) = suspend.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        let nonce = session.lease(&client, &app, machine).await?;
        let suspended = client.suspend_machine(&app, id, Some(&nonce)).await;
        suspended.map_err(|e| CliError::attempted(format!("could not suspend machine {id}"), e))?;
        if machine.state == MachineState::Suspended {
            return Ok(session.printer.out(format_args!("{id} is already suspended"))?);
        }
        let Some(patience) = patience else {
            return Ok(session.printer.out(format_args!("{id} is being suspended"))?);
        };
        let condition = WaitFor::States(vec![MachineState::Suspended]);
        waiting::wait(&session.printer, &client, &app, id, &condition, patience).await?;
        session.printer.out(format_args!("{id} has been suspended"))?;
        Ok(())
    })
    .await
}
