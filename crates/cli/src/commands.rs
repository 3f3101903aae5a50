//! One file per command.

pub mod apps;
pub mod auth;
pub mod config;
pub mod context;
pub mod demo;
pub mod explain;
pub mod image;
pub mod logs;
pub mod machine;
pub mod orgs;
pub mod platform;
pub mod sftp;
pub mod ssh;
pub mod status;
mod target;

use crate::{CliError, Command, session::Session};

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
