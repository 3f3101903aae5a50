//! `caddis volumes undelete`.

use caddis_api::volume::VolumeState;
use clap::Args;

use crate::{
    CliError,
    session::Session,
    volumes::{self, Which},
};

/// `caddis volumes undelete`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis volumes list -a hello --all\n  caddis volumes undelete \
                  vol_9vw681egy1jj5xm4 -a hello"
)]
pub struct Undelete {
    #[command(flatten)]
    which: Which,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(undelete: Undelete, session: &Session) -> Result<(), CliError> {
    let (client, app, volume) = undelete
        .which
        .find_where(session, |volume| volume.state == VolumeState::PendingDestroy)
        .await?;
    let undeleted = client.undelete_volume(&app, &volume).await;
    let volume = undeleted.map_err(|error| {
        CliError::attempted(format!("failed to undelete volume {volume}"), error)
    })?;
    if undelete.json {
        return Ok(session.printer.json(&volume)?);
    }
    volumes::print(session, &app, &volume)
}
