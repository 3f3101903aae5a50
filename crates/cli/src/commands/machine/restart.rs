//! `caddis machine restart`.

use caddis_client::RestartOptions;
use clap::Args;

use super::{
    arguments::{Unasked, seconds, signal},
    choice, health,
};
use crate::{
    CliError,
    session::Session,
    waiting::{self, Outcome},
};

/// `caddis machine restart`.
#[derive(Debug, Args)]
pub struct Restart {
    #[command(flatten)]
    which: choice::Many,
    #[command(flatten)]
    _unasked: Unasked,
    /// Signal to send first.
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds to wait before SIGKILL.
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
    /// Send SIGKILL at once.
    #[arg(long)]
    force: bool,
    /// Don't wait for health checks.
    #[arg(long)]
    skip_health_checks: bool,
}

/// Restarts machines.
pub async fn run(restart: Restart, session: &Session) -> Result<(), CliError> {
    let signal = restart.signal.as_deref().map(signal).transpose()?;
    let options = RestartOptions { signal, timeout: seconds(restart.time), force: restart.force };
    let (client, app, machines) = restart.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        session.printer.out(format_args!("Restarting machine {id}"))?;
        let nonce = session.lease(&client, &app, machine).await?;
        let restarted = client.restart_machine(&app, id, &options, Some(&nonce)).await;
        restarted.map_err(|e| CliError::attempted(format!("failed to restart machine {id}"), e))?;
        let before = machine.events.iter().flatten().next().map(|event| &event.id);
        let outcome = waiting::until_it_runs(&session.printer, &client, &app, id, before).await?;
        if let Outcome::Done(state) = outcome {
            let text = format!("failed to restart machine {id}: it started, but is now {state}");
            return Err(CliError::with_hint(
                text,
                format!("See 'caddis machine status {id} -a {app}' for how it ended."),
            ));
        }
        if !restart.skip_health_checks {
            let machine = choice::get(&client, &app, id.as_str()).await?;
            health::follow(&session.printer, &client, &app, &machine).await?;
        }
        session.printer.out(format_args!("Machine {id} restarted successfully!"))?;
        Ok(())
    })
    .await
}
