//! Runs a command in this process, or for a test, and tells how it ended.

use std::{future::Future, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    CliError, Command, Environment, Globals, Printer, commands, numbers,
    report::{INTERRUPTED, report},
    session::Session,
    suggest, unavailable,
};

/// Runs a command in this process: its environment, terminal and Ctrl-C.
pub async fn run(command: Command, globals: Globals) -> ExitCode {
    // From here on, before anything can be asked: until then the system's default action ends the
    // process.
    let signals = signal(SignalKind::interrupt());
    let interrupt = async {
        let Ok(mut signals) = signals else { return std::future::pending().await };
        signals.recv().await;
        // What is cleaned up after the first may take long.
        tokio::spawn(async move {
            signals.recv().await;
            let _ = Printer::standard().note(
                "Interrupted before the cleanup finished; 'caddis apps list' and 'caddis machine \
                 list' show what is left.",
            );
            std::process::exit(INTERRUPTED.into());
        });
    };
    ExitCode::from(
        execute(command, globals, Environment::of_process(), Printer::standard(), interrupt).await,
    )
}

/// Runs a command and returns its exit code: 0, 1 for an error, 126 when time ran out, 127 when
/// `interrupt` came first, and with `exec --exit-code` that of the program. Errors have been
/// printed.
pub async fn execute(
    command: Command,
    globals: Globals,
    environment: Environment,
    printer: Printer,
    interrupt: impl Future<Output = ()>,
) -> u8 {
    let session = Session::new(globals, environment, printer.clone());
    let result = tokio::select! {
        result = commands::dispatch(command, &session) => result,
        () = interrupt => Err(CliError::Interrupted),
    };
    session.release_leases().await;
    session.clean_up().await;
    match result {
        Ok(()) => 0,
        Err(error) => report(&suggest::explain(error, &session).await, &printer),
    }
}

/// What is to be said of a command line that clap has not taken.
#[derive(Debug)]
pub struct Usage {
    /// Exit code, that of the reference: 0 for help, whether asked for or printed because a command
    /// needs another word, and 1 for what is wrong.
    pub code: u8,
    /// For standard output with exit code 0, else for standard error.
    pub text: clap::builder::StyledStr,
}

impl Usage {
    /// What clap has found.
    pub fn of(error: &clap::Error) -> Self {
        use clap::error::{ContextKind, ContextValue, ErrorKind};
        let helps = !error.use_stderr()
            || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        let unknown = match error.get(ContextKind::InvalidSubcommand) {
            Some(ContextValue::String(word)) => unavailable::advice(word),
            _ => None,
        };
        let text = match unknown {
            Some(text) => text.into(),
            None => numbers::refused(error).as_ref().unwrap_or(error).render(),
        };
        Self { code: u8::from(!helps), text }
    }
}

/// Reports what clap could not parse, or prints the help that was asked for, and returns the exit
/// code: 0 or 1.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    let usage = Usage::of(error);
    let printer = Printer::standard();
    let text =
        if printer.has_colour() { usage.text.ansi().to_string() } else { usage.text.to_string() };
    // Nothing can be done when the terminal is gone.
    let _ = if usage.code == 0 { printer.raw_out(&text) } else { printer.raw_note(&text) };
    ExitCode::from(usage.code)
}
