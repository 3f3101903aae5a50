//! `caddis machine exec`.

use caddis_api::exec::{CommandLine, ExecRequest, MAX_TIMEOUT_SECONDS};
use clap::Args;

use super::choice::{self, no_container};
use crate::{CliError, attach, complete, globals::AppArgs, session::Session, words};

/// `caddis machine exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// ID or name of the machine. A single argument is the command, and the machine is prompted
    /// for.
    #[arg(value_name = "MACHINE", required_unless_present = "program", add = complete::machines())]
    machine: Option<String>,
    /// Command as one argument; split into words, not run by a shell.
    command: Option<String>,
    /// Command as separate words, after --.
    #[arg(last = true, value_name = "PROGRAM", conflicts_with = "command")]
    program: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    /// Choose the machine from a menu.
    #[arg(long, hide = true)]
    select: bool,
    /// Container of the machine; not supported yet.
    #[arg(long, hide = true, conflicts_with = "no_container")]
    container: Option<String>,
    /// No effect: commands always run in the machine itself.
    #[arg(long, hide = true)]
    no_container: bool,
    /// Kill the program after this many seconds, at most 60.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Exit with the program's exit code.
    #[arg(long)]
    exit_code: bool,
    /// Run on a terminal, with standard input; exits with the program's exit code.
    #[arg(long, visible_alias = "pty", conflicts_with_all = ["json", "timeout"])]
    tty: bool,
    /// Forward standard input and stream the output; exits with the program's exit code.
    #[arg(short, long, conflicts_with_all = ["json", "timeout"])]
    interactive: bool,
    /// Print the result as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(exec: Exec, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let (machine, command) = match (exec.machine, exec.command) {
        (machine, None) if !exec.program.is_empty() => (machine, CommandLine::Words(exec.program)),
        (machine, Some(command)) => (machine, CommandLine::Line(command)),
        // There is nobody to choose the machine from a menu.
        (Some(only), None) if !printer.is_interactive() => {
            return Err(CliError::with_hint(
                format!("got only '{only}': a machine and a command are needed"),
                "Write 'caddis machine exec MACHINE COMMAND', or the command in words after --.",
            ));
        }
        (command, None) => (None, CommandLine::Line(command.unwrap_or_default())),
    };
    no_container(exec.container.as_deref())?;
    let (client, app, machine) =
        choice::one(session, &exec.app, machine.as_deref(), exec.select).await?;
    if exec.tty || exec.interactive {
        let command = match command {
            CommandLine::Line(line) => words::split("command", &line)?,
            CommandLine::Words(words) => words,
        };
        if command.is_empty() {
            return Err(CliError::new("no command given"));
        }
        let program = attach::Program { command, pty: exec.tty, stdin: true, ..Default::default() };
        return attach::attach(session, &client, &app, &machine.id, program).await;
    }
    if let Some(seconds) = exec.timeout.filter(|seconds| *seconds > MAX_TIMEOUT_SECONDS) {
        printer.note(format_args!(
            "Warning: --timeout {seconds} is beyond the longest time, {MAX_TIMEOUT_SECONDS} \
             seconds; --interactive has no limit"
        ))?;
    }
    let request =
        ExecRequest { cmd: Some(command), timeout: exec.timeout, ..ExecRequest::default() };
    let reply = client.exec(&app, &machine.id, &request, None).await;
    let reply = reply.map_err(|e| CliError::attempted("could not exec command on machine", e))?;
    if exec.json {
        printer.json(&reply)?;
    } else {
        if reply.exit_code != 0 {
            printer.out(format_args!("Exit code: {}", reply.exit_code))?;
        }
        printer.raw_out(&reply.stdout)?;
        printer.raw_note(&reply.stderr)?;
        if reply.timed_out {
            let seconds =
                exec.timeout.filter(|seconds| *seconds > 0).unwrap_or(MAX_TIMEOUT_SECONDS);
            let seconds = seconds.min(MAX_TIMEOUT_SECONDS);
            printer.note(format_args!(
                "The command was killed: it did not finish within {seconds}s (--timeout)."
            ))?;
        }
    }
    if exec.exit_code && reply.exit_code != 0 {
        return Err(CliError::ExitCode(u8::try_from(reply.exit_code & 0xff).unwrap_or(1)));
    }
    Ok(())
}
