//! `caddis volumes snapshots list`.

use caddis_api::volume::VolumeSnapshot;
use clap::Args;
use jiff::Timestamp;

use crate::{
    CliError,
    render::{size, time},
    session::Session,
    volumes::Which,
};

/// `caddis volumes snapshots list`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  caddis volumes snapshots list vol_9vw681egy1jj5xm4 -a hello --json"
)]
pub struct List {
    #[command(flatten)]
    which: Which,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(list: List, session: &Session) -> Result<(), CliError> {
    let (client, app, volume) = list.which.find_where(session, |_| true).await?;
    let snapshots = client.list_volume_snapshots(&app, &volume).await?;
    let printer = &session.printer;
    if list.json {
        return Ok(printer.json(&snapshots)?);
    }
    if snapshots.is_empty() {
        return Ok(printer.note(format_args!("No snapshots available for volume {volume}"))?);
    }
    let now = Timestamp::now();
    let row = |snapshot: &VolumeSnapshot| {
        vec![
            snapshot.id.to_string(),
            snapshot.status.as_str().to_owned(),
            size::binary(snapshot.size),
            size::binary(snapshot.volume_size),
            time::relative(&snapshot.created_at, now),
            snapshot.retention_days.to_string(),
        ]
    };
    let rows: Vec<_> = snapshots.iter().map(row).collect();
    let headers = ["ID", "Status", "Stored Size", "Vol Size", "Created At", "Retention Days"];
    printer.table("Snapshots", &headers, &rows)?;
    let total = snapshots.iter().map(|snapshot| snapshot.size).sum();
    printer.out(format_args!("\nTotal stored size: {}", size::binary(total)))?;
    for snapshot in &snapshots {
        if let Some(error) = snapshot.operation.as_ref().and_then(|row| row.error.as_ref()) {
            let (id, status) = (&snapshot.id, snapshot.status.as_str());
            printer.note(format_args!("Snapshot {id} is {status}: {error}"))?;
        }
    }
    Ok(())
}
