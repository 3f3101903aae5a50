//! `caddis volumes show`.

use clap::Args;

use crate::{
    CliError,
    session::Session,
    volumes::{self, Which},
};

/// `caddis volumes show`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis volumes show vol_9vw681egy1jj5xm4 -a hello\n  caddis volumes \
                  show vol_9vw681egy1jj5xm4 -a hello --json"
)]
pub struct Show {
    #[command(flatten)]
    which: Which,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(show: Show, session: &Session) -> Result<(), CliError> {
    let (client, app, volume) = show.which.find(session).await?;
    let volume = volumes::get(&client, &app, &volume).await?;
    if show.json {
        return Ok(session.printer.json(&volume)?);
    }
    volumes::print(session, &app, &volume)?;
    // Its host may not answer; what is known of the volume is shown all the same.
    let snapshots = client.list_volume_snapshots(&app, volume.id.as_str()).await;
    volumes::tell_of_troubles(session, &snapshots.unwrap_or_default())
}
