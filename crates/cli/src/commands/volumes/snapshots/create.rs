//! `caddis volumes snapshots create`.

use std::time::Duration;

use caddis_api::volume::{SnapshotStatus, VolumeSnapshot};
use caddis_client::Client;
use clap::Args;
use tokio::time::Instant;

use crate::{
    CliError, Printer,
    durations::whole_seconds,
    progress::Progress,
    session::Session,
    volumes::{LOOK_INTERVAL, TIMEOUT, Which, extent},
};

/// `caddis volumes snapshots create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis volumes snapshots create vol_9vw681egy1jj5xm4 -a hello\n  \
                  caddis volumes snapshots create vol_9vw681egy1jj5xm4 -a hello --wait"
)]
pub struct Create {
    #[command(flatten)]
    which: Which,
    /// Wait until the snapshot is there.
    #[arg(long)]
    wait: bool,
    /// Seconds to wait for it.
    #[arg(
        long,
        default_value_t = 3600,
        value_name = "SECONDS",
        value_parser = whole_seconds,
        requires = "wait"
    )]
    wait_timeout: u64,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(create: Create, session: &Session) -> Result<(), CliError> {
    let (client, app, volume) = create.which.find(session).await?;
    let asked = client.create_volume_snapshot(&app, &volume).await;
    let mut snapshot = asked.map_err(|error| {
        CliError::attempted(format!("failed to snapshot volume {volume}"), error)
    })?;
    let printer = &session.printer;
    if !create.json {
        printer.out(format_args!("Scheduled to snapshot volume {volume}"))?;
    }
    if create.wait {
        let budget = Duration::from_secs(create.wait_timeout);
        let mut unfinished =
            Unfinished { printer, app: &app, volume: &volume, snapshot: &snapshot, over: false };
        let taken = until_taken(&unfinished, &client, budget).await;
        // Of one that failed there is nothing more to be said.
        unfinished.over = matches!(taken, Ok(_) | Err(CliError::Failed { .. }));
        drop(unfinished);
        snapshot = taken?;
    }
    if create.json {
        return Ok(printer.json(&snapshot)?);
    }
    let (id, status) = (&snapshot.id, snapshot.status.as_str());
    match create.wait {
        true => Ok(printer.out(format_args!("Snapshot {id} is {status}"))?),
        false => Ok(printer.note(format_args!(
            "Snapshot {id} is {status}; 'caddis volumes snapshots list {volume} -a {app}' shows it."
        ))?),
    }
}

/// A snapshot that is waited for. Says that it will be there when the wait for it is broken off.
struct Unfinished<'a> {
    printer: &'a Printer,
    app: &'a str,
    volume: &'a str,
    snapshot: &'a VolumeSnapshot,
    over: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let (id, volume, app) = (&self.snapshot.id, self.volume, self.app);
        if !self.over {
            // Nobody may be there to read it.
            let _ = self.printer.note(format_args!(
                "Snapshot {id} is still to be taken; 'caddis volumes snapshots list {volume} -a \
                 {app}' shows it."
            ));
        }
    }
}

async fn until_taken(
    wanted: &Unfinished<'_>,
    client: &Client,
    budget: Duration,
) -> Result<VolumeSnapshot, CliError> {
    let Unfinished { printer, app, volume, snapshot, .. } = *wanted;
    let id = snapshot.id.as_str();
    let begun = Instant::now();
    let (mut progress, mut reason) = (None, None);
    loop {
        let now = client.get_volume_snapshot(app, volume, id).await?;
        let error = now.operation.as_ref().and_then(|operation| operation.error.clone());
        match now.status {
            SnapshotStatus::Created => return Ok(now),
            SnapshotStatus::Failed => {
                let error = error.unwrap_or_else(|| "the server's log says why".to_owned());
                return Err(CliError::new(format!("snapshot {id} could not be taken: {error}")));
            }
            SnapshotStatus::Waiting | SnapshotStatus::Running => {}
        }
        if error.is_some() && error != reason {
            let why = error.as_deref().unwrap_or_default();
            printer.note(format_args!("Snapshot {id} is {}: {why}", now.status.as_str()))?;
            reason = error;
        }
        if begun.elapsed() >= budget {
            return Err(CliError::DeadlineExceeded(format!(
                "timed out after {} s waiting for snapshot {id}",
                budget.as_secs()
            )));
        }
        if begun.elapsed() >= TIMEOUT {
            let (done, total) = extent(now.operation.as_ref());
            progress.get_or_insert_with(|| Progress::new(printer)).show(
                "take_snapshot",
                done,
                total,
            );
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
