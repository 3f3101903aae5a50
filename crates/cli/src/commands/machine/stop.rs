//! `caddis machine stop`.

use caddis_api::{MachineState, requests::StopRequest};
use clap::Args;

use super::{
    arguments::{Unasked, seconds, signal},
    choice,
};
use crate::{CliError, durations::duration, session::Session, waiting};

/// `caddis machine stop`.
#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    which: choice::Many,
    #[command(flatten)]
    _unasked: Unasked,
    /// Signal to send first [default: the configuration's or the image's, else SIGINT].
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds to wait before SIGKILL.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Wait up to this long for it to stop, e.g. 60s or 2m; 0 to not wait.
    #[arg(short, long, value_name = "DURATION", default_value = "7m")]
    wait_timeout: String,
}

/// Stops machines.
pub async fn run(stop: Stop, session: &Session) -> Result<(), CliError> {
    let patience = duration(&stop.wait_timeout)?;
    let request = StopRequest {
        signal: stop.signal.as_deref().map(signal).transpose()?,
        timeout: seconds(stop.timeout),
    };
    let (client, app, machines) = stop.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        session.printer.out(format_args!("Sending kill signal to machine {id}..."))?;
        let nonce = session.lease(&client, &app, machine).await?;
        let stopped = client.stop_machine(&app, id, &request, Some(&nonce)).await;
        stopped.map_err(|e| CliError::attempted(format!("could not stop machine {id}"), e))?;
        if patience.is_zero() {
            return Ok(session.printer.out(format_args!("{id} is being stopped"))?);
        }
        session.release_lease(id).await;
        // One that goes with its program is stopped for an instant only.
        let ends = ("stop", [MachineState::Stopped, MachineState::Destroyed].as_slice());
        let state = waiting::until(&session.printer, &client, &app, id, ends, patience).await?;
        let gone = if state == MachineState::Destroyed { " and destroyed" } else { "" };
        session.printer.out(format_args!("{id} has been successfully stopped{gone}"))?;
        Ok(())
    })
    .await
}
