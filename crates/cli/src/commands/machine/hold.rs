//! `caddis machine hold`.

use caddis_api::hold::HoldRequest;
use clap::Args;

use super::choice;
use crate::{CliError, durations::duration, session::Session};

/// `caddis machine hold`.
#[derive(Debug, Args)]
pub struct Hold {
    #[command(flatten)]
    which: choice::Many,
    /// How long from now, e.g. 10m or 2h; at most 24h.
    #[arg(long = "for", value_name = "DURATION", conflicts_with = "release")]
    time: Option<String>,
    /// Text that is shown with the hold.
    #[arg(long, value_name = "TEXT", conflicts_with = "release")]
    reason: Option<String>,
    /// End the hold.
    #[arg(long)]
    release: bool,
}

/// Holds machines, or lets them go.
pub async fn run(hold: Hold, session: &Session) -> Result<(), CliError> {
    let time = hold.time.as_deref().map(duration).transpose()?;
    if time.is_none() && !hold.release {
        let hint = "Say for how long with --for, e.g. --for 10m, or end a hold with --release.";
        return Err(CliError::with_hint("no time given", hint));
    }
    let (client, app, machines) = hold.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        let Some(time) = time else {
            let released = client.release_hold(&app, id).await;
            let failed = |e| CliError::attempted(format!("could not release machine {id}"), e);
            released.map_err(failed)?;
            return Ok(session.printer.out(format_args!("{id} is no longer held"))?);
        };
        let ttl = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        let request = HoldRequest { ttl: Some(ttl), reason: hold.reason.clone() };
        let held = client.hold_machine(&app, id, &request).await;
        let held =
            held.map_err(|e| CliError::attempted(format!("could not hold machine {id}"), e))?;
        Ok(session.printer.out(format_args!("{id} is held until {}", held.until))?)
    })
    .await
}
