//! `caddis volumes update`.

use caddis_api::volume::UpdateVolumeRequest;
use clap::Args;

use crate::{
    CliError,
    session::Session,
    volumes::{self, Which},
};

/// `caddis volumes update`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis volumes update vol_9vw681egy1jj5xm4 -a hello \
                  --snapshot-retention 14")]
pub struct Update {
    #[command(flatten)]
    which: Which,
    /// Days for which new snapshots are kept.
    #[arg(long, value_name = "DAYS")]
    snapshot_retention: Option<u32>,
    /// Take a snapshot each day.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    scheduled_snapshots: Option<bool>,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(update: Update, session: &Session) -> Result<(), CliError> {
    let (client, app, volume) = update.which.find(session).await?;
    let request = UpdateVolumeRequest {
        snapshot_retention: update.snapshot_retention,
        auto_backup_enabled: update.scheduled_snapshots,
    };
    let updated = client.update_volume(&app, &volume, &request).await;
    let volume = updated
        .map_err(|error| CliError::attempted(format!("failed to update volume {volume}"), error))?;
    if update.json {
        return Ok(session.printer.json(&volume)?);
    }
    volumes::print(session, &app, &volume)
}
