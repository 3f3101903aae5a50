//! The commands. Each takes its arguments, talks to the server through `caddis-client` and writes
//! through a [`Printer`]: data to standard output, everything else to standard error.
//!
//! The binary mounts [`Command`] beside its own commands and calls [`run`]; tests call [`execute`]
//! with an [`Environment`] and a [`Printer`] of their own.
#![forbid(unsafe_code)]
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod app_name;
mod attach;
mod commands;
pub mod complete;
mod connection;
mod durations;
mod environment;
mod error;
mod globals;
mod numbers;
mod organization;
mod printer;
mod progress;
mod prompt;
mod render;
mod report;
mod run;
mod session;
mod settings;
mod spec;
mod suggest;
mod terminal;
mod unavailable;
mod upload;
mod volumes;
mod waiting;
mod words;

use clap::builder::styling::AnsiColor;

pub use commands::Command;
pub use connection::{SERVER_FILE, ServerFile};
pub use environment::Environment;
pub use error::CliError;
pub use globals::Globals;
pub use numbers::parse;
pub use printer::{OutputTail, Printer};
pub use run::{Usage, execute, report_usage, run};

/// Colours of the help text.
pub const HELP_STYLES: clap::builder::Styles = clap::builder::Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());
