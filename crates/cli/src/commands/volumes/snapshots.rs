//! `caddis volumes snapshots`.

mod create;
mod delete;
mod list;

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

/// `caddis volumes snapshots …`.
#[derive(Debug, Args)]
pub struct Snapshots {
    #[command(subcommand)]
    command: SnapshotsCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotsCommand {
    /// List the snapshots of a volume.
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Take a snapshot of a volume.
    Create(create::Create),
    /// Delete snapshots of a volume.
    #[command(visible_aliases = ["destroy", "rm"])]
    Delete(delete::Delete),
}

pub async fn run(snapshots: Snapshots, session: &Session) -> Result<(), CliError> {
    match snapshots.command {
        SnapshotsCommand::List(list) => list::run(list, session).await,
        SnapshotsCommand::Create(create) => create::run(create, session).await,
        SnapshotsCommand::Delete(delete) => delete::run(delete, session).await,
    }
}
