//! `caddis wireguard`.

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

mod create;
mod file;
mod list;
mod remove;
mod reset;
mod status;

/// `caddis wireguard …`.
#[derive(Debug, Args)]
pub struct WireGuard {
    #[command(subcommand)]
    command: WireGuardCommand,
}

#[derive(Debug, Subcommand)]
enum WireGuardCommand {
    /// Create a peer, and write the file that its WireGuard takes.
    Create(create::Create),
    /// List peers.
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Remove a peer.
    #[command(visible_alias = "rm")]
    Remove(remove::Remove),
    /// Give a peer a new key, and write its file anew.
    Reset(reset::Reset),
    /// Show whether a peer is connected.
    Status(status::Status),
}

pub async fn run(wireguard: WireGuard, session: &Session) -> Result<(), CliError> {
    match wireguard.command {
        WireGuardCommand::Create(create) => create::run(create, session).await,
        WireGuardCommand::List(list) => list::run(list, session).await,
        WireGuardCommand::Remove(remove) => remove::run(remove, session).await,
        WireGuardCommand::Reset(reset) => reset::run(reset, session).await,
        WireGuardCommand::Status(status) => status::run(status, session).await,
    }
}

/// Which peer of an organisation.
#[derive(Debug, Args)]
struct Which {
    /// Slug of the organization.
    #[arg(value_name = "ORG")]
    org: String,
    /// The peer.
    #[arg(value_name = "NAME")]
    name: String,
    /// Private network [default: the organization's default].
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
}
