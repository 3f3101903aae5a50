//! `caddis volumes fork`.

use caddis_api::volume::CreateVolumeRequest;
use clap::Args;

use crate::{
    CliError,
    session::Session,
    spec::VmFlags,
    volumes::{self, Which, ZoneFlags, compute},
};

/// `caddis volumes fork`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis volumes fork vol_9vw681egy1jj5xm4 -a hello\n  caddis volumes \
                  fork vol_9vw681egy1jj5xm4 -a hello --name copy"
)]
pub struct Fork {
    #[command(flatten)]
    which: Which,
    /// Name of the copy [default: the source's].
    #[arg(short, long)]
    name: Option<String>,
    /// Region of the copy [default: the source's, where it has to be].
    #[arg(short, long)]
    region: Option<String>,
    #[command(flatten)]
    zone: ZoneFlags,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    vm: VmFlags,
}

pub async fn run(fork: Fork, session: &Session) -> Result<(), CliError> {
    let compute = compute(&fork.vm)?;
    let (client, app, source) = fork.which.find(session).await?;
    let source = client.get_volume(&app, &source).await;
    let source =
        source.map_err(|error| CliError::attempted("failed to get volume to fork", error))?;
    let request = CreateVolumeRequest {
        name: fork.name.unwrap_or(source.name),
        region: Some(fork.region.unwrap_or_else(|| source.region.to_string())),
        require_unique_zone: fork.zone.require_unique_zone,
        unique_zone_app_wide: fork.zone.app_wide(),
        source_volume_id: Some(source.id.to_string()),
        compute,
        ..CreateVolumeRequest::default()
    };
    let volume = volumes::make(session, &client, &app, &request).await?;
    if fork.json {
        return Ok(session.printer.json(&volume)?);
    }
    volumes::print(session, &app, &volume)
}
