//! `caddis volumes snapshots list`.

use caddis_api::volume::VolumeSnapshot;
use clap::Args;
use jiff::Timestamp;

use crate::{
    CliError,
    render::{size, time},
    session::Session,
    volumes::{self, Which},
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

/// Bytes that they take together: what they share counts once, where each says what it added.
fn total(snapshots: &[VolumeSnapshot]) -> u64 {
    snapshots.iter().map(|snapshot| snapshot.added_size.unwrap_or(snapshot.size)).sum()
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
    printer.out(format_args!("\nTotal stored size: {}", size::binary(total(&snapshots))))?;
    volumes::tell_of_troubles(session, &snapshots)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_snapshots_share_counts_once_where_they_say_what_they_added() {
        let snapshot = |size: u64, added: Option<u64>| -> VolumeSnapshot {
            let told = json!({
                "id": "vs_1", "size": size, "added_size": added, "volume_size": 1 << 30,
                "digest": "", "created_at": "", "status": "created", "retention_days": 5,
            });
            serde_json::from_value(told).unwrap()
        };
        assert_eq!(total(&[snapshot(100, Some(100)), snapshot(110, Some(10))]), 110);
        let of_an_earlier_release = snapshot(70, None);
        assert_eq!(total(&[of_an_earlier_release, snapshot(80, Some(10))]), 80);
        assert_eq!(total(&[]), 0);
    }
}
