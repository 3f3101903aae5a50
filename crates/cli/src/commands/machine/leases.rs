//! `caddis machine leases`.

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

mod clear;
mod view;

/// `caddis machine leases …`.
#[derive(Debug, Args)]
pub struct Leases {
    #[command(subcommand)]
    command: LeasesCommand,
}

#[derive(Debug, Subcommand)]
enum LeasesCommand {
    /// Show the leases of machines.
    View(view::View),
    /// Clear leases, whoever holds them.
    Clear(clear::Clear),
}

pub async fn run(leases: Leases, session: &Session) -> Result<(), CliError> {
    match leases.command {
        LeasesCommand::View(view) => view::run(view, session).await,
        LeasesCommand::Clear(clear) => clear::run(clear, session).await,
    }
}
