//! Volumes that are filled from another one or a snapshot after they are there.

use std::time::Duration;

use caddis_api::{Volume, volume::VolumeState};
use caddis_client::Client;
use clap::Args;
use tokio::time::Instant;

use super::{LOOK_INTERVAL, TIMEOUT, Unfinished, extent, failed, get};
use crate::{CliError, durations::whole_seconds, progress::Progress, session::Session};

/// Whether a new volume is waited for until it is filled.
#[derive(Debug, Args)]
pub struct WaitFlags {
    /// Wait until it has all of its contents; machines can use it before.
    #[arg(long)]
    wait: bool,
    /// Seconds to wait for them.
    #[arg(
        long,
        default_value_t = 3600,
        value_name = "SECONDS",
        value_parser = whole_seconds,
        requires = "wait"
    )]
    wait_timeout: u64,
}

impl WaitFlags {
    /// Waits for a new volume if that is wanted; otherwise says what goes on.
    pub async fn settle(
        &self,
        session: &Session,
        client: &Client,
        app: &str,
        volume: Volume,
    ) -> Result<Volume, CliError> {
        if self.wait {
            return until_filled(session, client, app, volume, self.wait_timeout).await;
        }
        if volume.state == VolumeState::Hydrating {
            let id = &volume.id;
            session.printer.note(format_args!(
                "Volume {id} is still being filled, and can be used meanwhile; 'caddis volumes \
                 show {id} -a {app}' tells how far it is, --wait waits for it."
            ))?;
        }
        Ok(volume)
    }
}

async fn until_filled(
    session: &Session,
    client: &Client,
    app: &str,
    mut volume: Volume,
    seconds: u64,
) -> Result<Volume, CliError> {
    let (printer, id) = (&session.printer, volume.id.clone());
    let mut unfinished = Unfinished { printer, app, volume: &id, doing: "filled", over: false };
    let begun = Instant::now();
    let (mut progress, mut told) = (None, None);
    while volume.state == VolumeState::Hydrating {
        let trouble = volume.operation.as_ref().and_then(|operation| operation.error.clone());
        if let Some(why) = trouble.as_ref().filter(|_| trouble != told) {
            printer.note(format_args!("Volume {id} is {}: {why}", volume.state.as_str()))?;
            told = trouble.clone();
        }
        if begun.elapsed() >= Duration::from_secs(seconds) {
            let text = format!("timed out after {seconds} s waiting for volume {id}");
            return Err(CliError::DeadlineExceeded(text));
        }
        if begun.elapsed() >= TIMEOUT {
            let (done, total) = extent(volume.operation.as_ref());
            let progress = progress.get_or_insert_with(|| Progress::new(printer));
            progress.show("fill_volume", done, total);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        volume = get(client, app, id.as_str()).await?;
    }
    unfinished.over = true;
    if volume.state == VolumeState::Failed { Err(failed(app, volume)) } else { Ok(volume) }
}
