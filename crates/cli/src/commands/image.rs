//! `caddis image`.

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

pub mod import;
mod list;
mod remove;

/// `caddis image …`.
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Import an image from an archive.
    Import(import::Import),
    /// List images on the server.
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Remove unused images.
    #[command(name = "rm", visible_aliases = ["remove", "delete", "destroy"])]
    Remove(remove::Remove),
}

pub async fn run(image: Image, session: &Session) -> Result<(), CliError> {
    match image.command {
        ImageCommand::Import(import) => import::run(import, session).await,
        ImageCommand::List(list) => list::run(list, session).await,
        ImageCommand::Remove(remove) => remove::run(remove, session).await,
    }
}
