//! `caddis context`: several servers by name. Asks no server.

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

mod add;
mod list;
mod remove;
mod select;
mod show;

/// `caddis context …`.
#[derive(Debug, Args)]
pub struct ContextArguments {
    #[command(subcommand)]
    command: ContextCommand,
}

#[derive(Debug, Subcommand)]
enum ContextCommand {
    /// List contexts.
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Store the server of --api-url and the token of --access-token as a context.
    Add(add::Add),
    /// Switch to a context.
    Use(select::Use),
    /// Remove a context.
    #[command(visible_alias = "rm")]
    Remove(remove::Remove),
    /// Show which server is used, and why.
    Show(show::Show),
}

pub fn run(context: ContextArguments, session: &Session) -> Result<(), CliError> {
    match context.command {
        ContextCommand::List(list) => list::run(&list, session),
        ContextCommand::Add(add) => add::run(add, session),
        ContextCommand::Use(choice) => select::run(choice, session),
        ContextCommand::Remove(remove) => remove::run(&remove, session),
        ContextCommand::Show(show) => show::run(&show, session),
    }
}
