//! `caddis volumes snapshots delete`.

use clap::Args;

use crate::{CliError, complete, globals::AppArgs, prompt, session::Session};

/// `caddis volumes snapshots delete`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis volumes snapshots delete vol_9vw681egy1jj5xm4 \
                  vs_Ql8xbllZOYDSDgo2D7NY -a hello")]
pub struct Delete {
    /// ID of the volume, which may be gone.
    #[arg(value_name = "VOLUME", add = complete::volumes())]
    volume: String,
    /// IDs of the snapshots.
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    /// Don't ask for confirmation.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
    /// Print the deleted ones as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(delete: Delete, session: &Session) -> Result<(), CliError> {
    let (app, client, printer) = (session.app(&delete.app)?, session.client()?, &session.printer);
    let volume = &delete.volume;
    let mut snapshots = Vec::new();
    // One that is mistyped is told before any other is gone.
    for id in &delete.snapshots {
        let snapshot = client.get_volume_snapshot(&app, volume, id).await;
        snapshots.push(
            snapshot
                .map_err(|error| CliError::attempted("could not get snapshot", error).about(id))?,
        );
    }
    for snapshot in &snapshots {
        let id = snapshot.id.as_str();
        if !delete.yes {
            printer.note(printer.paint_error("Deleting a snapshot is not reversible."))?;
            let question = format!(
                "Are you sure you want to delete snapshot {id} of {}?",
                snapshot.created_at
            );
            prompt::confirm(printer, &question, prompt::NO_YES).await?;
        }
        let deleted = client.delete_volume_snapshot(&app, volume, id).await;
        deleted
            .map_err(|error| CliError::attempted("failed to delete snapshot", error).about(id))?;
        if !delete.json {
            printer.out(format_args!("Deleted snapshot {id} of volume {volume}"))?;
        }
    }
    if delete.json {
        printer.json(&snapshots)?;
    }
    Ok(())
}
