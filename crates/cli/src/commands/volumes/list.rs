//! `caddis volumes list`.

use caddis_api::Volume;
use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use crate::{CliError, globals::AppArgs, render::time, session::Session};

/// `caddis volumes list`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis volumes list -a hello\n  caddis volumes list -a hello --all \
                  --json"
)]
pub struct List {
    #[command(flatten)]
    app: AppArgs,
    /// Include deleted volumes.
    #[arg(long)]
    all: bool,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(list: List, session: &Session) -> Result<(), CliError> {
    let (app, client, printer) = (session.app(&list.app)?, session.client()?, &session.printer);
    if list.json {
        let mut volumes = client.list_volumes_json(&app).await?;
        let is_deleted = |volume: &Value| {
            volume["state"].as_str().is_some_and(|state| state.contains("destroy"))
        };
        volumes.retain(|volume| list.all || !is_deleted(volume));
        return Ok(printer.json(&volumes)?);
    }
    let mut volumes = client.list_volumes(&app).await?;
    volumes.retain(|volume| list.all || !volume.state.is_deleted());
    let now = Timestamp::now();
    let rows: Vec<_> = volumes.iter().map(|volume| row(volume, now)).collect();
    let headers = [
        "ID",
        "State",
        "Name",
        "Size",
        "Region",
        "Zone",
        "Encrypted",
        "Attached VM",
        "Created At",
        "Last Snapshot",
    ];
    printer.table("", &headers, &rows)?;
    if volumes.iter().any(is_unreachable) {
        printer.out("* These volumes' hosts could not be reached.")?;
    }
    Ok(())
}

fn is_unreachable(volume: &Volume) -> bool {
    volume.host_status == "unreachable"
}

fn row(volume: &Volume, now: Timestamp) -> Vec<String> {
    let mark = if is_unreachable(volume) { "*" } else { "" };
    vec![
        format!("{}{mark}", volume.id),
        volume.state.as_str().to_owned(),
        volume.name.clone(),
        format!("{}GB", volume.size_gb),
        volume.region.to_string(),
        volume.zone.clone(),
        volume.encrypted.to_string(),
        volume.attached_machine_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        time::relative(&volume.created_at, now),
        volume.last_snapshot_at.as_ref().map(|at| time::relative(at, now)).unwrap_or_default(),
    ]
}
