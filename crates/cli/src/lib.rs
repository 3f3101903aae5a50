//! The commands. Each takes its arguments, talks to the server through `caddis-client` and writes
//! through a [`Printer`]: data to standard output, everything else to standard error.
//!
//! The binary mounts [`Command`] beside its own commands and calls [`run`]; tests call [`execute`]
//! with an [`Environment`] and a [`Printer`] of their own.
#![forbid(unsafe_code)]

mod app_name;
mod commands;
pub mod complete;
mod connection;
mod environment;
mod error;
mod globals;
mod organization;
mod printer;
mod progress;
mod prompt;
mod render;
mod session;
mod settings;
mod spec;
mod suggest;
mod terminal;
mod unavailable;
mod upload;
mod waiting;
mod words;

use std::{future::Future, process::ExitCode};

use clap::{Subcommand, builder::styling::AnsiColor};
use tokio::signal::unix::{SignalKind, signal};

pub use connection::{SERVER_FILE, ServerFile};
pub use environment::Environment;
pub use error::CliError;
use error::INTERRUPTED;
pub use globals::Globals;
pub use printer::{OutputTail, Printer};

/// Colours of the help text.
pub const HELP_STYLES: clap::builder::Styles = clap::builder::Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// A command that talks to a server.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, list and destroy apps: names that machines live under.
    #[command(visible_alias = "app")]
    Apps(commands::apps::Apps),
    /// Run and manage machines: VMs made from images.
    #[command(visible_aliases = ["machines", "m"])]
    Machine(Box<commands::machine::Machine>),
    /// List organizations: who apps belong to.
    #[command(visible_aliases = ["org", "organizations"])]
    Orgs(commands::orgs::Orgs),
    /// Show what an app's machines write.
    Logs(commands::logs::Logs),
    /// Import, list and remove the images the server holds.
    #[command(visible_alias = "images")]
    Image(commands::image::Image),
    /// Remember, show and forget a server and its access token.
    Auth(commands::auth::Auth),
    /// Open a shell in a machine, or run a program there.
    Ssh(Box<commands::ssh::Ssh>),
    /// Copy files in and out of machines.
    Sftp(Box<commands::sftp::Sftp>),
    /// Remember several servers by name, and choose one.
    #[command(visible_alias = "contexts")]
    Context(commands::context::ContextArguments),
    /// Show what this is: a first machine, from a tiny image that comes with this program.
    Demo(commands::demo::Demo),
    /// Explain the code of an error, or an exit code of this program.
    Explain(commands::explain::Explain),
    /// Show an app's configuration.
    Config(commands::config::Config),
    /// Show an app and its machines.
    Status(commands::status::Status),
    /// What the server offers, and how it is.
    Platform(commands::platform::Platform),
}

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
            eprintln!(
                "Ended before all was cleaned up; see 'caddis apps list' and 'caddis machine list' for what is left."
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
    let session = session::Session::new(globals, environment, printer.clone());
    let result = tokio::select! {
        result = commands::dispatch(command, &session) => result,
        () = interrupt => Err(CliError::Interrupted),
    };
    session.release_leases().await;
    session.clean_up().await;
    match result {
        Ok(()) => 0,
        Err(error) => suggest::explain(error, &session).await.report(&printer),
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
        let text = unknown.map_or_else(|| error.render(), Into::into);
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
