//! `caddis volumes create`.

use caddis_api::volume::CreateVolumeRequest;
use clap::{ArgAction, Args};

use crate::{
    CliError,
    globals::AppArgs,
    prompt,
    session::Session,
    spec::VmFlags,
    volumes::{self, ZoneFlags, compute, gib},
};

/// `caddis volumes create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis volumes create data -a hello --size 3 --yes\n  caddis \
                  volumes create data -a hello --count 2 --region local\n  caddis volumes create \
                  data -a hello --snapshot-id vs_Ql8xbllZOYDSDgo2D7NY"
)]
pub struct Create {
    /// Name: letters, digits and underscores. Several may have the same.
    name: String,
    #[command(flatten)]
    app: AppArgs,
    /// Region to create the volume in.
    #[arg(short, long, env = "FLY_REGION")]
    region: Option<String>,
    /// Size in GB [default: 1, or that of the snapshot].
    #[arg(short, long, value_name = "GB")]
    size: Option<String>,
    /// Days for which snapshots are kept.
    #[arg(long, value_name = "DAYS", default_value_t = 5)]
    snapshot_retention: u32,
    /// Take a snapshot each day.
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    scheduled_snapshots: bool,
    /// Don't encrypt it on the host. One from a snapshot is as that was.
    #[arg(long)]
    no_encryption: bool,
    #[command(flatten)]
    zone: ZoneFlags,
    /// Fill it from this snapshot, of any volume of the organization.
    #[arg(long, value_name = "ID")]
    snapshot_id: Option<String>,
    /// What is on it: ext4 or raw.
    #[arg(long, value_name = "TYPE", hide = true)]
    fs_type: Option<String>,
    /// Number of volumes.
    #[arg(
        short = 'n',
        long,
        value_name = "COUNT",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    count: u32,
    /// Don't ask for confirmation.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    vm: VmFlags,
}

pub async fn run(create: Create, session: &Session) -> Result<(), CliError> {
    let (app, client, printer) = (session.app(&create.app)?, session.client()?, &session.printer);
    let size_gb = match &create.size {
        Some(text) => Some(gib(text)?),
        // The server takes that of the snapshot.
        None => create.snapshot_id.is_none().then_some(1),
    };
    if size_gb == Some(0) {
        return Err(CliError::new("a volume has at least 1 GB"));
    }
    let compute = compute(&create.vm)?;
    if !create.yes && create.count < 2 {
        let known = client.list_volumes(&app).await?;
        let alike =
            |volume: &caddis_api::Volume| volume.name == create.name && !volume.state.is_deleted();
        if !known.iter().any(alike) {
            let text = "Warning! Every volume is pinned to a specific physical host. You should \
                        create two or more volumes per application to avoid downtime.";
            printer.note(printer.paint_error(text))?;
            let question = "Do you still want to use the volumes feature?";
            prompt::confirm(printer, question, prompt::NO_YES).await?;
        }
    }
    let request = CreateVolumeRequest {
        name: create.name,
        region: create.region,
        size_gb,
        encrypted: Some(!create.no_encryption),
        require_unique_zone: create.zone.require_unique_zone,
        unique_zone_app_wide: create.zone.app_wide(),
        snapshot_retention: Some(create.snapshot_retention),
        auto_backup_enabled: Some(create.scheduled_snapshots),
        fstype: create.fs_type,
        snapshot_id: create.snapshot_id,
        compute,
        ..CreateVolumeRequest::default()
    };
    let (mut made, mut failed) = (Vec::new(), None);
    while failed.is_none() && made.len() < create.count as usize {
        match volumes::make(session, &client, &app, &request).await {
            Ok(volume) => {
                if !create.json {
                    volumes::print(session, &app, &volume)?;
                }
                made.push(volume);
            }
            Err(error) => failed = Some(error),
        }
    }
    // Those that were made before one failed are there.
    match made.as_slice() {
        [one] if create.json && create.count == 1 => printer.json(one)?,
        all if create.json && !all.is_empty() => printer.json(all)?,
        _ => {}
    }
    failed.map_or(Ok(()), Err)
}
