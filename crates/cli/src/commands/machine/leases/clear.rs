//! `caddis machine leases clear`.

use clap::Args;

use super::view::{failed, no_lease};
use crate::{CliError, commands::machine::choice, session::Session};

/// `caddis machine leases clear`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis machine leases clear 148ed193b95389 -a hello")]
pub struct Clear {
    #[command(flatten)]
    which: choice::Many,
}

pub async fn run(clear: Clear, session: &Session) -> Result<(), CliError> {
    let (client, app, machines) = clear.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        let lease = match client.get_lease(&app, id).await {
            Ok(lease) => lease,
            Err(error) if no_lease(&error) => return Ok(()),
            Err(error) => return Err(failed(id, error)),
        };
        session.printer.out(format_args!("clearing lease for machine {id}"))?;
        match client.release_lease(&app, id, &lease.nonce).await {
            // It has just ended.
            Err(error) if !no_lease(&error) => Err(CliError::attempted(
                format!("could not clear the lease of machine {id}"),
                error,
            )),
            _ => Ok(()),
        }
    })
    .await?;
    session.printer.out("Lease(s) cleared")?;
    Ok(())
}
