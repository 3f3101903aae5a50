//! `caddis sftp`: files in and out of machines. The machine's init reads and writes them, so the
//! image needs nothing for it.

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

mod find;
mod get;
mod put;
mod transfer;

/// `caddis sftp …`.
#[derive(Debug, Args)]
pub struct Sftp {
    #[command(subcommand)]
    command: SftpCommand,
}

#[derive(Debug, Subcommand)]
enum SftpCommand {
    /// Copy a file or directory out of a machine.
    #[command(
        after_help = "Examples:\n  caddis sftp get /etc/hosts -a hello\n  caddis sftp get /var/log \
                      logs -R -a hello --machine 148ed193b95389"
    )]
    Get(get::Get),
    /// Copy a file or directory into a machine.
    #[command(
        after_help = "Examples:\n  caddis sftp put app.conf /etc/app.conf -a hello -m 0600\n  \
                      caddis sftp put public /var/www -R -a hello"
    )]
    Put(put::Put),
    /// List files at and below a path in a machine.
    #[command(visible_alias = "ls", after_help = "Example:\n  caddis sftp find /etc -a hello")]
    Find(find::Find),
}

pub async fn run(sftp: Sftp, session: &Session) -> Result<(), CliError> {
    match sftp.command {
        SftpCommand::Get(get) => get::run(get, session).await,
        SftpCommand::Put(put) => put::run(put, session).await,
        SftpCommand::Find(find) => find::run(find, session).await,
    }
}
