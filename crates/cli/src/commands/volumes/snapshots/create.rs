//! `caddis volumes snapshots create`.

use clap::Args;
use serde_json::json;

use crate::{CliError, session::Session, volumes::Which};

/// `caddis volumes snapshots create`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis volumes snapshots create vol_9vw681egy1jj5xm4 -a hello")]
pub struct Create {
    #[command(flatten)]
    which: Which,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(create: Create, session: &Session) -> Result<(), CliError> {
    let (client, app, volume) = create.which.find(session).await?;
    client.create_volume_snapshot(&app, &volume).await?;
    match create.json {
        true => Ok(session.printer.json(&json!({}))?),
        false => Ok(session.printer.out(format_args!("Scheduled to snapshot volume {volume}"))?),
    }
}
