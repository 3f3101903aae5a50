//! `caddis apps`.

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

mod create;
pub mod destroy;
mod list;

/// `caddis apps …`.
#[derive(Debug, Args)]
pub struct Apps {
    #[command(subcommand)]
    command: AppsCommand,
}

#[derive(Debug, Subcommand)]
enum AppsCommand {
    /// Create an app.
    Create(create::Create),
    /// List apps.
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Destroy apps and all their machines.
    #[command(visible_aliases = ["delete", "remove", "rm"])]
    Destroy(destroy::Destroy),
}

pub async fn run(apps: Apps, session: &Session) -> Result<(), CliError> {
    match apps.command {
        AppsCommand::Create(create) => create::run(create, session).await,
        AppsCommand::List(list) => list::run(list, session).await,
        AppsCommand::Destroy(destroy) => destroy::run(destroy, session).await,
    }
}
