//! One file per command.

mod apps;
mod auth;
mod config;
mod context;
mod demo;
mod explain;
mod image;
mod logs;
mod machine;
mod orgs;
mod platform;
mod sftp;
mod ssh;
mod status;
mod target;

use clap::Subcommand;

use crate::{CliError, session::Session};

/// A command that talks to a server.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, list and destroy apps: names that machines live under.
    #[command(visible_alias = "app")]
    Apps(apps::Apps),
    /// Run and manage machines: VMs made from images.
    #[command(visible_aliases = ["machines", "m"])]
    Machine(Box<machine::Machine>),
    /// List organizations: who apps belong to.
    #[command(visible_aliases = ["org", "organizations"])]
    Orgs(orgs::Orgs),
    /// Show what an app's machines write.
    Logs(logs::Logs),
    /// Import, list and remove the images the server holds.
    #[command(visible_alias = "images")]
    Image(image::Image),
    /// Remember, show and forget a server and its access token.
    Auth(auth::Auth),
    /// Open a shell in a machine, or run a program there.
    Ssh(Box<ssh::Ssh>),
    /// Copy files in and out of machines.
    Sftp(Box<sftp::Sftp>),
    /// Remember several servers by name, and choose one.
    #[command(visible_alias = "contexts")]
    Context(context::ContextArguments),
    /// Show what this is: a first machine, from a tiny image that comes with this program.
    Demo(demo::Demo),
    /// Explain the code of an error, or an exit code of this program.
    Explain(explain::Explain),
    /// Show an app's configuration.
    Config(config::Config),
    /// Show an app and its machines.
    Status(status::Status),
    /// What the server offers, and how it is.
    Platform(platform::Platform),
}

/// Runs a command.
pub async fn dispatch(command: Command, session: &Session) -> Result<(), CliError> {
    match command {
        Command::Apps(apps) => apps::run(apps, session).await,
        Command::Machine(machine) => machine::run(*machine, session).await,
        Command::Orgs(orgs) => orgs::run(orgs, session).await,
        Command::Logs(logs) => logs::run(logs, session).await,
        Command::Image(image) => image::run(image, session).await,
        Command::Auth(auth) => auth::run(auth, session).await,
        Command::Ssh(ssh) => ssh::run(*ssh, session).await,
        Command::Sftp(sftp) => sftp::run(*sftp, session).await,
        Command::Context(context) => context::run(context, session),
        Command::Demo(demo) => demo::run(&demo, session).await,
        Command::Explain(explain) => explain::run(&explain, session),
        Command::Config(config) => config::run(config, session).await,
        Command::Status(status) => status::run(status, session).await,
        Command::Platform(platform) => platform::run(platform, session).await,
    }
}
