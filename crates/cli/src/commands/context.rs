//! `caddis context`: several servers by name.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    CliError,
    session::Session,
    settings::{Context, Settings},
};

/// `caddis context …`.
#[derive(Debug, Args)]
pub struct ContextArguments {
    #[command(subcommand)]
    command: ContextCommand,
}

#[derive(Debug, Subcommand)]
enum ContextCommand {
    /// List contexts.
    #[command(visible_alias = "ls", after_help = "Example:\n  caddis context list")]
    List {
        /// Print as JSON, without tokens.
        #[arg(short, long)]
        json: bool,
    },
    /// Store the server of --api-url and the token of --access-token as a context.
    #[command(
        after_help = "Example:\n  caddis context add lab --api-url http://10.0.0.5:4280 --access-token \"$TOKEN\""
    )]
    Add {
        /// Name of the context; an existing one is replaced.
        name: String,
    },
    /// Switch to a context.
    #[command(
        after_help = "Examples:\n  caddis context use lab\n  caddis machine list -a hello --context lab"
    )]
    Use {
        /// Name of the context.
        name: String,
    },
    /// Remove a context.
    #[command(visible_alias = "rm", after_help = "Example:\n  caddis context remove lab")]
    Remove {
        /// Name of the context.
        name: String,
    },
    /// Show which server is used, and why.
    #[command(after_help = "Example:\n  caddis context show")]
    Show {
        /// Print as JSON.
        #[arg(short, long)]
        json: bool,
    },
}

/// Runs it; asks no server.
pub fn run(context: ContextArguments, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let missing = "can't locate the settings file: neither XDG_CONFIG_HOME nor HOME is set";
    let path = session.environment.settings_path().ok_or_else(|| CliError::new(missing))?;
    let mut settings = Settings::load(Some(&path))?;
    match context.command {
        ContextCommand::List { json } => {
            let current = |name: &String| settings.current_context.as_ref() == Some(name);
            if json {
                let row = |(name, context): (&String, &Context)| json!({ "name": name, "api_url": context.api_url, "current": current(name) });
                printer.json(&settings.contexts.iter().map(row).collect::<Vec<_>>())?;
            } else if settings.contexts.is_empty() {
                printer.out("No contexts")?;
            } else {
                let mark = |name: &String| if current(name) { "*" } else { "" };
                let row = |(name, context): (&String, &Context)| {
                    vec![mark(name).to_owned(), name.clone(), context.api_url.clone()]
                };
                let rows: Vec<_> = settings.contexts.iter().map(row).collect();
                printer.table("", &["Current", "Name", "Server"], &rows)?;
            }
        }
        ContextCommand::Add { name } => {
            let Some(api_url) = session.globals.api_url.clone() else {
                let hint = "Give the server's address with --api-url.";
                return Err(CliError::with_hint("no server address given", hint));
            };
            let access_token = session.globals.access_token.clone();
            printer.out(format_args!("Added context {name} for {api_url}"))?;
            settings.contexts.insert(name, Context { api_url, access_token });
            settings.save(&path)?;
        }
        ContextCommand::Use { name } => {
            settings.context(&name)?;
            settings.current_context = Some(name.clone());
            settings.save(&path)?;
            printer.out(format_args!("Using context {name}"))?;
        }
        ContextCommand::Remove { name } => {
            settings.context(&name)?;
            settings.contexts.remove(&name);
            settings.current_context.take_if(|current| *current == name);
            settings.save(&path)?;
            printer.out(format_args!("Removed context {name}"))?;
        }
        ContextCommand::Show { json } => {
            let connection = session.connection()?;
            if json {
                let shown = json!({
                    "api_url": connection.url,
                    "api_url_source": connection.url_source,
                    "access_token_source": connection.token_source,
                });
                printer.json(&shown)?;
            } else {
                printer.out(format_args!(
                    "Server: {} (from {})",
                    connection.url, connection.url_source
                ))?;
                let source = connection
                    .token
                    .map_or("none".to_owned(), |_| format!("from {}", connection.token_source));
                printer.out(format_args!("Access token: {source}"))?;
            }
        }
    }
    Ok(())
}
