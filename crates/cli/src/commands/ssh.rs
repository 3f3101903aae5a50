//! `caddis ssh`: sessions in machines. There is no sshd and there are no keys: the session goes
//! over the API, with its token, to the machine's init.

use clap::{Args, Subcommand};

use super::target::Target;
use crate::{CliError, attach, session::Session, terminal, words};

/// `caddis ssh …`.
#[derive(Debug, Args)]
pub struct Ssh {
    #[command(subcommand)]
    command: SshCommand,
}

#[derive(Debug, Subcommand)]
enum SshCommand {
    /// Open a shell in a machine, or run a program there.
    #[command(
        after_help = "Examples:\n  caddis ssh console -a hello\n  caddis ssh console -a hello -C \
                      'ls -la /'\n  \
                            caddis ssh console -a hello --machine 148ed193b95389 -u www --pty -C \
                      top\n  \
                            echo 'select 1' | caddis ssh console -a hello -C 'psql app'"
    )]
    Console(Console),
}

/// `caddis ssh console`.
#[derive(Debug, Args)]
pub struct Console {
    #[command(flatten)]
    target: Target,
    /// Run this instead of a shell; split into words, not run by a shell.
    #[arg(short = 'C', long, value_name = "COMMAND")]
    command: Option<String>,
    /// Run the command on a terminal.
    #[arg(long)]
    pty: bool,
    /// User to run it as.
    #[arg(short, long, default_value = "root")]
    user: String,
}

pub async fn run(ssh: Ssh, session: &Session) -> Result<(), CliError> {
    let SshCommand::Console(console) = ssh.command;
    let command = match &console.command {
        Some(command) => words::split("command", command)?,
        None => Vec::new(),
    };
    let client = session.client()?;
    let (app, machine) = console.target.find(session, &client).await?;
    let pty = console.pty || (command.is_empty() && terminal::is_on_terminal());
    console.target.tell(session, &machine)?;
    if pty && !console.target.quiet {
        session.printer.note(format_args!("Connecting to {}... complete", machine.private_ip))?;
    }
    let program = attach::Program {
        command,
        user: Some(console.user),
        pty,
        stdin: true,
        ..Default::default()
    };
    attach::attach(session, &client, &app, &machine.id, program).await
}
