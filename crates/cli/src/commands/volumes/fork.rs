//! `caddis volumes fork`.

use caddis_api::volume::CreateVolumeRequest;
use clap::Args;

use crate::{
    CliError,
    session::Session,
    spec::VmFlags,
    volumes::{self, WaitFlags, Which, compute},
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
    /// Always an error where it is true: a copy is made on the host of its source.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide = true
    )]
    require_unique_zone: Option<bool>,
    /// Always an error, for the same reason.
    #[arg(long, hide = true)]
    unique_zone_app_wide: bool,
    #[command(flatten)]
    wait: WaitFlags,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    vm: VmFlags,
}

pub async fn run(fork: Fork, session: &Session) -> Result<(), CliError> {
    if fork.require_unique_zone == Some(true) || fork.unique_zone_app_wide {
        return Err(CliError::with_hint(
            "a copy of a volume is made on the host of its source, not in a zone of its own",
            "A volume made from a snapshot ('caddis volumes create --snapshot-id') can be on \
             another host.",
        ));
    }
    let compute = compute(&fork.vm)?;
    let (client, app, source) = fork.which.find(session).await?;
    let source = client.get_volume(&app, &source).await;
    let source =
        source.map_err(|error| CliError::attempted("failed to get volume to fork", error))?;
    let request = CreateVolumeRequest {
        name: fork.name.unwrap_or(source.name),
        region: Some(fork.region.unwrap_or_else(|| source.region.to_string())),
        source_volume_id: Some(source.id.to_string()),
        compute,
        ..CreateVolumeRequest::default()
    };
    let volume = volumes::make(session, &client, &app, &request).await?;
    let volume = fork.wait.settle(session, &client, &app, volume).await?;
    if fork.json {
        return Ok(session.printer.json(&volume)?);
    }
    volumes::print(session, &app, &volume)
}
