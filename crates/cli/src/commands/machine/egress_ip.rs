//! `caddis machine egress-ip`: says that there are none yet.

use clap::{Args, Subcommand};

use crate::{CliError, globals::AppArgs};

/// `caddis machine egress-ip …`.
#[derive(Debug, Args)]
pub struct EgressIp {
    #[command(subcommand)]
    command: EgressIpCommand,
}

#[derive(Debug, Subcommand)]
enum EgressIpCommand {
    /// Give a machine addresses that its connections come from. Not available yet.
    #[command(hide = true)]
    Allocate(Machine),
    /// List them. Not available yet.
    List(App),
    /// Take them away. Not available yet.
    Release(Machine),
    /// Make them those of the app. Not available yet.
    Promote(Machine),
}

#[derive(Debug, Args)]
struct App {
    #[command(flatten)]
    app: AppArgs,
}

#[derive(Debug, Args)]
struct Machine {
    /// Machine id.
    id: String,
    #[command(flatten)]
    app: AppArgs,
    /// Don't ask.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
}

/// Refuses all of it.
pub fn run(egress: &EgressIp) -> Result<(), CliError> {
    let (EgressIpCommand::Allocate(_)
    | EgressIpCommand::List(_)
    | EgressIpCommand::Release(_)
    | EgressIpCommand::Promote(_)) = &egress.command;
    Err(CliError::with_hint(
        "egress addresses are not available yet",
        "Connections of machines come from the address of their host.",
    ))
}
