//! `caddis platform`.

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

mod regions;
mod status;
mod vm_sizes;

/// `caddis platform …`.
#[derive(Debug, Args)]
pub struct Platform {
    #[command(subcommand)]
    command: PlatformCommand,
}

#[derive(Debug, Args)]
struct Format {
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum PlatformCommand {
    /// List regions.
    #[command(after_help = "Example:\n  caddis platform regions --json")]
    Regions(Format),
    /// List named machine sizes.
    #[command(after_help = "Example:\n  caddis platform vm-sizes --json")]
    VmSizes(Format),
    /// Show server health and free capacity of hosts; exits with 1 if unhealthy.
    #[command(after_help = "Example:\n  caddis platform status --json")]
    Status(Format),
}

pub async fn run(platform: Platform, session: &Session) -> Result<(), CliError> {
    match platform.command {
        PlatformCommand::Regions(format) => regions::run(format.json, session).await,
        PlatformCommand::VmSizes(format) => vm_sizes::run(format.json, session),
        PlatformCommand::Status(format) => status::run(format.json, session).await,
    }
}
