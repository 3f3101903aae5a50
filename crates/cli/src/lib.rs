//! The commands. Each takes its arguments, talks to the server through `caddis-client` and writes through a
//! [`Printer`]: data to standard output, everything else to standard error.
#![forbid(unsafe_code)]

mod connection;
mod environment;
mod error;
mod globals;
mod printer;
mod render;
mod settings;

use std::process::ExitCode;

use clap::Subcommand;

pub use connection::{SERVER_FILE, ServerFile};
pub use environment::Environment;
pub use error::CliError;
pub use globals::Globals;
pub use printer::{Capture, Printer};

/// Colours of the help text.
pub const HELP_STYLES: clap::builder::Styles = clap::builder::Styles::styled();

/// A command that talks to a server.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the version of this program.
    Version,
}

/// Runs a command in this process.
pub async fn run(_command: Command, _globals: Globals) -> ExitCode {
    ExitCode::SUCCESS
}

/// Reports what clap could not parse.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(u8::from(error.use_stderr()))
}
