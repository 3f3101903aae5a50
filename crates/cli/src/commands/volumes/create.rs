//! `caddis volumes create`.

use caddis_api::volume::{CreateVolumeRequest, SNAPSHOT_RETENTION};
use clap::{ArgAction, Args};

use crate::{
    CliError,
    globals::AppArgs,
    prompt,
    session::Session,
    spec::VmFlags,
    volumes::{self, WaitFlags, ZoneFlags, compute, gib},
};

/// Most volumes of one command: a slip beyond it would take a host's space for volumes.
const MAX_COUNT: u32 = 100;

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
    /// What is on it: ext4, or raw for a block device [default: ext4, or that of the snapshot].
    #[arg(long, value_name = "TYPE")]
    fs_type: Option<String>,
    /// Number of volumes, at most 100: each has its whole size reserved on a host.
    #[arg(
        short = 'n',
        long,
        value_name = "COUNT",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    count: u32,
    #[command(flatten)]
    wait: WaitFlags,
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
    if create.count > MAX_COUNT {
        return Err(CliError::new(format!(
            "invalid count, at most {MAX_COUNT}: each volume has its whole size reserved on a \
             host; for more, repeat the command"
        )));
    }
    // The server takes 0 for what is not given.
    if create.snapshot_retention == 0 {
        let (least, most) = SNAPSHOT_RETENTION.into_inner();
        return Err(CliError::new(format!(
            "invalid snapshot retention, must be between {least} and {most} days"
        )));
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
    let mut request = CreateVolumeRequest {
        name: create.name,
        region: create.region,
        size_gb,
        // One from a snapshot is as that was; the server refuses what contradicts that.
        encrypted: (create.snapshot_id.is_none() || create.no_encryption)
            .then_some(!create.no_encryption),
        require_unique_zone: create.zone.require_unique_zone,
        unique_zone_app_wide: create.zone.app_wide(),
        snapshot_retention: Some(create.snapshot_retention),
        auto_backup_enabled: Some(create.scheduled_snapshots),
        fstype: create.fs_type,
        snapshot_id: create.snapshot_id,
        compute,
        // The first is refused where there is no room for all.
        count: Some(create.count).filter(|count| *count > 1),
        ..CreateVolumeRequest::default()
    };
    let (mut made, mut failed) = (Vec::new(), None);
    while failed.is_none() && made.len() < create.count as usize {
        if create.count > 1 {
            let number = made.len() + 1;
            printer.note(format_args!("Creating volume {number} of {}...", create.count))?;
        }
        let volume = volumes::make(session, &client, &app, &request).await;
        request.count = None;
        let volume = match volume {
            Ok(volume) => create.wait.settle(session, &client, &app, volume).await,
            failed => failed,
        };
        match volume {
            Ok(volume) => {
                if !create.json {
                    volumes::print(session, &app, &volume)?;
                }
                made.push(volume);
            }
            Err(error) => failed = Some(error),
        }
    }
    if failed.is_some() && !made.is_empty() {
        let (made, count) = (made.len(), create.count);
        printer.note(format_args!("{made} of {count} volumes were created and remain."))?;
    }
    // Those that were made before one failed are there.
    match made.as_slice() {
        [one] if create.json && create.count == 1 => printer.json(one)?,
        all if create.json && !all.is_empty() => printer.json(all)?,
        _ => {}
    }
    failed.map_or(Ok(()), Err)
}
