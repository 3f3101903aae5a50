//! `caddis volumes`.

mod create;
mod destroy;
mod extend;
mod fork;
mod list;
mod show;
mod snapshots;
mod undelete;
mod update;

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

/// `caddis volumes …`.
#[derive(Debug, Args)]
pub struct Volumes {
    #[command(subcommand)]
    command: VolumesCommand,
}

#[derive(Debug, Subcommand)]
enum VolumesCommand {
    /// Create volumes.
    Create(Box<create::Create>),
    /// List an app's volumes.
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Show a volume.
    Show(show::Show),
    /// Make a volume larger.
    Extend(extend::Extend),
    /// Change how snapshots of a volume are taken.
    Update(update::Update),
    /// Copy a volume, also while a machine runs with it.
    Fork(Box<fork::Fork>),
    /// Delete volumes; for a day they can be undeleted.
    #[command(visible_aliases = ["delete", "rm"])]
    Destroy(destroy::Destroy),
    /// Take the delete of a volume back.
    Undelete(undelete::Undelete),
    /// List, take and delete snapshots of volumes.
    #[command(visible_aliases = ["snapshot", "snaps"])]
    Snapshots(snapshots::Snapshots),
}

pub async fn run(volumes: Volumes, session: &Session) -> Result<(), CliError> {
    match volumes.command {
        VolumesCommand::Create(create) => create::run(*create, session).await,
        VolumesCommand::List(list) => list::run(list, session).await,
        VolumesCommand::Show(show) => show::run(show, session).await,
        VolumesCommand::Extend(extend) => extend::run(extend, session).await,
        VolumesCommand::Update(update) => update::run(update, session).await,
        VolumesCommand::Fork(fork) => fork::run(*fork, session).await,
        VolumesCommand::Destroy(destroy) => destroy::run(destroy, session).await,
        VolumesCommand::Undelete(undelete) => undelete::run(undelete, session).await,
        VolumesCommand::Snapshots(snapshots) => snapshots::run(snapshots, session).await,
    }
}
